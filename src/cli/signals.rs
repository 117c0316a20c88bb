//! Signals: training saves and stops, and a file that is cut short under a mapping ends the command with a message.

use std::sync::atomic::AtomicBool;

/// Set when the user or the system asks the command to end.
static STOP: AtomicBool = AtomicBool::new(false);

/// Reading a mapped file past an end that another program moved raises SIGBUS: nothing can go on, and nothing was
/// written yet.
pub fn explain_lost_files() {
    #[cfg(unix)]
    {
        extern "C" fn lost(_: libc::c_int) {
            const TEXT: &[u8] = b"error: a file was cut short by another program while it was read, or the disk of a \
                scratch file is full\n\n\
                hint: run the command again when the file is complete; nothing was written\n";
            // SAFETY: write and _exit may be called in a signal handler; the text is constant.
            unsafe {
                libc::write(2, TEXT.as_ptr().cast(), TEXT.len());
                libc::_exit(2)
            }
        }
        handle(libc::SIGBUS, lost);
    }
}

/// What SIGTERM and SIGINT set from now on; a second one ends the process at once.
pub fn stop_on_request() -> &'static AtomicBool {
    #[cfg(unix)]
    {
        extern "C" fn stop(_: libc::c_int) {
            if STOP.swap(true, std::sync::atomic::Ordering::Relaxed) {
                // SAFETY: _exit may be called in a signal handler.
                unsafe { libc::_exit(130) }
            }
        }
        handle(libc::SIGTERM, stop);
        handle(libc::SIGINT, stop);
    }
    &STOP
}

#[cfg(unix)]
fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: the handlers only call what may be called in one, and an atomic store.
    unsafe { libc::signal(signal, handler as libc::sighandler_t) };
}
