//! `offshoot inspect`: the anatomy of a model.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{named, told};
use crate::anatomy::{Anatomy, Attention, FeedForward, Grid, Roles, TokenAxis, of_head, token_axes};
use crate::axes::{Dim, Factor, Typing};
use crate::cli::common::OpenFlags;
use crate::cli::output::{self, count, table};
use crate::data::{FedReport, InputReport, InputShape, PlaceTable, Preprocess, PreprocessFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, SampleInputs, axis_name, declared_axes, declared_dims, declared_type, has_added_batch};
use crate::learngene::parameters;
use crate::metadata::{PREPROCESS, schema};
use crate::onnx::proto::ValueInfoProto;
use crate::onnx::proto::tensor_shape_proto::dimension::Value as Size;
use crate::onnx::{DataType, Model, node_label};
use crate::opening::Opened;
use crate::ops::{self, Slot};

/// What only some layers have, and the head of its column.
const EXTRA: [(&str, &str); 4] = [
    ("attention", "attention"),
    ("convolution", "convolution"),
    ("layer", "of layer"),
    ("weights_of", "weights of layer"),
];

/// `offshoot inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The model
    pub model: PathBuf,
    #[command(flatten)]
    pub open: OpenFlags,
    /// List the initializers of every head and FFN
    #[arg(long)]
    pub weights: bool,
    /// Explain a layer: the weights, axes and shape operands that each of its factors reaches
    #[arg(long, value_name = "LAYER")]
    pub explain: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(c: &InspectArgs) -> Result<()> {
    let Opened { mut model, int8, .. } = told(c.open.opening().open(&c.model, None)?);
    if let Some(of) = &c.open.of {
        // Nothing is run, so every input is as good as given.
        let inputs: Vec<String> = graph::data_inputs(model.graph()).iter().map(|v| v.name().to_string()).collect();
        named(&c.model, graph::cut(&mut model, SampleInputs::Inputs(&inputs), Some(of)))?;
    }
    let typing = named(&c.model, Typing::new(&model))?;
    let anatomy = named(&c.model, Anatomy::new(&typing))?;
    if let Some(layer) = c.explain {
        let text = explain(&typing, &anatomy, layer).map_err(|e| e.at(&c.model))?;
        return if c.json { output::print_json(&text) } else { output::print(&explained(&text)) };
    }
    // What is a guess as long as no pictures are fed is not said.
    let transform = model.metadata(PREPROCESS).zip(InputShape::of(&typing).ok()).and_then(|(metadata, input)| {
        let size = [input.height, input.width];
        Preprocess::resolve(&PreprocessFlags::default(), Some(metadata), input.channels, size).ok()
    });
    let input = typing.image_input().map(|_| InputReport::new(&model, &typing, transform.as_ref()));
    input.iter().flat_map(InputReport::warnings).for_each(|warning| output::warn(&warning));
    let mut value = describe(&model, &typing, &anatomy, input.as_ref(), c.weights);
    if let Some(int8) = int8 {
        value["int8"] = json!(int8);
        value["int8"]["dtype"] = json!(int8.dtype());
    }
    if c.json { output::print_json(&value) } else { output::print(&render(&value, input.as_ref())) }
}

