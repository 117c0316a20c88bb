//! Memory that a thread keeps between calls.

use std::cell::RefCell;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Gives `work` this thread's scratch memory of at least `length` numbers.
pub(super) fn with_scratch<T>(length: usize, work: impl FnOnce(*mut f32) -> T) -> T {
    SCRATCH.with_borrow_mut(|memory| {
        if memory.len() < length {
            memory.resize(length, 0.0);
        }
        work(memory.as_mut_ptr())
    })
}
