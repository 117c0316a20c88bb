//! The anatomy as a whole.

use std::collections::HashSet;

use super::super::structure::Anatomy;
use super::super::tokens::TokenPositions;
use super::finder::BlockFinder;
use super::layers::{complete, enclose};
use super::stacks::stacks;
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};

impl Anatomy {
    /// Reads the anatomy of a typed graph.
    ///
    /// # Errors
    /// [`ErrorKind::Anatomy`] where the graph holds no attention.
    pub fn new(typing: &Typing) -> Result<Anatomy> {
        let finder = BlockFinder::new(typing);
        let mut attentions = finder.attentions();
        if attentions.is_empty() {
            return Err(Error::new(
                ErrorKind::Anatomy,
                "no attention found: no Softmax whose heads an output projection sums over",
            )
            .hint(match typing.unread() {
                Some(unread) => format!("{unread}: cut the model before that, or export it with standard operators"),
                None => "Offshoot works on Vision Transformers; give the model before any compilation into custom \
                         operators"
                    .into(),
            }));
        }
        let ffns = finder.feed_forwards(&attentions);
        finder.assign(&mut attentions, &ffns);
        let stream: Vec<String> =
            attentions.iter().flat_map(|a| [&a.residual_in, &a.residual_out]).flatten().cloned().collect();
        let sums: HashSet<&str> = stream.iter().map(String::as_str).collect();
        let (mut layers, mut others): (Vec<_>, Vec<_>) =
            attentions.iter().cloned().partition(|a| finder.is_layer(a, &sums));
        let mut found = stacks(&finder, &layers);
        complete(&finder, &mut layers, &mut others, &ffns, &found);
        if enclose(&finder, &mut layers, &ffns) {
            found = stacks(&finder, &layers);
        }
        let first = layers.first().or(others.first());
        let tokens = first.map(|a| TokenPositions::new(typing, &a.queries));
        Ok(Anatomy {
            grid: tokens.as_ref().and_then(|t| t.grid(typing)),
            prefix_tokens: tokens.map(|t| t.prefix()).unwrap_or(0),
            stacks: found,
            layers,
            others,
        })
    }
}
