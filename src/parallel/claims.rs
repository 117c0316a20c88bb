//! Claims: how processes that share nothing but a folder divide work among themselves.
//!
//! A claim on a cell is a folder `CELL.claim.N` with a file that its owner keeps touching. It is made under another
//! name and renamed, which fails where the name is taken, so one process has it, on a network file system too. The
//! claim of a process that is gone is no longer touched; it is retaken as number N + 1, again by a rename that one
//! process wins.

use std::fs::{self, File};
use std::io::{ErrorKind as IoKind, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use crate::error::{Error, Result};

/// The file in a claim's folder.
const OWNER: &str = "owner";
/// A claim is touched so many times in the time after which it is stale.
const TOUCHES: u32 = 4;

/// A cell that this process works on, until the claim is dropped. While it is held a thread keeps it from going stale.
#[derive(Debug)]
pub struct Claim {
    place: PathBuf,
    /// How many owners before this one went away.
    retaken: u64,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Claims a cell in a folder that the processes share; `None` where another process has it. A claim that has not been
/// touched for `stale` is retaken.
///
/// The work may have been done and the claim given back between a look at the results and this call: look again
/// afterwards.
///
/// # Errors
/// `Usage` for a cell whose name is no file name, `Io` where the folder cannot be read or written.
pub fn claim(folder: &Path, cell: &str, stale: Duration) -> Result<Option<Claim>> {
    if cell.is_empty() || Path::new(cell).file_name() != Some(cell.as_ref()) {
        bail!(Usage, "`{cell}` cannot be the name of a cell");
    }
    let failed = |e: std::io::Error| Error::io(folder, e).hint("the folder has to be writable by all processes");
    let made = tempfile::Builder::new().prefix(".claim-").tempdir_in(folder).map_err(failed)?;
    let owner = made.path().join(OWNER);
    let mut file = File::create(&owner).map_err(failed)?;
    writeln!(file, "{} {}", host(), std::process::id()).map_err(failed)?;
    // The clock is that of the file system, which all processes see, whatever their own say.
    let now = file.metadata().and_then(|m| m.modified()).map_err(failed)?;
    let last = last(folder, cell).map_err(failed)?;
    let retaken = match last {
        None => 0,
        Some((number, touched)) if now.duration_since(touched).is_ok_and(|age| age >= stale) => number + 1,
        Some(_) => return Ok(None),
    };
    let Some(place) = take(folder, cell, made, retaken).map_err(failed)? else { return Ok(None) };
    if let Some((number, _)) = last {
        discard(&self::place(folder, cell, number));
    }
    let (stop, stopped) = channel();
    let owner = place.join(OWNER);
    let thread = std::thread::spawn(move || {
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(stale / TOUCHES) {
            touch(&owner);
        }
    });
    Ok(Some(Claim { place, retaken, stop: Some(stop), thread: Some(thread) }))
}

impl Claim {
    /// How many owners before this one went away without giving the cell back.
    pub fn retaken(&self) -> u64 {
        self.retaken
    }

    /// True while no other process took this one for gone.
    pub fn is_held(&self) -> bool {
        self.place.join(OWNER).is_file()
    }
}

/// Gives the cell back.
impl Drop for Claim {
    fn drop(&mut self) {
        drop(self.stop.take());
        // The thread does nothing that could fail.
        let _ = self.thread.take().map(JoinHandle::join);
        discard(&self.place);
    }
}

fn place(folder: &Path, cell: &str, number: u64) -> PathBuf {
    folder.join(format!("{cell}.claim.{number}"))
}

/// Makes a folder the claim of this number; `None` where another process has the cell.
fn take(folder: &Path, cell: &str, made: TempDir, number: u64) -> std::io::Result<Option<PathBuf>> {
    let place = place(folder, cell, number);
    match fs::rename(made.path(), &place) {
        Ok(()) => drop(made.keep()),
        // Another process was faster.
        Err(_) if place.exists() => return Ok(None),
        Err(e) => return Err(e),
    }
    // Whoever looks while a claim is retaken may see neither the old one nor the new one, and take the cell for free.
    // The new one was there before it could be missed, and is seen now.
    if highest(folder, cell)? > Some(number) {
        discard(&place);
        return Ok(None);
    }
    Ok(Some(place))
}

/// The highest number of a cell's claims.
fn highest(folder: &Path, cell: &str) -> std::io::Result<Option<u64>> {
    let prefix = format!("{cell}.claim.");
    let mut highest = None;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix(&prefix)).and_then(|n| n.parse::<u64>().ok());
        highest = highest.max(number);
    }
    Ok(highest)
}

