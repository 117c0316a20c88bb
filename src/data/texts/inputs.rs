//! What a model of text takes: which of its inputs are for tokens, and how many its tables hold.

use crate::axes::arithmetic::{ConstValue, constant};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Links, data_inputs, declared_dims, declared_type, is_integer};
use crate::onnx::proto::{GraphProto, TensorProto, ValueInfoProto};
use crate::onnx::{DataType, Model, is_float};

use super::super::feeds::inputs_in_words;
use super::super::tables::{Lookup, lookups, table};

/// A table of fewer rows tells kinds of tokens apart, and no places.
const FEWEST_PLACES: usize = 8;

/// The inputs that tokens are for, as the file names them, and what is known of its tables.
#[derive(Clone, Debug, Default)]
pub(in crate::data) struct Takes {
    /// Takes the ids of tokens.
    pub ids: String,
    /// Takes ones for real tokens and zeros for padding.
    pub mask: Option<String>,
    /// Takes which text of a pair a token is of.
    pub types: Option<String>,
    /// Takes the place of each token.
    pub positions: Option<String>,
    /// The number of tokens, where the file fixes it.
    pub fixed: Option<usize>,
    /// Rows of the table of embeddings.
    pub vocabulary: Option<usize>,
    /// The table of positions.
    pub places: Option<Places>,
    /// Its name.
    pub table: Option<String>,
    /// The id of the tokens that have no place of their own, where the graph counts places and says it.
    pub pad: Option<usize>,
}

/// A table of positions that are learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::data) struct Places {
    /// Its rows.
    pub rows: usize,
    /// True where the graph counts the places of real tokens behind the number of the padding token, as RoBERTa does.
    pub counted: bool,
}

impl Takes {
    /// Reads a model.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where no input takes tokens.
    pub fn new(model: &Model) -> Result<Takes> {
        let graph = model.graph();
        let inputs = data_inputs(graph);
        let named = |name: &str| inputs.iter().find(|v| plain(v.name()) == name).map(|v| v.name().to_owned());
        let mut takes = Takes {
            mask: named("attention_mask"),
            types: named("token_type_ids"),
            positions: named("position_ids"),
            ..Takes::default()
        };
        let others: Vec<&String> = [&takes.mask, &takes.types, &takes.positions].into_iter().flatten().collect();
        let is_token = |v: &ValueInfoProto| {
            let kind = declared_type(v).and_then(|t| DataType::try_from(t).ok());
            kind.is_some_and(is_integer) && declared_dims(v).is_some_and(|dims| dims.len() == 2)
        };
        let unnamed: Vec<&&ValueInfoProto> =
            inputs.iter().filter(|v| is_token(v) && others.iter().all(|name| *name != v.name())).collect();
        let ids = named("input_ids").or_else(|| match unnamed[..] {
            [one] => Some(one.name().to_owned()),
            _ => None,
        });
        let Some(ids) = ids else {
            let words = inputs_in_words(model);
            return Err(Error::new(ErrorKind::Unsupported, format!("no input takes tokens: {words}"))
                .hint("texts are fed as `input_ids`, whole numbers [batch, tokens]; for other inputs give ⟦inputs⟧"));
        };
        let axis = |name: &str| inputs.iter().find(|v| v.name() == name).and_then(|v| declared_dims(v));
        takes.fixed = axis(&ids).and_then(|dims| dims.get(1).copied().flatten());
        takes.ids = ids;
        takes.read_tables(model);
        Ok(takes)
    }

