//! Text encoders with open batch and tokens (scripts/fixtures/text_encoders.py): batches of different lengths.

use std::fs::File;
use std::sync::Arc;

use ndarray::{ArrayD, ArrayViewD, Axis, Slice};
use ndarray_npy::{NpzReader, ReadableElement};
use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::descendant::{FfnWidth, Heads, Shape, grow};
use offshoot::learngene::Learngene;
use offshoot::onnx::Model;
use offshoot::runtime::{Runtime, Session};

use super::surgery::error;
use super::{Fixture, listed, root};

/// The tokens of the two batches.
const LENGTHS: [usize; 2] = [24, 30];

/// All of them.
pub fn fixtures() -> Vec<Fixture> {
    listed("texts")
}

fn array<T: ReadableElement>(name: &str) -> ArrayD<T> {
    let file = File::open(root().join("fixtures/texts/texts.npz")).unwrap();
    NpzReader::new(file).unwrap().by_name(name).unwrap()
}

fn names<'f>(fixture: &'f Fixture, key: &str) -> Vec<&'f str> {
    fixture.entry[key].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

/// The batch of so many tokens, an array for each input.
pub fn feeds(fixture: &Fixture, tokens: usize) -> Vec<(String, ArrayD<f32>)> {
    let of = |name: &str| array::<i64>(&format!("{name}-{tokens}")).mapv(|v| v as f32);
    names(fixture, "inputs").into_iter().map(|name| (name.to_string(), of(name))).collect()
}

/// What PyTorch says of it, an array for each output.
fn said(fixture: &Fixture, tokens: usize) -> Vec<ArrayD<f32>> {
    let family = fixture.entry["family"].as_str().unwrap();
    names(fixture, "outputs").into_iter().map(|name| array(&format!("{family}-{name}-{tokens}"))).collect()
}

fn run(session: &mut Session, feeds: &[(String, ArrayD<f32>)]) -> Result<Vec<ArrayD<f32>>, String> {
    let arrays: Vec<(&str, ArrayViewD<f32>)> = feeds.iter().map(|(n, a)| (n.as_str(), a.view())).collect();
    session.run_on(&arrays).map_err(|e| e.to_string())
}

/// Notes where two things that were said are not the same.
fn compare(failures: &mut Vec<String>, what: String, found: Result<Vec<ArrayD<f32>>, String>, said: &[ArrayD<f32>]) {
    match found.map(|found| error(&found, said)) {
        Ok(e) if e < 1e-5 => {}
        Ok(e) => failures.push(format!("{what}: relative error {e:e}")),
        Err(e) => failures.push(format!("{what}: {e}")),
    }
}

/// A session takes batches of one length after those of another, and says what PyTorch says of each.
pub fn lengths_are_any(runtime: &Arc<Runtime>) {
    let mut failures = Vec::new();
    for fixture in fixtures() {
        let mut session = runtime.load_open(&fixture.open(), 3, [0; 2]).unwrap();
        for tokens in [24, 30, 24] {
            let found = run(&mut session, &feeds(&fixture, tokens));
            compare(&mut failures, format!("{}, {tokens} tokens", fixture.name()), found, &said(&fixture, tokens));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// The fixture, and a child with half its heads and half its FFN.
fn with_child(fixture: &Fixture) -> [Model; 2] {
    let ancestor = fixture.open();
    let child = {
        let typing = Typing::new(&ancestor).unwrap();
        let gene = Learngene::identity(&typing, &Anatomy::new(&typing).unwrap());
        let shape = Shape { heads: Heads::Percent(50.0), ffn_width: FfnWidth::Percent(50.0), ..Shape::default() };
        grow(&ancestor, &gene, &shape).unwrap().model
    };
    [ancestor, child]
}

/// Of arrays that a batch goes in and out by, those of one text alone, and of what lies along tokens the real ones.
fn alone(arrays: &[ArrayD<f32>], row: usize, tokens: usize, real: usize) -> Vec<ArrayD<f32>> {
    let part = |a: &ArrayD<f32>| {
        let mut part = a.slice_axis(Axis(0), Slice::from(row..=row));
        if part.ndim() > 1 && part.len_of(Axis(1)) == tokens {
            part.slice_axis_inplace(Axis(1), Slice::from(..real));
        }
        part.to_owned()
    };
    arrays.iter().map(part).collect()
}

/// What is said of a text does not depend on the padding behind it, nor on the texts beside it.
pub fn a_text_alone_equals_itself_in_a_batch(runtime: &Arc<Runtime>) {
    let mut failures = Vec::new();
    for fixture in fixtures() {
        for (model, whose) in with_child(&fixture).iter().zip(["ancestor", "child"]) {
            let mut together = runtime.load_open(model, 3, [0; 2]).unwrap();
            let mut single = runtime.load_open(model, 1, [0; 2]).unwrap();
            for tokens in LENGTHS {
                let (names, arrays): (Vec<String>, Vec<ArrayD<f32>>) = feeds(&fixture, tokens).into_iter().unzip();
                let feed = |arrays: Vec<ArrayD<f32>>| names.iter().cloned().zip(arrays).collect::<Vec<_>>();
                let mask = arrays[names.iter().position(|name| name == "attention_mask").unwrap()].clone();
                let said = run(&mut together, &feed(arrays.clone())).unwrap();
                for row in 0..mask.len_of(Axis(0)) {
                    let real = mask.index_axis(Axis(0), row).sum() as usize;
                    let found = run(&mut single, &feed(alone(&arrays, row, tokens, real)));
                    let what = format!("{}, {whose}, text {row} of {tokens} tokens", fixture.name());
                    compare(&mut failures, what, found, &alone(&said, row, tokens, real));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