/// The claim with the highest number, and when it was touched.
fn last(folder: &Path, cell: &str) -> std::io::Result<Option<(u64, SystemTime)>> {
    let Some(number) = highest(folder, cell)? else { return Ok(None) };
    match fs::metadata(place(folder, cell, number).join(OWNER)) {
        Ok(found) => Ok(Some((number, found.modified()?))),
        // It was just given back, or retaken.
        Err(e) if e.kind() == IoKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A write, rather than a change of the time, so that the file system's clock counts. A claim that was retaken is gone.
fn touch(owner: &Path) {
    let written = File::options().append(true).open(owner).and_then(|mut f| f.write_all(b"."));
    // The next time may go better; if none does, the claim goes stale, as it should.
    let _ = written;
}

/// Takes a claim away under another name first: a folder that is being emptied would count as free.
fn discard(place: &Path) {
    let Some(folder) = place.parent() else { return };
    if let Ok(away) = tempfile::Builder::new().prefix(".claim-").tempdir_in(folder) {
        // It is gone already where another process retook it.
        let _ = fs::rename(place, away.path().join("old"));
    }
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::error::ErrorKind;

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_cell_has_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let owners = AtomicUsize::new(0);
        let held: Vec<Option<Claim>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let claim = claim(folder.path(), "a", LONG).unwrap();
                        owners.fetch_add(usize::from(claim.is_some()), Ordering::Relaxed);
                        claim
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(owners.into_inner(), 1);
        assert!(held.iter().flatten().all(Claim::is_held));
        // Another cell is free, and so is this one once it was given back; nothing is left behind.
        assert!(claim(folder.path(), "a.claim", LONG).unwrap().is_some());
        drop(held);
        assert_eq!(claim(folder.path(), "a", LONG).unwrap().map(|c| c.retaken()), Some(0));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_claim_of_a_process_that_is_gone_is_retaken_once() {
        let folder = tempfile::tempdir().unwrap();
        let stale = Duration::from_millis(400);
        // Its owner was killed: nobody touches it.
        let dead = folder.path().join("a.claim.3");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(OWNER), "elsewhere 1").unwrap();
        assert!(claim(folder.path(), "a", stale).unwrap().is_none());
        std::thread::sleep(2 * stale);
        let taken: Vec<Claim> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| claim(folder.path(), "a", stale).unwrap())).collect();
            threads.into_iter().filter_map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(taken.iter().map(Claim::retaken).collect::<Vec<_>>(), [4]);
        assert!(!dead.exists());
        // Held for longer than that, it is not taken away.
        std::thread::sleep(3 * stale);
        assert!(claim(folder.path(), "a", stale).unwrap().is_none());
        assert!(taken[0].is_held());
    }

    #[test]
    fn a_claim_that_was_not_seen_wins() {
        let folder = tempfile::tempdir().unwrap();
        let made = || tempfile::Builder::new().prefix(".claim-").tempdir_in(folder.path()).unwrap();
        let retaken = take(folder.path(), "a", made(), 4).unwrap().unwrap();
        assert_eq!(take(folder.path(), "a", made(), 0).unwrap(), None);
        assert!(retaken.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_stay_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        for cell in ["", "..", "a/b", "/a", "a/"] {
            assert_eq!(claim(folder.path(), cell, LONG).unwrap_err().kind(), ErrorKind::Usage, "{cell}");
        }
        assert_eq!(claim(&folder.path().join("none"), "a", LONG).unwrap_err().kind(), ErrorKind::Io);
    }
}