/// The JSON that `inspect` promises.
pub fn describe(
    model: &Model,
    typing: &Typing,
    anatomy: &Anatomy,
    input: Option<&InputReport>,
    weights: bool,
) -> Value {
    let roles = weights.then(|| Roles::new(typing));
    let list = |attentions: &[Attention]| -> Vec<Value> {
        attentions.iter().enumerate().map(|(i, a)| attention(typing, a, i, roles.as_ref())).collect()
    };
    let mut layers = list(&anatomy.layers);
    for (l, layer) in layers.iter_mut().enumerate() {
        let stack = anatomy.stack_of(l);
        layer["stack"] = json!(stack.map(|(stack, _)| &stack.name));
        layer["stack_index"] = json!(stack.map(|(_, place)| place));
    }
    for (l, first) in anatomy.same_blocks(typing).into_iter().enumerate().filter(|(l, first)| l != first) {
        layers[l]["weights_of"] = json!(first);
    }
    let mut others = list(&anatomy.others);
    for (other, a) in others.iter_mut().zip(&anatomy.others) {
        // A cross-attention goes with the layer that its sum is one of.
        if let Some(l) =
            anatomy.layers.iter().position(|l| a.sum.as_ref().is_some_and(|sum| l.residual_adds.contains(sum)))
        {
            other["layer"] = json!(l);
        }
    }
    let values = |list: &[&ValueInfoProto]| -> Vec<Value> {
        list.iter()
            .map(|v| {
                let own = usize::from(has_added_batch(model.graph(), v.name()));
                let shape = declared_dims(v).map(|d| d.into_iter().skip(own).map(|n| json!(n)).collect::<Vec<_>>());
                let axes = declared_axes(v).map(|d| d.iter().skip(own).map(axis_name).collect::<Vec<_>>());
                let kind = declared_type(v).and_then(|t| DataType::try_from(t).ok());
                let kind = kind.map(|k| k.as_str_name().to_lowercase());
                json!({"name": v.name(), "shape": shape, "axes": axes, "type": kind})
            })
            .collect()
    };
    let proto = &model.proto;
    json!({
        "schema": schema::INSPECT,
        "file": model.path,
        "producer": format!("{} {}", proto.producer_name(), proto.producer_version()).trim(),
        "opset": model.opset(),
        "ir_version": model.ir_version(),
        "inputs": values(&graph::declared_inputs(model).iter().collect::<Vec<_>>()),
        "outputs": values(&model.graph().output.iter().collect::<Vec<_>>()),
        "input": input,
        "tokens": tokens(model, typing),
        "fed": FedReport::of(model),
        "parameters": parameters(model.graph()),
        "macs": typing.macs(),
        "bytes": model.bytes,
        "patch_size": anatomy.grid.map(patch_size),
        "grid": anatomy.grid.map(|g| g.patches),
        "prefix_tokens": anatomy.prefix_tokens,
        "embedding_dim": anatomy.layers.first().map(|l| typing.factors.size(&l.embedding)),
        "stacks": anatomy.stacks.iter().map(|s| json!({"name": s.name, "layers": s.layers})).collect::<Vec<_>>(),
        "layers": layers,
        "other_attentions": others,
    })
}

/// How many tokens inputs have: what the file says, or what is assumed where it leaves that open.
fn tokens(model: &Model, typing: &Typing) -> Vec<Value> {
    let table = PlaceTable::of(model);
    let inputs = graph::data_inputs(model.graph());
    let declared = |name: &str| inputs.iter().find(|v| v.name() == name).and_then(|v| declared_axes(v));
    let of_axis = |axis: TokenAxis| {
        let sizes: Vec<_> = axis.inputs.iter().filter_map(|(name, at)| declared(name)?.get(*at)).collect();
        let is_fixed = sizes.iter().any(|d| matches!(d.value, Some(Size::DimValue(n)) if n > 0));
        let names: Vec<&String> = axis.inputs.iter().map(|(name, _)| name).collect();
        json!({
            "tokens": typing.factors.factor_size(axis.factor),
            "from": if is_fixed { "graph" } else if typing.has_short_table() { "table" } else { "guess" },
            "axis": sizes.into_iter().find_map(axis_name),
            "inputs": names,
            "position_table": table.as_ref().map(PlaceTable::places),
        })
    };
    token_axes(typing).into_iter().map(of_axis).collect()
}

/// The same in a line.
fn of_tokens(v: &Value) -> String {
    let list = |v: &Value| v.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
    let why = match (v["from"] == "graph", v["axis"].as_str()) {
        (true, _) => "as the file has it".to_string(),
        (false, name) => {
            let open = name.map_or("it".to_string(), |name| format!("`{name}`"));
            let why = if v["from"] == "table" { "as many as a table has rows" } else { "a guess" };
            format!("{why}: the file leaves {open} open")
        }
    };
    let most = match v["position_table"].as_u64() {
        Some(n) => format!("the position table has places for {n}"),
        None => "no learned position table".to_string(),
    };
    format!("tokens: {} ({why}) in {}; {most}\n", v["tokens"], list(&v["inputs"]))
}

fn patch_size(grid: Grid) -> Value {
    let number = |v: f64| if v.fract() == 0.0 { json!(v as u64) } else { json!(v) };
    let [h, w] = grid.patch_size;
    if h == w { number(h) } else { json!([number(h), number(w)]) }
}

