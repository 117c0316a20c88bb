//! Text encoders with open batch and tokens (scripts/fixtures/text_encoders.py): batches of different lengths.

use std::fs::File;
use std::sync::Arc;

use ndarray::{Array4, ArrayD, ArrayViewD, Axis, Slice};
use ndarray_npy::{NpzReader, ReadableElement};
use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::data::{Place, Rows};
use offshoot::descendant::{FfnWidth, GrowOptions, Heads, grow};
use offshoot::graph::{FloatType, convert, int_attribute, node};
use offshoot::learngene::Learngene;
use offshoot::onnx::Model;
use offshoot::runtime::{Runtime, RuntimeKind, Session};
use offshoot::training::{Loss, Optimiser, Recipe, Term, Trainer, of_rows, teacher_input};

use super::surgery::error;
use super::{Fixture, listed, root};

/// The tokens of the two batches.
const LENGTHS: [usize; 2] = [24, 32];

/// All of them.
pub fn fixtures() -> Vec<Fixture> {
    listed("texts")
}

/// Those that much is tried with, one export of each kind: the newest on the embedded runtime, else the oldest.
pub fn tried(runtime: &Runtime) -> Vec<Fixture> {
    let mut all = fixtures();
    if runtime.kind == RuntimeKind::Tract {
        all.reverse();
    }
    all.dedup_by_key(|f| f.entry["family"].clone());
    all
}

fn array<T: ReadableElement>(name: &str) -> ArrayD<T> {
    let file = File::open(root().join("fixtures/texts/texts.npz")).unwrap();
    NpzReader::new(file).unwrap().by_name(name).unwrap()
}

fn names<'f>(fixture: &'f Fixture, key: &str) -> Vec<&'f str> {
    fixture.entry[key].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

/// The batch of three texts of up to so many tokens, an array for each input.
pub fn feeds(fixture: &Fixture, tokens: usize) -> Vec<(String, ArrayD<f32>)> {
    let of = |name: &str| match name {
        "pixel_values" => array(&format!("{name}-{tokens}")),
        _ => array::<i64>(&format!("{name}-{tokens}")).mapv(|v| v as f32),
    };
    names(fixture, "inputs").into_iter().map(|name| (name.to_string(), of(name))).collect()
}

/// What PyTorch says of it, an array for each output.
pub fn said(fixture: &Fixture, tokens: usize) -> Vec<ArrayD<f32>> {
    let family = fixture.entry["family"].as_str().unwrap();
    names(fixture, "outputs").into_iter().map(|name| array(&format!("{family}-{name}-{tokens}"))).collect()
}

/// Says nothing of padding, where a query that sees no key means something else in every exporter's graph.
pub fn of_real_tokens(mut outputs: Vec<ArrayD<f32>>, tokens: usize) -> Vec<ArrayD<f32>> {
    let mask = array::<i64>(&format!("attention_mask-{tokens}"));
    for output in outputs.iter_mut().filter(|y| y.ndim() > 1 && y.len_of(Axis(1)) == tokens) {
        for ((row, at), _) in mask.indexed_iter().map(|(i, m)| ((i[0], i[1]), *m)).filter(|(_, m)| *m == 0) {
            output.index_axis_mut(Axis(0), row).index_axis_mut(Axis(0), at).fill(0.0);
        }
    }
    outputs
}

/// The height and width of what is an image among arrays.
pub fn image_size(feeds: &[(String, ArrayD<f32>)]) -> [usize; 2] {
    feeds.iter().find_map(|(_, a)| if let [_, _, h, w] = *a.shape() { Some([h, w]) } else { None }).unwrap_or_default()
}

fn load(runtime: &Arc<Runtime>, model: &Model, fixture: &Fixture, batch: usize) -> Session {
    let session = runtime.load_open(model, batch, image_size(&feeds(fixture, LENGTHS[0])));
    session.unwrap_or_else(|e| panic!("{}: {e}", fixture.name()))
}

fn run(session: &mut Session, feeds: &[(String, ArrayD<f32>)]) -> Result<Vec<ArrayD<f32>>, String> {
    let arrays: Vec<(&str, ArrayViewD<f32>)> = feeds.iter().map(|(n, a)| (n.as_str(), a.view())).collect();
    session.run_on(&arrays).map_err(|e| e.to_string())
}

/// Notes where two things that were said are not the same, relative to the largest number.
fn compare(
    failures: &mut Vec<String>,
    what: String,
    found: Result<Vec<ArrayD<f32>>, String>,
    said: &[ArrayD<f32>],
    tolerance: f32,
) {
    match found.map(|found| error(&found, said)) {
        Ok(e) if e < tolerance => {}
        Ok(e) => failures.push(format!("{what}: relative error {e:e}")),
        Err(e) => failures.push(format!("{what}: {e}")),
    }
}

