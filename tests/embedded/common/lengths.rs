//! Children of a fixed number of tokens (scripts/fixtures/text_encoders.py): they say what their ancestors say.

use std::sync::Arc;

use ndarray::{ArrayD, Axis, Slice};
use offshoot::data::PlaceTable;
use offshoot::descendant::{fold_constants, resize_tokens};
use offshoot::error::ErrorKind;
use offshoot::graph::{data_inputs, declared_dims};
use offshoot::onnx::{DataType, Model, tensor_from_f32, to_f32};
use offshoot::runtime::Runtime;

use super::Fixture;
use super::surgery::error;
use super::texts::{feeds, fixtures, image_size, of_real_tokens, said};

type Arrays = Vec<(String, ArrayD<f32>)>;

/// The texts of the shorter batch have so many tokens, padding included.
const TOKENS: usize = 24;
/// Places in the tables of all fixtures.
const PLACES: usize = 32;

fn run(runtime: &Arc<Runtime>, model: &Model, fed: &Arrays) -> Result<Vec<ArrayD<f32>>, String> {
    let views: Vec<_> = fed.iter().map(|(name, array)| (name.as_str(), array.view())).collect();
    let session = runtime.load_open(model, 3, image_size(fed));
    session.and_then(|mut session| session.run_on(&views)).map_err(|e| e.to_string())
}

/// Token numbers of each input of texts, along the axis that declares them.
fn declared(model: &Model) -> Vec<Option<usize>> {
    let inputs = data_inputs(model.graph()).into_iter().filter(|v| v.name() != "pixel_values");
    inputs.map(|v| declared_dims(v).unwrap()[1]).collect()
}

fn is_like(what: &str, found: Result<Vec<ArrayD<f32>>, String>, truth: &[ArrayD<f32>]) -> Option<String> {
    match found.map(|found| error(&found, truth)) {
        Ok(e) if e < 1e-5 => None,
        Ok(e) => Some(format!("{what}: relative error {e:e}")),
        Err(e) => Some(format!("{what}: {e}")),
    }
}

