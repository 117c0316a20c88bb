//! Anatomy of every fixture against what the exporting model says of itself.

use crate::common::{Fixture, all_fixtures, texts};
use offshoot::anatomy::{Anatomy, Attention};
use offshoot::axes::Typing;
use offshoot::learngene::parameters;
use serde_json::{Value, json};

fn describe(typing: &Typing, a: &Attention) -> Value {
    let size = |d| typing.factors.size(d);
    json!({
        "heads": size(&a.heads),
        "head_dim": size(&a.head_dim),
        "embedding_dim": size(&a.embedding),
        "ffn_kind": a.ffn().map(|f| if f.gated { "gated" } else { "plain" }),
        "activation": a.ffn().map(|f| f.activation.clone()),
        "ffn_width": a.ffn().map(|f| size(&f.hidden)),
    })
}

fn check(fixture: &Fixture) -> Vec<String> {
    let model = fixture.open();
    let typing = match Typing::new(&model) {
        Ok(t) => t,
        Err(e) => return vec![format!("typing: {e}")],
    };
    let anatomy = match Anatomy::new(&typing) {
        Ok(a) => a,
        Err(e) => return vec![format!("anatomy: {e}")],
    };
    let mut wrong = Vec::new();
    let mut same = |what: &str, found: Value, truth: &Value| {
        if found != *truth {
            wrong.push(format!("{what}: found {found}, truth {truth}"));
        }
    };
    // The manifest also says which tokens windows hold, which `inspect` does not.
    let truth = |key: &str| {
        let mut list = fixture.entry[key].clone();
        for layer in list.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            layer.retain(|k, _| !matches!(k.as_str(), "window" | "shift" | "place"));
        }
        list
    };
    let list = |l: &[Attention]| Value::from(l.iter().map(|a| describe(&typing, a)).collect::<Vec<_>>());
    same("layers", list(&anatomy.layers), &truth("layers"));
    same("other attentions", list(&anatomy.others), &truth("other_attentions"));
    // Exporters fold relative position and rotary tables into constants, which are not the model's own parameters.
    let folded = ["beit", "eva02", "swin-"].iter().any(|f| fixture.name().contains(f))
        || fixture.entry["exporter"] == "hand"
        || fixture.entry["folded"] == true
        || fixture.entry["coordinates"] == true;
    if !folded {
        same("parameters", json!(parameters(model.graph())), &fixture.entry["used_parameters"]);
    }
    same("prefix tokens", json!(anatomy.prefix_tokens), &fixture.entry["prefix_tokens"]);
    let grid = anatomy.grid.map(|g| json!(g.patches)).unwrap_or(Value::Null);
    same("grid", grid, &fixture.entry["grid"]);
    let patch = anatomy.grid.map(|g| json!(g.patch_size[0] as i64)).unwrap_or(Value::Null);
    same("patch size", patch, &fixture.entry["patch_size"]);
    wrong
}

#[test]
fn anatomy_equals_the_exporting_models_own() {
    let mut failures = Vec::new();
    let all: Vec<Fixture> = all_fixtures().into_iter().chain(texts::fixtures()).collect();
    for fixture in &all {
        let wrong = check(fixture);
        failures.extend(wrong.into_iter().map(|w| format!("{}: {w}", fixture.name())));
    }
    assert!(all.len() >= 20, "only {} fixtures", all.len());
    assert!(failures.is_empty(), "{} of {} fixtures:\n{}", failures.len(), all.len(), failures.join("\n"));
}