/// A session takes batches of one length after those of another, and says what PyTorch says of each.
pub fn lengths_are_any(runtime: &Arc<Runtime>) {
    let mut failures = Vec::new();
    for fixture in fixtures() {
        let mut session = load(runtime, &fixture.open(), &fixture, 3);
        for tokens in [LENGTHS[0], LENGTHS[1], LENGTHS[0]] {
            let found = run(&mut session, &feeds(&fixture, tokens)).map(|found| of_real_tokens(found, tokens));
            let truth = of_real_tokens(said(&fixture, tokens), tokens);
            compare(&mut failures, format!("{}, {tokens} tokens", fixture.name()), found, &truth, 1e-5);
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// The fixture and a child with half its heads and half its FFN, in float32 and in float16, and how well they are to
/// agree with themselves.
fn forms(fixture: &Fixture) -> Vec<(&'static str, Model, f32)> {
    let ancestor = fixture.open();
    let child = {
        let typing = Typing::new(&ancestor).unwrap();
        let gene = Learngene::identity(&typing, &Anatomy::new(&typing).unwrap());
        let shape =
            GrowOptions { heads: Heads::Percent(50.0), ffn_width: FfnWidth::Percent(50.0), ..GrowOptions::default() };
        grow(&ancestor, &gene, &shape).unwrap().model
    };
    let half = |model: &Model| {
        let mut half = model.clone();
        convert(&mut half, FloatType::Fp16).unwrap();
        half
    };
    let halves = [("ancestor in float16", half(&ancestor), 1e-3), ("child in float16", half(&child), 1e-3)];
    [("ancestor", ancestor, 1e-5), ("child", child, 1e-5)].into_iter().chain(halves).collect()
}

/// What is said of each text by itself: not how well it fits every image of a batch, a product that may be near zero.
fn of_each(fixture: &Fixture, outputs: Vec<ArrayD<f32>>) -> Vec<ArrayD<f32>> {
    let named = names(fixture, "outputs").into_iter().zip(outputs);
    named.filter(|(name, _)| !name.starts_with("logits_per")).map(|(_, output)| output).collect()
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

/// What is said of a text, an empty one and one as long as the table of positions among them, does not depend on the
/// padding behind it, nor on the texts beside it. SigLIP, which takes no mask, has no padding.
pub fn a_text_alone_equals_itself_in_a_batch(runtime: &Arc<Runtime>) {
    let mut failures = Vec::new();
    let tokens = LENGTHS[1];
    for fixture in tried(runtime).into_iter().filter(|f| f.entry["family"] != "siglip2") {
        let (names, arrays): (Vec<String>, Vec<ArrayD<f32>>) = feeds(&fixture, tokens).into_iter().unzip();
        let feed = |arrays: Vec<ArrayD<f32>>| names.iter().cloned().zip(arrays).collect::<Vec<_>>();
        let mask = &arrays[names.iter().position(|name| name == "attention_mask").unwrap()];
        for (form, model, tolerance) in forms(&fixture) {
            let [mut together, mut single] = [3, 1].map(|batch| load(runtime, &model, &fixture, batch));
            let said = match run(&mut together, &feed(arrays.clone())) {
                Ok(said) => of_each(&fixture, said),
                Err(e) => {
                    failures.push(format!("{}, {form}: {e}", fixture.name()));
                    continue;
                }
            };
            for row in 0..mask.len_of(Axis(0)) {
                let real = mask.index_axis(Axis(0), row).sum() as usize;
                let found = run(&mut single, &feed(alone(&arrays, row, tokens, real)));
                let found = found.map(|found| of_each(&fixture, found));
                let what = format!("{}, {form}, text {row}", fixture.name());
                compare(&mut failures, what, found, &alone(&said, row, tokens, real), tolerance);
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Training on texts that are cut to the longest of a batch is training on padded ones: the same losses, outputs and
/// weights, in batches of either length in turn.
pub fn cut_texts_train_like_padded_ones(runtime: &Arc<Runtime>) {
    let (tokens, cut) = (LENGTHS[1], LENGTHS[0]);
    let mut failures = Vec::new();
    for fixture in tried(runtime) {
        let (names, arrays): (Vec<String>, Vec<ArrayD<f32>>) = feeds(&fixture, tokens).into_iter().unzip();
        // SigLIP has no mask; boxes and pictures are no tokens.
        let is_row = |a: &ArrayD<f32>| a.ndim() == 2 && a.len_of(Axis(1)) == tokens;
        if !names.contains(&"attention_mask".to_owned()) || !arrays.iter().all(is_row) {
            continue;
        }
        let place = |(i, input): (usize, &String)| Place {
            input: input.clone(),
            shape: vec![tokens],
            range: i * tokens..(i + 1) * tokens,
        };
        let places: Vec<Place> = names.iter().enumerate().map(place).collect();
        let mask = Some("attention_mask".to_owned());
        let rows = Rows { length: names.len() * tokens, places, mask, lengths: vec![cut, tokens] };
        let model = of_rows(&fixture.open(), &rows).unwrap();
        // The same texts, all of them and what is left of them in fewer tokens than the shorter length has.
        let row = |real: usize| {
            let at = |(text, _, at, _): (usize, usize, usize, usize)| {
                let (input, token) = (at / tokens, at % tokens);
                if token < real { arrays[input][[text, token]] } else { f32::from(names[input] == "input_ids") }
            };
            Array4::from_shape_fn((3, 1, rows.length, 1), at)
        };
        let batches = [row(tokens), row(cut - 3), row(cut)];
        assert_eq!(batches.each_ref().map(|b| rows.shortest(b.view())), [None, Some(cut), Some(cut)]);
        let output = model.graph().output[0].name().to_owned();
        let term = Term::Imitation { student: output.clone(), teacher: "told".to_owned() };
        let recipe = Recipe {
            batch: 3,
            loss: Loss { terms: vec![(1.0, term)], output: None },
            optimiser: Optimiser::Sgd { momentum: 0.9 },
            ..Recipe::default()
        };
        let told = said(&fixture, tokens)[0].mapv(|v| 0.5 - v);
        let trained = |rows: Option<&Rows>| {
            let image = [rows.map_or(names.len() * tokens, |rows| rows.length), 1];
            let trainer = Trainer::new(runtime, &model, image, &recipe, &[], &[]).unwrap();
            let mut trainer = trainer.of_rows(rows, &batches[1..]).unwrap();
            assert_eq!(trainer.lengths(), rows.map_or(&[][..], |rows| &rows.lengths), "{}", fixture.name());
            let (input, of_teacher) = (trainer.input.clone(), teacher_input("told"));
            let mut losses = Vec::new();
            for batch in batches.iter().cycle().take(6) {
                let fed = vec![(input.as_str(), batch.view().into_dyn()), (of_teacher.as_str(), told.view())];
                let step = trainer.step(&[fed], 0.05, 0.0);
                losses.push(step.unwrap_or_else(|e| panic!("{}, {rows:?}: {e}", fixture.name())).loss as f32);
            }
            let outputs = trainer.outputs(&batches[1], false).unwrap().into_iter().map(|(_, output)| output);
            let weights = trainer.selection.trained.iter().map(|w| trainer.weight(&w.name, false).unwrap());
            let losses = ArrayD::from_shape_vec(vec![losses.len()], losses).unwrap();
            std::iter::once(losses).chain(outputs.collect::<Vec<_>>()).chain(weights).collect::<Vec<_>>()
        };
        let (padded, short) = (trained(None), trained(Some(&rows)));
        assert!(padded[0].first() != padded[0].last(), "{}: it learns nothing", fixture.name());
        compare(&mut failures, fixture.name().to_owned(), Ok(short), &padded, 1e-5);
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// A model that says something else of a text with padding behind it is given all of it.
pub fn what_sees_padding_is_not_cut(runtime: &Arc<Runtime>) {
    let (tokens, cut) = (LENGTHS[1], LENGTHS[0]);
    let fixture = fixtures().into_iter().find(|f| f.name() == "bert-dynamo20.onnx").unwrap();
    let mut original = fixture.open();
    let output = original.graph().output[0].name().to_owned();
    // Padding is a token like any other.
    let uses = original.graph_mut().node.iter_mut().flat_map(|n| &mut n.input);
    uses.filter(|x| *x == "attention_mask").for_each(|x| *x = "all".to_owned());
    let each = node("Equal", &["input_ids", "input_ids"], &["each"], vec![]);
    let all = node("Cast", &["each"], &["all"], vec![int_attribute("to", 7)]);
    original.graph_mut().node.splice(0..0, [each, all]);
    let names = names(&fixture, "inputs");
    let place = |(i, input): (usize, &&str)| Place {
        input: (*input).to_owned(),
        shape: vec![tokens],
        range: i * tokens..(i + 1) * tokens,
    };
    let places: Vec<Place> = names.iter().enumerate().map(place).collect();
    let mask = Some("attention_mask".to_owned());
    let rows = Rows { length: names.len() * tokens, places, mask, lengths: vec![cut, tokens] };
    let one = |at: usize| f32::from(at % tokens < 7 && names[at / tokens] != "token_type_ids");
    let batch = Array4::from_shape_fn((3, 1, rows.length, 1), |(_, _, at, _)| one(at));
    assert_eq!(rows.shortest(batch.view()), Some(cut));
    for (model, lengths) in [(fixture.open(), vec![cut, tokens]), (original, vec![])] {
        let model = of_rows(&model, &rows).unwrap();
        let term = Term::Imitation { student: output.clone(), teacher: "told".to_owned() };
        let recipe = Recipe { batch: 3, loss: Loss { terms: vec![(1.0, term)], output: None }, ..Recipe::default() };
        let trainer = Trainer::new(runtime, &model, [rows.length, 1], &recipe, &[], &[]).unwrap();
        let trainer = trainer.of_rows(Some(&rows), std::slice::from_ref(&batch)).unwrap();
        assert_eq!(trainer.lengths(), lengths);
    }
}