/// A child of as many tokens as texts have says what PyTorch says of its ancestor, folded or not; its table of places
/// has no more rows.
pub fn children_of_fixed_lengths_are_their_ancestors(runtime: &Arc<Runtime>) {
    let mut failures = Vec::new();
    for fixture in fixtures() {
        let (ancestor, name) = (fixture.open(), fixture.name());
        let fed = feeds(&fixture, TOKENS);
        let truth = of_real_tokens(said(&fixture, TOKENS), TOKENS);
        let child = resize_tokens(&ancestor, TOKENS).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(declared(&child).iter().all(|n| *n == Some(TOKENS)), "{name}: {:?}", declared(&child));
        let tables = [&ancestor, &child].map(|model| PlaceTable::of(model).map(|table| table.places()));
        assert!(tables == [None; 2] || tables == [Some(PLACES), Some(TOKENS)], "{name}: {tables:?}");
        let folded = fold_constants(runtime, &child, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        for (form, model) in [("fixed", &child), ("folded", &folded)] {
            let found = run(runtime, model, &fed).map(|found| of_real_tokens(found, TOKENS));
            failures.extend(is_like(&format!("{name}, {form}"), found, &truth));
        }
        // From the fixed number to a smaller one.
        let fed = first(&fed, 16);
        let truth = run(runtime, &ancestor, &fed).unwrap();
        let shorter = resize_tokens(&child, 16).unwrap_or_else(|e| panic!("{name}: {e}"));
        failures.extend(is_like(&format!("{name}, shorter"), run(runtime, &shorter, &fed), &truth));
        // What was folded was written down for one number: another one is right, or refused.
        match resize_tokens(&folded, 16) {
            Ok(shorter) => failures.extend(is_like(&format!("{name}, then"), run(runtime, &shorter, &fed), &truth)),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Unsupported, "{name}: {e}"),
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// The first tokens of each text.
fn first(fed: &Arrays, tokens: usize) -> Arrays {
    let part = |(name, array): &(String, ArrayD<f32>)| match name.as_str() {
        "pixel_values" => (name.clone(), array.clone()),
        _ => (name.clone(), array.slice_axis(Axis(1), Slice::from(..tokens)).to_owned()),
    };
    fed.iter().map(part).collect()
}

/// The texts with padding behind them: of a mask nothing, of token numbers those of padding.
fn padded(fed: &Arrays, tokens: usize) -> Arrays {
    let longer = |(name, array): &(String, ArrayD<f32>)| {
        let mut shape = array.shape().to_vec();
        if name == "pixel_values" {
            return (name.clone(), array.clone());
        }
        shape[1] = tokens;
        let mut out = ArrayD::from_elem(shape, f32::from(u8::from(name == "input_ids")));
        out.slice_axis_mut(Axis(1), Slice::from(..array.len_of(Axis(1)))).assign(array);
        (name.clone(), out)
    };
    fed.iter().map(longer).collect()
}

/// Rows between those of a table, in double precision: the first and the last stay.
fn interpolated(rows: &[f64], width: usize, to: usize) -> Vec<f64> {
    let own = rows.len() / width;
    let at = |i: usize, j: usize| {
        let place = (i * (own - 1)) as f64 / (to - 1) as f64;
        let (below, above) = (place.floor() as usize, place.ceil() as usize);
        rows[below * width + j] + (place - place.floor()) * (rows[above * width + j] - rows[below * width + j])
    };
    (0..to).flat_map(|i| (0..width).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect()
}

fn table_of(model: &Model) -> Option<(PlaceTable, Vec<f64>, usize)> {
    let table = PlaceTable::of(model)?;
    let rows = rows_of(model, &table.name);
    let width = rows.len() / table.rows;
    Some((table, rows, width))
}

fn rows_of(model: &Model, name: &str) -> Vec<f64> {
    let tensor = model.graph().initializer.iter().find(|t| t.name() == name).unwrap();
    to_f32(tensor).unwrap().into_iter().map(f64::from).collect()
}

/// The ancestor whose first places are those of a longer table.
fn with_first(ancestor: &Model, long: &[f64]) -> Model {
    let mut model = ancestor.clone();
    let (table, rows, width) = table_of(ancestor).unwrap();
    let kept = table.first * width;
    let values: Vec<f32> = rows[..kept].iter().chain(&long[..rows.len() - kept]).map(|&v| v as f32).collect();
    let tensor = model.graph_mut().initializer.iter_mut().find(|t| t.name() == table.name).unwrap();
    *tensor = tensor_from_f32(table.name.clone(), DataType::Float, &tensor.shape(), &values);
    model
}

/// More tokens than the table has places for: its rows are interpolated, and a text whose rest is padding is read by
/// the first of them. Where places are computed, nothing but the shape changes.
pub fn longer_children_have_rows_between_those_of_their_ancestors(runtime: &Arc<Runtime>) {
    let (mut failures, mut tables) = (Vec::new(), 0);
    let long = PLACES + 9;
    for fixture in fixtures() {
        let (ancestor, name) = (fixture.open(), fixture.name());
        let child = resize_tokens(&ancestor, long).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut reader = ancestor.clone();
        if let Some((table, rows, width)) = table_of(&ancestor) {
            let expected = interpolated(&rows[table.first * width..], width, long);
            let found = rows_of(&child, &table.name);
            assert_eq!(found.len(), (table.first + long) * width, "{name}");
            assert_eq!(found[..table.first * width], rows[..table.first * width], "{name}");
            let apart = found[table.first * width..].iter().zip(&expected).map(|(a, b)| (a - b).abs());
            assert!(apart.fold(0.0, f64::max) < 1e-6, "{name}");
            reader = with_first(&ancestor, &expected);
            tables += 1;
        }
        let folded = fold_constants(runtime, &child, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        // Without a mask padding is read, too.
        if fixture.entry["family"] == "siglip2" {
            continue;
        }
        let fed = feeds(&fixture, TOKENS);
        let truth = of_real_tokens(run(runtime, &reader, &fed).unwrap(), TOKENS);
        for (form, model) in [("fixed", &child), ("folded", &folded)] {
            let found = run(runtime, model, &padded(&fed, long)).map(|found| {
                let cut = |y: ArrayD<f32>| match y.ndim() > 1 && y.len_of(Axis(1)) == long {
                    true => y.slice_axis(Axis(1), Slice::from(..TOKENS)).to_owned(),
                    false => y,
                };
                of_real_tokens(found.into_iter().map(cut).collect(), TOKENS)
            });
            failures.extend(is_like(&format!("{name}, {form}"), found, &truth));
        }
    }
    assert!(tables > 15, "{tables}");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// What is no number of tokens, and models that have none.
pub fn wrong_numbers_of_tokens_are_refused(fixture: &Fixture, picture: &Model) {
    let refused = |model: &Model, tokens: usize, kind: ErrorKind, says: &str| {
        let error = resize_tokens(model, tokens).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        error.hint_text().unwrap_or_default().to_string()
    };
    let text = fixture.open();
    refused(&text, 0, ErrorKind::Usage, "between 1 and 65536, not 0");
    let hint = refused(picture, 8, ErrorKind::Unsupported, "takes the tokens of a sequence");
    assert!(hint.contains("`image_size`"), "{hint}");
}
