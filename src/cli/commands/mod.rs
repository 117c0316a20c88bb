//! One file a command.

pub mod bundled;
pub mod compare;
pub mod condense;
pub mod density;
pub mod doctor;
pub mod eval;
pub mod fitter;
pub mod grow;
pub mod inspect;
pub mod labelled;
mod opened;
pub mod plain;
pub mod run;
pub mod scored;
pub mod shrink;
pub mod source;
pub mod study;
pub mod training;
pub mod tune;
pub mod verification;

pub use opened::{
    agree, densities, flags_for, images, in_type, int8_note, named, open, open_for_images, open_to_run, opened,
    skipped, tell_input, told, warn_skipped, without_density,
};
