//! libFuzzer at the targets of `examples/fuzz`, which says what they are. How to run it: `docs/security.md`.

#[path = "../../examples/fuzz/targets/mod.rs"]
mod targets;

use std::panic;

pub use libfuzzer_sys;
pub use targets::{Target, target};

/// The entry points of libFuzzer for the target of a name.
#[macro_export]
macro_rules! fuzz {
    ($name:literal) => {
        static TARGET: std::sync::LazyLock<&$crate::Target> =
            std::sync::LazyLock::new(|| $crate::target($name).expect("a target of this name"));
        $crate::libfuzzer_sys::fuzz_target!(init: $crate::start(), |data: &[u8]| {
            (TARGET.run)(data);
        });
        $crate::libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            $crate::mutate(*TARGET, data, size, max_size, seed)
                .unwrap_or_else(|| $crate::libfuzzer_sys::fuzzer_mutate(data, size, max_size))
        });
    };
}

/// Lets panics that the library turns into errors do so: libFuzzer would end at each. Those that nobody catches are
/// findings still.
pub fn start() {
    panic::set_hook(Box::new(|info| {
        let ours = info.location().is_some_and(|l| l.file().contains("src/") && !l.file().contains(".cargo"));
        if ours {
            eprintln!("{info}");
        }
    }));
}

/// Every other mutation is the target's own; the rest are libFuzzer's.
pub fn mutate(target: &Target, data: &mut [u8], size: usize, max_size: usize, seed: u32) -> Option<usize> {
    if seed.is_multiple_of(2) {
        return None;
    }
    let changed = (target.mutate)(&data[..size], u64::from(seed));
    data.get_mut(..changed.len().min(max_size)).filter(|to| to.len() == changed.len())?.copy_from_slice(&changed);
    Some(changed.len())
}