    fn read_tables(&mut self, model: &Model) {
        let graph = model.graph();
        let links = Links::new(graph);
        let is_matrix = |table: &TensorProto| is_float(table) && table.dims.len() == 2;
        let lookups: Vec<Lookup> =
            lookups(graph, &links).into_iter().filter(|lookup| is_matrix(lookup.table)).collect();
        let Some(words) = lookups.iter().find(|lookup| lookup.origin == self.ids).map(|l| &l.table.dims) else {
            return;
        };
        self.vocabulary = usize::try_from(words[0]).ok();
        let inputs: Vec<&str> = data_inputs(graph).into_iter().map(|v| v.name()).collect();
        let is_given = |name: &str| inputs.contains(&name) || model.fed.iter().any(|fed| fed.info.name() == name);
        let by_place = |origin: &str| self.positions.as_deref() == Some(origin) || !is_given(origin);
        // How many tokens there are decides what is looked up.
        let follows = |value| links.upstream([value]).any(|value| inputs.contains(&value));
        let counted = |index| {
            let of_shape = |value: &str| links.maker(value).is_some_and(|k| links.nodes[k].op_type() == "Shape");
            links.upstream([index]).until(of_shape).any(|value| value == self.ids)
        };
        let is_of_places = |l: &&Lookup| l.table.dims[1] == words[1] && by_place(l.origin);
        let counting = lookups.iter().filter(is_of_places).find(|l| counted(l.index));
        let pad = counting.and_then(|l| left_out(graph, &links, &self.ids, l.index));
        let looked_up = lookups.iter().filter(is_of_places).filter(|l| follows(l.index));
        let looked_up = looked_up.map(|l| (l.table, l.table.dims[0], counted(l.index)));
        // Their first rows may be taken as they stand.
        let sliced = graph.node.iter().filter(|n| n.op_type() == "Slice");
        let sliced = sliced.filter_map(|n| {
            let t = table(graph, &links, n.input.first()?).filter(|t| is_float(t))?;
            match t.dims[..] {
                [rows, width] | [1, rows, width] if width == words[1] && follows(n.input.get(2)?.as_str()) => {
                    Some((t, rows, false))
                }
                _ => None,
            }
        });
        let largest = looked_up.chain(sliced).max_by_key(|(_, rows, _)| *rows);
        let of = |(table, rows, counted): (&TensorProto, i64, bool)| {
            let places = Places { rows: usize::try_from(rows).ok()?, counted };
            (places.rows >= FEWEST_PLACES).then(|| (places, table.name().to_owned()))
        };
        (self.places, self.table) = largest.and_then(of).unzip();
        self.pad = pad;
    }

    /// What is wrong with so many tokens of a text, of which `real` are no padding: the table of places is shorter.
    /// Where a graph counts places, it counts real ones alone.
    pub fn too_long(&self, tokens: usize, real: usize) -> Option<String> {
        let Places { rows, counted } = self.places.filter(|_| self.positions.is_none())?;
        // Those that are counted begin behind the number of padding.
        let (tokens, places) = match counted {
            true => (real, rows.saturating_sub(1 + self.pad.unwrap_or(0))),
            false => (tokens, rows),
        };
        (tokens > places).then(|| format!("has {tokens} tokens a text, and the model places for {places}"))
    }
}

/// The input that takes the ids of tokens, and the one that tells them from padding, where there is one.
///
/// # Errors
/// Those of [`Takes::new`].
pub(crate) fn token_inputs(model: &Model) -> Result<(String, Option<String>)> {
    Takes::new(model).map(|takes| (takes.ids, takes.mask))
}

/// The id of tokens that a count of places leaves out: what ids are compared with on the way to it.
fn left_out<'g>(graph: &'g GraphProto, links: &Links<'g>, ids: &str, index: &'g str) -> Option<usize> {
    let nodes = links.upstream([index]).nodes().map(|k| &links.nodes[k]);
    let compared = nodes.filter(|n| n.op_type() == "Equal" && n.input.iter().any(|input| input == ids));
    let number = |input: &'g String| {
        // TorchScript writes a Constant, dynamo an initializer.
        let made = links.maker(input).and_then(|k| constant(&links.nodes[k]));
        match made.or_else(|| ConstValue::read(table(graph, links, input)?))?.ints()[..] {
            [id] => usize::try_from(id).ok(),
            _ => None,
        }
    };
    compared.flat_map(|n| &n.input).find_map(number)
}

