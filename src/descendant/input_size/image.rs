//! Resizes the images of a model: what the size changes, the tables that were made for it, and what the model says of
//! itself.

use super::sizes::ResizedFactors;
use super::tables::Tables;
use super::uniform;
use crate::anatomy::token_axes;
use crate::axes::resize::resize;
use crate::axes::{Assumption, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, data_inputs, declare_dim, declared_dims};
use crate::metadata::{IMAGE_SIZE, PREPROCESS};
use crate::onnx::Model;

/// Gives a model another image size (height, width). A model that takes images of any size stays as it is, and only
/// notes the size in its metadata.
///
/// # Errors
/// [`ErrorKind::Usage`] for a size that no grid of patches or windows fits; [`ErrorKind::Unsupported`] where the graph
/// holds a table of the old size whose origin is not understood. Both name the node.
pub fn resize_image(model: &Model, size: [usize; 2]) -> Result<Model> {
    if size.iter().any(|&n| n == 0 || n > 1 << 16) {
        bail!(Usage, "an image of {} x {} pixels cannot be", size[0], size[1]);
    }
    let typing = Typing::new(model)?;
    let Some((shape, last)) = typing.image_input() else {
        let hint = match token_axes(&typing).is_empty() {
            true => "leave ⟦image-size⟧ out",
            false => "leave ⟦image-size⟧ out; the number of its tokens is given with ⟦tokens⟧",
        };
        return Err(Error::new(ErrorKind::Unsupported, "the model takes no images, so they have no size").hint(hint));
    };
    let axes = if last { [1, 2] } else { [2, 3] };
    let mut out = model.clone();
    note_size(&mut out, size);
    let open = image_dims(model).is_some_and(|d| axes.iter().all(|&a| d[a].is_none()));
    if open {
        out.set_metadata(IMAGE_SIZE, format!("{}x{}", size[0], size[1]));
        let assumption = Assumption { image: size, ..Assumption::default() };
        if Typing::with(model, assumption).is_ok_and(|t| t.conflicts.is_empty()) {
            return Ok(out);
        }
    }
    if axes.map(|a| shape[a]) == size {
        return Ok(out);
    }
    if let Some(bare) = uniform::with_numbers(model, &typing)? {
        return resize_image(&bare, size);
    }
    let sizes = ResizedFactors::of_image(&typing, size).map_err(|e| near(&typing, size, e))?;
    let plan = Tables::new(&typing, sizes).plan()?;
    out.proto.graph = Some(resize(&typing, &plan)?);
    let name = data_inputs(model.graph()).into_iter().find(|v| declared_dims(v).is_some_and(|d| d.len() == 4));
    if let Some(name) = name.map(|v| v.name())
        && let Some(info) = out.graph_mut().input.iter_mut().find(|v| v.name() == name)
    {
        let declared = declared_dims(info).unwrap_or_default();
        for (i, a) in axes.into_iter().enumerate().filter(|(_, a)| declared[*a].is_some()) {
            declare_dim(info, a, size[i]);
        }
    }
    check(&out, size)?;
    Ok(out)
}

/// Steps of a patch that are tried on either side of a size that does not fit.
const REACH: usize = 32;

/// Names sizes in pixels that fit, the nearest below and above one that does not.
fn near(typing: &Typing, size: [usize; 2], error: Error) -> Error {
    let Some(hint) = error.marked_hint().filter(|_| error.kind() == ErrorKind::Usage).map(str::to_string) else {
        return error;
    };
    let own = typing.image_size();
    let strides = typing.graph.node.iter().filter(|n| n.op_type() == "Conv").filter_map(|n| n.ints("strides"));
    let patch = strides.filter_map(|s| s.first().copied()).find(|&s| s > 1).unwrap_or(1) as usize;
    // Heights and widths fit by themselves: each is tried beside the model's own width and height.
    let fits = |axis: usize, n: usize| {
        let mut size = own;
        size[axis] = n;
        n > 0 && ResizedFactors::of_image(typing, size).is_ok()
    };
    let sides = |axis: usize| -> [Option<usize>; 2] {
        let n = size[axis];
        if fits(axis, n) {
            return [Some(n); 2];
        }
        let below = (0..REACH).map(|i| (n / patch).saturating_sub(i) * patch);
        let above = (1..=REACH).map(|i| (n / patch + i) * patch);
        [below.filter(|&m| m < n).find(|&m| fits(axis, m)), above.into_iter().find(|&m| fits(axis, m))]
    };
    let (heights, widths) = (sides(0), sides(1));
    let mut found: Vec<String> = Vec::new();
    for (height, width) in heights.into_iter().zip(widths) {
        let (Some(h), Some(w)) = (height, width) else { continue };
        let whole = ResizedFactors::of_image(typing, [h, w]).and_then(|sizes| Tables::new(typing, sizes).plan());
        let text = if h == w { h.to_string() } else { format!("{h}x{w}") };
        if whole.is_ok() && !found.contains(&text) {
            found.push(text);
        }
    }
    match found.is_empty() {
        true => error,
        false => error.rehint(format!("{hint}, such as {} pixels", found.join(" or "))),
    }
}

/// The child must type without contradictions.
fn check(child: &Model, size: [usize; 2]) -> Result<()> {
    let with = Assumption { image: size, ..Assumption::default() };
    let typed = Typing::with(child, with).and_then(|t| t.check_consistent());
    typed.map_err(|e| {
        Error::new(
            ErrorKind::Unsupported,
            format!("the graph cannot be given images of {} x {}: {}", size[0], size[1], e.marked()),
        )
        .hint("export the model for this size, or with a dynamic image size")
    })
}

fn image_dims(model: &Model) -> Option<Vec<Option<usize>>> {
    data_inputs(model.graph()).into_iter().filter_map(declared_dims).find(|d| d.len() == 4)
}

/// Preprocessing that the model carries follows the size.
fn note_size(model: &mut Model, size: [usize; 2]) {
    let Some(Ok(mut stored)) = model.metadata(PREPROCESS).map(serde_json::from_str::<serde_json::Value>) else {
        return;
    };
    if let Some(entry) = stored.get_mut("size") {
        *entry = serde_json::json!(size);
        model.set_metadata(PREPROCESS, stored.to_string());
    }
}
