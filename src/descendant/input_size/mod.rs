//! Inputs of another size: the graph of a model for images of other height or width, or for another number of tokens.
//!
//! The typing says which factors the new size changes: it is carried from the input through convolutions, slices,
//! concatenations and reshapes to every dimension. Where a dimension is split, the outer part takes the change (more
//! patches of the same size, more windows of the same size); a window that covers its whole grid goes on covering it.
//! What was made for the old grid is made again: position tables are resampled (antialiased bicubic, prefix tokens
//! kept), relative position biases interpolated, rotary tables computed from the frequencies that they show, masks of
//! shifted windows repeated, masks that hide nothing left out. What is none of these is an error.
//!
//! Of tokens in a sequence the first rows of every table stay. Where there are more than a learned table has places
//! for, its rows are interpolated, and what was written down by a rule goes on by it.

mod continued;
mod image;
mod relative;
mod resample;
mod rotary;
mod sequence;
mod sizes;
mod tables;
mod tokens;
mod uniform;

pub use image::resize_image;
pub use sequence::resize_tokens;
