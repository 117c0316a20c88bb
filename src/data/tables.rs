//! Tables that a model looks numbers up in: those of embeddings, of places, of kinds of tokens.

use ndarray::{ArrayD, Axis};

use crate::graph::{Attributes, Links};
use crate::onnx::Model;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::ops::{self, Mark};

/// Rows of a table that are looked up by number.
pub(super) struct Lookup<'g> {
    /// The table, [rows, ...].
    pub table: &'g TensorProto,
    /// The numbers.
    pub index: &'g str,
    /// The value that they stand in first: the same numbers in another place or type.
    pub origin: &'g str,
}

/// The constant table that a value is, which may be cast.
pub(super) fn table<'g>(graph: &'g GraphProto, links: &Links<'g>, name: &'g str) -> Option<&'g TensorProto> {
    let cast = links.maker(name).map(|k| &links.nodes[k]).filter(|n| n.op_type() == "Cast");
    let name = cast.and_then(|n| n.input.first()).map_or(name, String::as_str);
    graph.initializer.iter().find(|t| t.name() == name)
}

/// All that is looked up in tables along their first axis, in the order of the graph.
pub(super) fn lookups<'g>(graph: &'g GraphProto, links: &Links<'g>) -> Vec<Lookup<'g>> {
    let step = |node: &'g NodeProto| {
        if ops::of(node).is(Mark::Keeps) { node.input.first().map(String::as_str) } else { None }
    };
    let found = graph.node.iter().filter(|n| n.op_type() == "Gather" && n.int("axis").unwrap_or(0) == 0);
    let lookup = |n: &'g NodeProto| {
        let (table, index) = (table(graph, links, n.input.first()?)?, n.input.get(1)?.as_str());
        Some(Lookup { table, index, origin: links.follow_back(index, step).last().unwrap_or(index) })
    };
    found.filter_map(lookup).collect()
}

/// What is wrong with the numbers of an input: one that is no row of a table that they are looked up in. Engines read a
/// negative one from the table's end, or whatever lies beyond it.
pub(super) fn no_row(model: &Model, input: &str, values: &ArrayD<f32>) -> Option<String> {
    let links = Links::new(model.graph());
    let of = lookups(model.graph(), &links).into_iter().filter(|lookup| lookup.origin == input);
    let (rows, table) = of.filter_map(|l| Some((*l.table.dims.first()?, l.table.name()))).min()?;
    let (at, value) = values.iter().enumerate().find(|(_, v)| !(0.0..rows as f32).contains(*v))?;
    let at = at * values.len_of(Axis(0)) / values.len();
    Some(format!("its array `{input}` has {value} in sample {at}, and the table `{table}` {rows} rows, from 0"))
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

    use super::*;
    use crate::graph::{int_attribute, node};
    use crate::onnx::proto::ModelProto;
    use crate::onnx::{DataType, tensor_from_f32, tensor_info};

    #[test]
    fn numbers_are_rows_of_the_smallest_table() {
        let gather = |table: &str, index: &str, axis| {
            node("Gather", &[table, index], &[&format!("{table}/out")], vec![int_attribute("axis", axis)])
        };
        let graph = GraphProto {
            input: vec![tensor_info("ids", DataType::Int64, &[None, None])],
            node: vec![
                node("Cast", &["ids"], &["short"], vec![int_attribute("to", 6)]),
                gather("words", "short", 0),
                gather("few", "ids", 0),
                gather("across", "ids", 1),
                node("Add", &["ids", "ids"], &["twice"], vec![]),
                gather("other", "twice", 0),
            ],
            initializer: [("words", 30), ("few", 20), ("across", 3), ("other", 2)]
                .map(|(name, rows)| tensor_from_f32(name, DataType::Float, &[rows, 1], &vec![0.0; rows]))
                .into(),
            ..GraphProto::default()
        };
        let model = Model::from_proto(ModelProto { graph: Some(graph), ..ModelProto::default() });
        let wrong = |values: [[f32; 2]; 2]| no_row(&model, "ids", &arr2(&values).into_dyn());
        assert_eq!(wrong([[0.0, 19.0], [3.0, 1.0]]), None);
        assert_eq!(
            wrong([[0.0, 1.0], [3.0, 20.0]]).unwrap(),
            "its array `ids` has 20 in sample 1, and the table `few` 20 rows, from 0"
        );
        assert!(wrong([[-1.0, 1.0], [3.0, 2.0]]).unwrap().contains("has -1 in sample 0"));
        assert_eq!(no_row(&model, "mask", &arr2(&[[99.0, 1.0]]).into_dyn()), None);
    }
}