fn attention(typing: &Typing, a: &Attention, index: usize, roles: Option<&Roles>) -> Value {
    let size = |d: &Dim| typing.factors.size(d);
    let kind = |f: &FeedForward| if f.gated { "gated" } else { "plain" };
    let ffn = |f: &FeedForward| json!({"kind": kind(f), "activation": f.activation, "width": size(&f.hidden)});
    // What a layer has several of is told by the list alone.
    let one = a.ffns.first().filter(|_| a.ffns.len() == 1);
    let mut value = json!({
        "index": index,
        "heads": size(&a.heads),
        "head_dim": size(&of_head(typing, a)),
        "embedding_dim": size(&a.embedding),
        "queries": size(&a.queries),
        "keys": size(&a.keys),
        "ffn_kind": one.map(kind),
        "ffn_activation": one.map(|f| &f.activation),
        "ffn_width": one.map(|f| size(&f.hidden)),
        "ffns": a.ffns.iter().map(ffn).collect::<Vec<_>>(),
    });
    if let Some(convolution) = &a.convolution {
        value["convolution"] = ffn(convolution);
    }
    if a.is_linear() {
        value["attention"] = json!("linear");
    } else if !a.has_projection(typing) {
        value["attention"] = json!("no output projection");
    }
    if size(&a.queries_per_kv_head) > 1 {
        value["query_heads"] = json!(a.query_heads(typing));
    }
    if let Some(roles) = roles {
        let names = |uses: Vec<usize>| -> Vec<Value> { uses.into_iter().map(|u| weight(typing, u)).collect() };
        value["weights"] = json!({
            "heads": names(roles.head_uses(a).into_iter().map(|(u, _)| u).collect()),
            "output_projection": names(roles.projection_uses(a)),
            "ffn": a.ffns.first().map(|_| names(roles.layer_ffn_uses(a))),
        });
    }
    value
}

fn weight(typing: &Typing, u: usize) -> Value {
    let of_use = &typing.uses[u];
    let axes: Vec<Vec<usize>> = of_use.dims.iter().map(|d| typing.factors.sizes(d)).collect();
    json!({
        "name": of_use.name,
        "node": node_label(&typing.graph.node[of_use.node]),
        "shape": typing.weights[of_use.name.as_str()].dims,
        "factors": axes,
    })
}

/// What each factor of a layer reaches.
fn explain(typing: &Typing, anatomy: &Anatomy, layer: usize) -> Result<Value> {
    let Some(a) = anatomy.layers.get(layer) else {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("there is no layer {layer}: the model has {}", anatomy.layers.len()),
        )
        .hint("layers count from 0"));
    };
    let mut parts =
        vec![("heads", &a.heads), ("head_dim", &a.head_dim), ("embedding", &a.embedding), ("queries", &a.queries)];
    parts.extend(a.ffns.iter().map(|ffn| ("ffn", &ffn.hidden)));
    parts.extend(a.convolution.iter().map(|c| ("convolution", &c.hidden)));
    let roles = Roles::new(typing);
    let mut list = Vec::new();
    for (name, dim) in parts {
        for f in typing.factors.leaves(dim) {
            list.push(json!({
                "factor": name,
                "size": typing.factors.factor_size(f),
                "weights": roles.carriers(f).into_iter().map(|u| weight(typing, u)).collect::<Vec<_>>(),
                "shape_operands": shape_operands(typing, f),
            }));
        }
    }
    let [enter, leave] = [&a.residual_in, &a.residual_out];
    Ok(json!({"schema": schema::EXPLAIN, "layer": layer, "enter": enter, "leave": leave, "factors": list}))
}

/// Nodes with a shape operand that depends on the factor.
fn shape_operands(typing: &Typing, factor: Factor) -> Vec<Value> {
    let carries = |value: &str| -> Vec<usize> {
        let Some(dims) = typing.dims.get(value) else { return Vec::new() };
        (0..dims.len()).filter(|&i| typing.factors.all_leaves(&dims[i]).contains(&factor)).collect()
    };
    typing
        .graph
        .node
        .iter()
        .filter_map(|n| {
            let sizes = (0..2).find(|&j| ops::of(n).slot(j) == Slot::Sizes)?;
            let axes = carries(n.output.first()?);
            let operand = n.input.get(sizes);
            (!axes.is_empty())
                .then(|| json!({"node": node_label(n), "operator": n.op_type(), "operand": operand, "axes": axes}))
        })
        .collect()
}

