//! What a model of text takes: which of its inputs are for tokens, and how many its tables hold.

use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, Links, data_inputs, declared_dims, declared_type, is_integer};
use crate::onnx::proto::{NodeProto, TensorProto, ValueInfoProto};
use crate::onnx::{DataType, Model, is_float};
use crate::ops::{self, Mark};

use super::super::feeds::in_words;

/// A table of fewer rows tells kinds of tokens apart, and no places.
const FEWEST_PLACES: usize = 8;

/// The inputs that tokens are for, as the file names them, and what is known of its tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Takes {
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
}

/// A table of positions that are learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Places {
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
            let words: Vec<String> = inputs.iter().map(|v| in_words(v)).collect();
            return Err(Error::new(ErrorKind::Unsupported, format!("no input takes tokens: {}", words.join(", ")))
                .hint("texts are fed as `input_ids`, whole numbers [batch, tokens]; for other inputs give --inputs"));
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
        let table = |name: &str| -> Option<&TensorProto> {
            let cast = links.maker(name).map(|k| &links.nodes[k]).filter(|n| n.op_type() == "Cast");
            let name = cast.and_then(|n| n.input.first()).map_or(name, String::as_str);
            graph.initializer.iter().find(|t| t.name() == name && is_float(t))
        };
        // The same numbers in another place or type.
        let kept = |node: &'_ NodeProto| ops::of(node).is(Mark::Keeps);
        let origin = |name: &str| {
            let step = |node| if kept(node) { node.input.first().map(String::as_str) } else { None };
            links.follow_back(name, step).last().unwrap_or(name).to_owned()
        };
        let lookups = graph.node.iter().filter(|n| n.op_type() == "Gather" && n.int("axis").unwrap_or(0) == 0);
        let lookups: Vec<(&[i64], &str)> = lookups
            .filter_map(|n| Some((&table(n.input.first()?)?.dims[..], n.input.get(1)?.as_str())))
            .filter(|(dims, _)| dims.len() == 2)
            .collect();
        let Some((embeddings, _)) = lookups.iter().find(|(_, index)| origin(index) == self.ids) else { return };
        self.vocabulary = usize::try_from(embeddings[0]).ok();
        let inputs: Vec<&str> = data_inputs(graph).into_iter().map(|v| v.name()).collect();
        let by_place = |index: &str| {
            let from = origin(index);
            self.positions.as_ref() == Some(&from) || inputs.iter().all(|input| *input != from)
        };
        let counted = |index| {
            let of_shape = |value: &str| links.maker(value).is_some_and(|k| links.nodes[k].op_type() == "Shape");
            links.upstream([index]).until(of_shape).any(|value| value == self.ids)
        };
        let looked_up = lookups.iter().filter(|(dims, index)| dims[1] == embeddings[1] && by_place(index));
        let looked_up = looked_up.map(|(dims, index)| (dims[0], counted(*index)));
        // Their first rows may be taken as they stand.
        let sliced = graph.node.iter().filter(|n| n.op_type() == "Slice");
        let sliced = sliced.filter_map(|n| match table(n.input.first()?)?.dims[..] {
            [rows, width] | [1, rows, width] if width == embeddings[1] => Some((rows, false)),
            _ => None,
        });
        let largest = looked_up.chain(sliced).max_by_key(|(rows, _)| *rows);
        let places = largest.and_then(|(rows, counted)| Some(Places { rows: usize::try_from(rows).ok()?, counted }));
        self.places = places.filter(|places| places.rows >= FEWEST_PLACES);
    }
}

/// The name of an input without what TensorFlow writes behind it.
fn plain(name: &str) -> &str {
    name.split(':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{int_attribute, node};
    use crate::onnx::proto::{GraphProto, ModelProto};
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
        // As they stand.
        let takes = found([words(), vec![node("Slice", &["places", "0", "s"], &["p"], vec![])]].concat());
        assert_eq!(takes.places, Some(Places { rows: 16, counted: false }));
        assert_eq!(found(words()).places, None);
    }
}
