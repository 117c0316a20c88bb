//! Nodes of children: surgery changes sizes, and a child has no node that its ancestor lacks.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use offshoot::anatomy::Anatomy;
use offshoot::axes::{Typing, branches};
use offshoot::descendant::{FfnWidth, GrowOptions, Heads, grow};
use offshoot::learngene::Learngene;
use offshoot::onnx::Model;
use rayon::prelude::*;

use super::root;

/// Half the heads, half the FFN and both, of every model of the fixtures that is an encoder: no operator stands more
/// often in the child.
pub fn no_child_has_more() {
    let mut paths = Vec::new();
    ["fixtures", "models"].iter().for_each(|folder| models(&root().join(folder), &mut paths));
    paths.sort();
    let counts: Vec<usize> = paths.par_iter().map(|path| children(path)).collect();
    let children: usize = counts.iter().sum();
    assert!(children > 350, "only {children} children of {} models were grown", paths.len());
}

/// The children of one model that can be grown, checked.
fn children(path: &Path) -> usize {
    let Some(ancestor) = opened(path) else { return 0 };
    let Ok(typing) = Typing::new(&ancestor) else { return 0 };
    let Ok(anatomy) = Anatomy::new(&typing) else { return 0 };
    let gene = Learngene::identity(&typing, &anatomy);
    let (half, ffn_width) = (Heads::Percent(50.0), FfnWidth::Percent(50.0));
    let shapes = [
        GrowOptions { heads: half.clone(), ..GrowOptions::default() },
        GrowOptions { ffn_width, ..GrowOptions::default() },
        GrowOptions { heads: half, ffn_width, ..GrowOptions::default() },
    ];
    let before = operators(&ancestor);
    let grown = shapes.iter().filter_map(|shape| Some((shape, grow(&ancestor, &gene, shape).ok()?.model)));
    let check = |(shape, child): (&GrowOptions, Model)| {
        for (operator, n) in operators(&child) {
            let had = before.get(&operator).copied().unwrap_or(0);
            assert!(n <= had, "{}, {shape:?}: {n} {operator} instead of {had}", path.display());
        }
    };
    grown.map(check).count()
}

/// A model as a command works on it.
fn opened(path: &Path) -> Option<Model> {
    let mut model = Model::open(path).ok()?;
    offshoot::graph::prepare(&mut model).ok()?;
    branches::inline(&mut model, None).ok()?;
    Some(model)
}

fn operators(model: &Model) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for node in &model.graph().node {
        *counts.entry(node.op_type().to_string()).or_default() += 1;
    }
    counts
}

/// The paths of all models of a folder.
fn models(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => models(&path, found),
            false if path.extension().is_some_and(|e| e == "onnx") => found.push(path),
            false => {}
        }
    }
}

/// Where the exporter left -1 for the heads, a child of half of them says how many they are.
pub fn heads_are_said() {
    for file in ["reports/texts/bert-ts.onnx", "graphs/hf-vit-ts17.onnx"] {
        let ancestor = opened(&root().join("fixtures").join(file)).unwrap();
        let typing = Typing::new(&ancestor).unwrap();
        let gene = Learngene::identity(&typing, &Anatomy::new(&typing).unwrap());
        let shape = GrowOptions { heads: Heads::Percent(50.0), ..GrowOptions::default() };
        let child = grow(&ancestor, &gene, &shape).unwrap().model;
        let heads = gene.layers[0].len() as i64;
        let (left, said) = (heads_of_targets(&ancestor), heads_of_targets(&child));
        let open = left.iter().filter(|n| **n == -1).count();
        assert!(open >= 6, "{file}: {left:?}");
        assert_eq!(said.iter().filter(|n| **n == heads / 2).count(), open, "{file}: {said:?}");
        assert!(!said.contains(&-1), "{file}: {said:?}");
    }
}

/// The third of four sizes that a Reshape is given.
fn heads_of_targets(model: &Model) -> Vec<i64> {
    let typing = Typing::new(model).unwrap();
    let targets = model.graph().node.iter().filter(|n| n.op_type() == "Reshape");
    let sizes = targets.filter_map(|n| Some(typing.known.get(n.input[1].as_str())?.ints()));
    sizes.filter(|sizes| sizes.len() == 4).map(|sizes| sizes[2]).collect()
}