fn explained(value: &Value) -> String {
    let mut text = format!("layer {}: residual {} -> {}\n", value["layer"], value["enter"], value["leave"]);
    for f in value["factors"].as_array().into_iter().flatten() {
        text += &format!("\n{} ({})\n", f["factor"].as_str().unwrap_or_default(), f["size"]);
        for w in f["weights"].as_array().into_iter().flatten() {
            text += &format!("  weight {} {} as {} in {}\n", w["name"], w["shape"], w["factors"], w["node"]);
        }
        for s in f["shape_operands"].as_array().into_iter().flatten() {
            text += &format!(
                "  {} {} axes {} operand {}\n",
                s["operator"].as_str().unwrap_or_default(),
                s["node"],
                s["axes"],
                s["operand"]
            );
        }
    }
    text
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_string(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// An input or output: its name, its type, and its axes by their sizes or the names that the file gives to open ones.
fn declared(v: &Value) -> String {
    let axis = |(size, name): (&Value, &Value)| match (size, name) {
        (Value::Null, Value::String(name)) => name.clone(),
        (Value::Null, _) => "?".to_string(),
        (size, _) => size.to_string(),
    };
    let axes = v["shape"].as_array().zip(v["axes"].as_array());
    let axes = axes.map(|(sizes, names)| sizes.iter().zip(names).map(axis).collect::<Vec<_>>());
    let shape = axes.map_or("?".to_string(), |axes| format!("[{}]", axes.join(",")));
    format!("{} {} {shape}", text(&v["name"]), text(&v["type"]))
}

fn render(v: &Value, input: Option<&InputReport>) -> String {
    let number = |key: &str| v[key].as_u64().unwrap_or(0);
    let values = |key: &str| v[key].as_array().into_iter().flatten().map(declared).collect::<Vec<_>>().join(", ");
    let mut out = format!("{}\n", text(&v["file"]));
    out += &format!("producer: {}, opset {}, IR version {}\n", text(&v["producer"]), v["opset"], v["ir_version"]);
    out += &format!("inputs: {}\noutputs: {}\n", values("inputs"), values("outputs"));
    out += &input.map(|input| format!("{}\n", input.line())).unwrap_or_default();
    out.extend(v["tokens"].as_array().into_iter().flatten().map(of_tokens));
    out += &format!(
        "parameters: {} ({}), MACs: {}, bytes: {}\n",
        number("parameters"),
        count(number("parameters")),
        count(number("macs")),
        number("bytes")
    );
    out += &format!(
        "patch size: {}, grid: {}, prefix tokens: {}, embedding dim: {}\n",
        text(&v["patch_size"]),
        text(&v["grid"]),
        v["prefix_tokens"],
        text(&v["embedding_dim"])
    );
    for (key, title) in [("layers", "layer"), ("other_attentions", "other attention")] {
        let list = v[key].as_array().cloned().unwrap_or_default();
        if list.is_empty() {
            continue;
        }
        // Of several stacks a layer says its own, in the words of `--layers`.
        let stacks = key == "layers" && v["stacks"].as_array().is_some_and(|s| s.len() > 1);
        let of_stack = |a: &Value| stacks.then(|| format!("{}:{}", text(&a["stack"]), a["stack_index"]));
        // What only some models have gets a column where it is.
        let extra: Vec<_> = EXTRA.into_iter().filter(|(k, _)| list.iter().any(|a| !a[k].is_null())).collect();
        let cell = |v: &Value| text(v.get("width").unwrap_or(v));
        let of_ffns = |a: &Value, k: &str| match a["ffns"].as_array().map_or(&[][..], Vec::as_slice) {
            [] => "-".to_string(),
            ffns => ffns.iter().map(|f| text(&f[k])).collect::<Vec<_>>().join(", "),
        };
        let row = |a: &Value| -> Vec<String> {
            let own = ["index", "heads", "head_dim", "embedding_dim", "queries", "keys"].map(|k| text(&a[k]));
            let ffns = ["kind", "activation", "width"].map(|k| of_ffns(a, k));
            let more = extra.iter().map(|(k, _)| cell(&a[k]));
            own.into_iter().chain(ffns).chain(more).chain(of_stack(a)).collect()
        };
        let rows = list.iter().map(row).collect();
        out += "\n";
        let header = [title, "heads", "head dim", "embedding", "queries", "keys", "FFN", "activation", "FFN width"];
        let header: Vec<&str> =
            header.into_iter().chain(extra.iter().map(|e| e.1)).chain(stacks.then_some("stack")).collect();
        out += &table(&header, rows);
        for a in &list {
            for (role, weights) in a["weights"].as_object().into_iter().flatten() {
                for w in weights.as_array().into_iter().flatten() {
                    out += &format!(
                        "  {} {} {role}: {} {} as {}\n",
                        title,
                        a["index"],
                        text(&w["name"]),
                        w["shape"],
                        w["factors"]
                    );
                }
            }
        }
    }
    out
}
