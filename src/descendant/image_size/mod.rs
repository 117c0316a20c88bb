//! Another image size: the graph of a model for images of other height or width.
//!
//! The typing says which factors the new size changes: it is carried from the image through convolutions, slices,
//! concatenations and reshapes to every dimension. Where a dimension is split, the outer part takes the change (more
//! patches of the same size, more windows of the same size); a window that covers its whole grid goes on covering it.
//! What was made for the old grid is made again: position tables are resampled (antialiased bicubic, prefix tokens
//! kept), relative position biases interpolated, rotary tables computed from the frequencies that they show, masks of
//! shifted windows repeated, masks that hide nothing left out. What is none of these is an error.

mod relative;
mod resample;
mod resize;
mod rotary;
mod sizes;
mod tables;
mod tokens;
mod uniform;

pub use resize::resize_image;
