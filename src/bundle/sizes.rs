//! The sizes of a model that configurations name, as they are read off its graph.

use crate::anatomy::{Anatomy, class_factor, of_head};
use crate::axes::Typing;
use crate::data::{PlaceTable, class_names, longest_text};
use crate::error::Result;
use crate::graph::unfold;
use crate::learngene::Learngene;
use crate::onnx::Model;

/// The sizes of a stack of layers. A list has a number for each layer, of neurons one for each FFN.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// Its name, as `inspect` has it.
    pub name: String,
    /// Its layers, as indices into those of the model.
    pub layers: Vec<usize>,
    /// Heads of queries.
    pub heads: Vec<usize>,
    /// Heads of keys and values.
    pub key_heads: Vec<usize>,
    /// The dimension of a head.
    pub head_dims: Vec<usize>,
    /// Neurons of FFNs.
    pub neurons: Vec<usize>,
    /// Channels of the residual stream.
    pub channels: Vec<usize>,
}

/// The sizes of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelSizes {
    /// Its stacks of layers.
    pub stacks: Vec<Stack>,
    /// Classes that its first output tells apart, where it does.
    pub classes: Option<usize>,
    /// Their names, where its metadata has them.
    pub names: Option<Vec<String>>,
    /// Height and width of its images, where it takes some.
    pub image: Option<[usize; 2]>,
    /// Rows of its table of positions, where tokens have one.
    pub positions: Option<usize>,
    /// Tokens of a text at most, where that is known.
    pub tokens: Option<usize>,
}

impl ModelSizes {
    /// Reads them. A learngene has those of the ancestor that it was made of.
    ///
    /// # Errors
    /// Those of [`Typing::new`] and [`Anatomy::new`], and of a learngene that cannot be read.
    pub fn of(model: &Model) -> Result<ModelSizes> {
        let mut float = model.clone();
        if unfold(&mut float)?.is_some() {
            return ModelSizes::of(&float);
        }
        let typing = Typing::new(model)?;
        let anatomy = Anatomy::new(&typing)?;
        let gene = Learngene::read(model)?;
        let stack = |name: &str, layers: &[usize]| {
            let mut stack = Stack { name: name.into(), layers: layers.to_vec(), ..Stack::default() };
            for &l in layers {
                let a = &anatomy.layers[l];
                let gene = gene.as_ref();
                let clustered = gene.and_then(|g| g.layers.get(l)).map(|all| all.iter().map(|c| c.members.len()).sum());
                let heads = clustered.filter(|&n: &usize| n > 0).unwrap_or(a.head_count(&typing));
                stack.key_heads.push(heads);
                stack.heads.push(heads * typing.factors.size(&a.queries_per_kv_head));
                stack.head_dims.push(typing.factors.size(&of_head(&typing, a)));
                stack.channels.push(typing.factors.size(&a.embedding));
                let neurons: usize = gene.map_or(0, |g| g.neurons(l).iter().map(|c| c.members.len()).sum());
                let widths = a.ffns.iter().map(|f| typing.factors.size(&f.hidden));
                stack.neurons.extend(widths.map(|width| if neurons > 0 { neurons } else { width }));
            }
            stack
        };
        Ok(ModelSizes {
            stacks: anatomy.stacks.iter().map(|s| stack(&s.name, &s.layers)).collect(),
            classes: class_factor(&typing).map(|f| typing.factors.factor_size(f)),
            names: class_names(model),
            image: typing.image_input().map(|_| typing.image_size()),
            positions: PlaceTable::of(model).map(|table| table.rows),
            tokens: longest_text(model),
        })
    }

    /// The stack of a name.
    pub(super) fn stack(&self, name: &str) -> Option<&Stack> {
        self.stacks.iter().find(|s| s.name == name)
    }
}

/// The number that all of a list are, if they are one.
pub(super) fn uniform(list: &[usize]) -> Option<usize> {
    let first = *list.first()?;
    list.iter().all(|&n| n == first).then_some(first)
}