/// The name of an input without what TensorFlow writes behind it.
fn plain(name: &str) -> &str {
    name.split(':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::graph::{int_attribute, node, prepare};
    use crate::onnx::proto::{ModelProto, NodeProto};
    use crate::onnx::{tensor_from_f32, tensor_info};

    fn model(inputs: &[(&str, &[Option<usize>])], nodes: Vec<NodeProto>, tables: &[(&str, [usize; 2])]) -> Model {
        let info = |(name, dims): &(&str, &[Option<usize>])| tensor_info(*name, DataType::Int64, dims);
        let table = |(name, [rows, width]): &(&str, [usize; 2])| {
            tensor_from_f32(*name, DataType::Float, &[*rows, *width], &vec![0.0; rows * width])
        };
        let graph = GraphProto {
            input: inputs.iter().map(info).collect(),
            node: nodes,
            initializer: tables.iter().map(table).collect(),
            ..GraphProto::default()
        };
        Model::from_proto(ModelProto { graph: Some(graph), ..ModelProto::default() })
    }

    #[test]
    fn inputs_are_told_by_their_names() {
        let open = &[None, None][..];
        let names = ["input_ids", "attention_mask", "token_type_ids:0", "position_ids", "pixels"];
        let takes = Takes::new(&model(&names.map(|name| (name, open)), vec![], &[])).unwrap();
        let others = [&takes.mask, &takes.types, &takes.positions].map(|name| name.as_deref().unwrap());
        assert_eq!((takes.ids.as_str(), &others[..]), (names[0], &names[1..4]));
        assert_eq!((takes.fixed, takes.vocabulary, takes.places), (None, None, None));
        // One that bears another name is found where it is alone.
        let takes = Takes::new(&model(&[("text", &[None, Some(64)]), ("attention_mask", open)], vec![], &[])).unwrap();
        assert_eq!((takes.ids.as_str(), takes.fixed), ("text", Some(64)));
        let image = [("a", open), ("b", open)];
        for inputs in [&image[..], &[("x", &[None, None, None][..])]] {
            let error = Takes::new(&model(inputs, vec![], &[])).unwrap_err();
            assert!(error.to_string().contains("no input takes tokens"), "{error}");
        }
    }

    #[test]
    fn tables_are_found_by_what_looks_into_them() {
        let inputs = [("input_ids", &[None, None][..]), ("token_type_ids", &[None, None][..])];
        let look = |table: &str, index: &str, out: &str| {
            node("Gather", &[table, index], &[out], vec![int_attribute("axis", 0)])
        };
        let words = || {
            let cast = node("Cast", &["input_ids"], &["ids"], vec![int_attribute("to", 6)]);
            vec![cast, look("words", "ids", "w"), look("types", "token_type_ids", "t")]
        };
        let shape = || vec![node("Shape", &["input_ids"], &["s"], vec![]), node("Range", &["s"], &["r"], vec![])];
        let tables = [("words", [30, 4]), ("types", [12, 4]), ("places", [16, 4]), ("other", [64, 5])];
        let found = |nodes: Vec<NodeProto>| Takes::new(&model(&inputs, nodes, &tables)).unwrap();
        // By how long the ids are, as of BERT; a table of another width is none of places (T5).
        let ranged = [words(), shape(), vec![look("places", "r", "p"), look("other", "r", "o")]].concat();
        let takes = found(ranged);
        assert_eq!((takes.vocabulary, takes.places), (Some(30), Some(Places { rows: 16, counted: false })));
        // By which ids are real, as of RoBERTa.
        let real = node("Equal", &["input_ids", "pad"], &["q"], vec![]);
        let counted = node("CumSum", &["q", "one"], &["c"], vec![]);
        let takes = found([words(), vec![real, counted, look("places", "c", "p")]].concat());
        assert_eq!(takes.places, Some(Places { rows: 16, counted: true }));
        assert_eq!([15, 16].map(|real| takes.too_long(20, real).is_some()), [false, true]);
        // As they stand.
        let takes = found([words(), shape(), vec![node("Slice", &["places", "0", "s"], &["p"], vec![])]].concat());
        assert_eq!(takes.places, Some(Places { rows: 16, counted: false }));
        assert_eq!([16, 17].map(|tokens| takes.too_long(tokens, 1).is_some()), [false, true]);
        // Rows that are the same however many tokens there are, as of DeBERTa, are none of places.
        let takes = found([words(), vec![node("Slice", &["places", "0", "e"], &["p"], vec![])]].concat());
        assert_eq!(takes.places, None);
        assert_eq!(found(words()).places, None);
    }

    /// What scripts/fixtures/text_encoders.py makes of six kinds: 40 tokens and 32 places, which RoBERTa and MPNet
    /// count behind their padding, 1.
    #[test]
    fn tables_of_encoders_are_found_in_what_exporters_write() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/texts");
        for family in ["bert", "distilbert", "clip", "gpt2", "roberta", "mpnet"] {
            for export in ["ts17", "dynamo20"] {
                let mut model = Model::open(folder.join(format!("{family}-{export}.onnx"))).unwrap();
                prepare(&mut model).unwrap();
                let takes = Takes::new(&model).unwrap();
                let counted = ["roberta", "mpnet"].contains(&family);
                let places = Places { rows: if counted { 34 } else { 32 }, counted };
                let found = (takes.vocabulary, takes.places, takes.pad);
                assert_eq!(found, (Some(40), Some(places), counted.then_some(1)), "{family}-{export}");
                assert_eq!([32, 33].map(|n| takes.too_long(n, n).is_some()), [false, true], "{family}-{export}");
            }
        }
    }
}
