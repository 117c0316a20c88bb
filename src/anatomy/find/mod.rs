//! Finds attentions, FFNs and layers in a typed graph.

mod anatomy;
mod attention;
mod feed_forward;
mod finder;
mod layers;
mod residual;
mod stacks;
