//! Parts that were cut out of a model, such as the towers of pictures and of texts: which layers they have of it.

use super::structure::{Anatomy, Attention};
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::Model;

/// For each layer of a part that of the model that it was cut out of.
///
/// # Errors
/// Those of typing; [`ErrorKind::Unsupported`] where a layer of the part is none of the model's.
pub fn layers_of_part(part: &Model, (typing, anatomy): (&Typing, &Anatomy)) -> Result<Vec<usize>> {
    let own = Typing::new(part)?;
    let made = |typing: &Typing, layer: &Attention| typing.graph.node[layer.projection].output.first().cloned();
    let all: Vec<Option<String>> = anatomy.layers.iter().map(|l| made(typing, l)).collect();
    let place = |layer: &Attention| all.iter().position(|name| name.is_some() && *name == made(&own, layer));
    match Anatomy::new(&own)?.layers.iter().map(place).collect() {
        Some(places) => Ok(places),
        None => Err(Error::new(ErrorKind::Unsupported, "a tower has layers of its own that the whole model has not")
            .at(&part.path)
            .hint("shrink one tower: pick its output with ⟦of⟧, and give its samples alone")),
    }
}
