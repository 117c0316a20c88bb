//! The group of processes: its ranks, its sums, and what one process tells the others.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Serialize, de::DeserializeOwned};

use super::backend::{self, Element};
use super::launched::launched;
use crate::error::{Error, ErrorKind, Result};

/// Elements that are summed at once: 16 MiB of float32.
const BUCKET: usize = 4 << 20;
/// Bytes that are sent at once; MPI counts in 32 bits.
const MESSAGE: usize = 1 << 30;

/// Joins the processes that the launcher started with this one, if there are others. It belongs at the very start of a
/// program, before there are other threads: each process is given a GPU of its machine and its share of the machine's
/// cores.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where there are others and the feature `mpi` was left out, [`ErrorKind::Runtime`] where
/// MPI does not start, [`ErrorKind::Usage`] where the others are another version of Offshoot.
pub fn start() -> Result<()> {
    let Some(launched) = launched().filter(|l| l.size > 1) else { return Ok(()) };
    if cfg!(feature = "mpi") {
        take_gpu(launched.local_rank);
        if let Some(threads) = threads() {
            // A pool that is there already keeps its threads.
            let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        }
    }
    backend::start(launched)?;
    agree("another version of Offshoot", env!("CARGO_PKG_VERSION"))
        .map_err(|e| e.hint("install the same version on every machine"))
}

/// Gives this process a GPU of its own, which CUDA then sees as the only one.
fn take_gpu(local_rank: usize) {
    const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
    let given = std::env::var(VISIBLE).ok();
    let list: Vec<&str> = given.iter().flat_map(|g| g.split(',')).collect();
    let own = match list[..] {
        [] => local_rank.to_string(),
        // A scheduler gave it one already, or none.
        [_] => return,
        _ => list[local_rank % list.len()].to_string(),
    };
    // SAFETY: `start` is called before there are other threads, so nobody reads the environment meanwhile.
    unsafe { std::env::set_var(VISIBLE, own) };
}

/// Threads that this process should use so that all on its machine together use every core; `None` where it is alone
/// there, or where the launcher bound it to some cores.
pub fn threads() -> Option<usize> {
    let local = launched()?.local_size.filter(|n| *n > 1)?;
    let usable = std::thread::available_parallelism().ok()?.get();
    (!is_bound()).then_some((usable / local).max(1))
}

/// True where this process may run on some of the machine's cores only.
fn is_bound() -> bool {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cores = read("/proc/cpuinfo").lines().filter(|l| l.starts_with("processor")).count();
    let status = read("/proc/self/status");
    let mask = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed:")).unwrap_or_default();
    let own: u32 = mask.chars().filter_map(|c| c.to_digit(16)).map(u32::count_ones).sum();
    (1..cores).contains(&(own as usize))
}

/// Leaves the group. The last call of a program that has not failed.
pub fn finish() {
    backend::finish();
}

/// Ends all processes at once, with this exit code. Alone, this process.
pub fn abort(code: u8) -> ! {
    backend::abort(code.into())
}

/// Which process this is, from 0.
pub fn rank() -> usize {
    backend::place().0
}

/// How many processes there are.
pub fn size() -> usize {
    backend::place().1
}

/// True for the process that reports and writes.
pub fn is_first() -> bool {
    rank() == 0
}

/// Waits for all.
pub fn barrier() {
    if size() > 1 {
        timed(backend::barrier);
    }
}

/// Every value becomes its sum over all processes, bit for bit the same on each.
pub fn sum<T: Element>(values: &mut [T]) {
    if size() > 1 {
        timed(|| values.chunks_mut(BUCKET).for_each(backend::sum));
    }
}

/// The sum of one value over all processes.
pub fn total(value: usize) -> usize {
    let mut value = [value as u64];
    sum(&mut value);
    value[0] as usize
}

/// Sums over arrays of many sizes: small ones are put together, so that what a message costs is paid once for many.
///
/// `visit` is called for every array in turn, twice: it lets the function that it is given see the values.
///
/// # Errors
/// Those of `visit`.
pub fn sum_all<'a>(
    names: impl Iterator<Item = (&'a str, usize)>,
    mut visit: impl FnMut(&str, &mut dyn FnMut(&mut [f32])) -> Result<()>,
) -> Result<()> {
    let mut waiting: Vec<&str> = Vec::new();
    let mut bucket: Vec<f32> = Vec::new();
    let mut send = |waiting: &mut Vec<&str>, bucket: &mut Vec<f32>| -> Result<()> {
        for name in waiting.iter() {
            visit(name, &mut |values| bucket.extend_from_slice(values))?;
        }
        sum(bucket);
        let mut rest = bucket.as_slice();
        for name in waiting.drain(..) {
            visit(name, &mut |values| {
                let (own, later) = rest.split_at(values.len());
                values.copy_from_slice(own);
                rest = later;
            })?;
        }
        bucket.clear();
        Ok(())
    };
    let mut elements = 0;
    for (name, len) in names {
        if elements > 0 && elements + len > BUCKET {
            send(&mut waiting, &mut bucket)?;
            elements = 0;
        }
        waiting.push(name);
        elements += len;
    }
    send(&mut waiting, &mut bucket)
}

/// The bytes of the first process, on all.
pub fn broadcast(bytes: Vec<u8>) -> Vec<u8> {
    if size() == 1 {
        return bytes;
    }
    timed(|| {
        let mut length = [bytes.len() as u64];
        backend::broadcast(&mut length);
        let mut bytes = bytes;
        bytes.resize(length[0] as usize, 0);
        bytes.chunks_mut(MESSAGE).for_each(backend::broadcast);
        bytes
    })
}

/// The values of the first process, in place of those of all others.
pub fn broadcast_values(values: &mut [f32]) {
    if size() > 1 {
        timed(|| values.chunks_mut(MESSAGE / size_of::<f32>()).for_each(backend::broadcast));
    }
}

/// What every process gives, by rank, on all. It is meant for short messages.
pub fn gather(bytes: &[u8]) -> Vec<Vec<u8>> {
    match size() {
        1 => vec![bytes.to_vec()],
        _ => timed(|| backend::gather(bytes)),
    }
}

/// What the first process finds, on all; the others do not look, and leave it the cores meanwhile.
///
/// # Errors
/// Those of `find` on the first process; the others hear nothing then, and end with it.
pub fn first<T: Serialize + DeserializeOwned>(find: impl FnOnce() -> Result<T>) -> Result<T> {
    if size() == 1 {
        return find();
    }
    let internal = |e: serde_json::Error| Error::new(ErrorKind::Internal, e.to_string());
    let found = match is_first() {
        true => Some(find()?),
        false => None,
    };
    backend::await_first();
    let text = found.as_ref().map(serde_json::to_vec).transpose().map_err(internal)?;
    let text = broadcast(text.unwrap_or_default());
    match found {
        Some(found) => Ok(found),
        None => serde_json::from_slice(&text).map_err(internal),
    }
}

/// What every process has, by rank, on all.
///
/// # Errors
/// [`ErrorKind::Internal`] for values that JSON does not carry.
pub fn all<T: Serialize + DeserializeOwned>(own: T) -> Result<Vec<T>> {
    if size() == 1 {
        return Ok(vec![own]);
    }
    let internal = |e: serde_json::Error| Error::new(ErrorKind::Internal, e.to_string());
    let text = serde_json::to_vec(&own).map_err(internal)?;
    gather(&text).iter().map(|part| serde_json::from_slice(part).map_err(internal)).collect()
}

/// Each of `count` parts of some work, done by one of the processes; the results, in order, on all.
///
/// # Errors
/// Those of the work.
pub fn share_out<T: Serialize + DeserializeOwned>(
    count: usize,
    work: impl FnOnce(Vec<usize>) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let mut parts: Vec<_> = all(work(share(count).collect())?)?.into_iter().map(Vec::into_iter).collect();
    let all: Vec<T> = (0..count).filter_map(|i| parts[i % size()].next()).collect();
    match all.len() == count {
        true => Ok(all),
        false => bail!(Internal, "{} of {count} parts of the work were done", all.len()),
    }
}

/// The indices below `count` that are this process's: every so-manieth.
pub fn share(count: usize) -> std::iter::StepBy<std::ops::Range<usize>> {
    (rank().min(count)..count).step_by(size())
}

/// The part of a list of `count` that is this process's, in one piece. The list is cut only behind every `chunk` of its
/// elements: what is rounded within a chunk is rounded alike then, however many processes there are.
pub fn part(count: usize, chunk: usize) -> std::ops::Range<usize> {
    let chunks = count.div_ceil(chunk.max(1));
    let border = |rank: usize| (chunks * rank / size() * chunk.max(1)).min(count);
    border(rank())..border(rank() + 1)
}

/// Whether part `i` of some work is this process's.
pub fn is_own(i: usize) -> bool {
    i % size() == rank()
}

/// Whether all processes have come to the same error.
static ALL_FAILED: AtomicBool = AtomicBool::new(false);

/// Ends a process that has failed and has said so: all of them, which would wait for this one, unless each has the same
/// to say.
pub fn fail(code: u8) -> ExitCode {
    if size() > 1 && !ALL_FAILED.load(Ordering::Relaxed) {
        abort(code);
    }
    finish();
    ExitCode::from(code)
}

/// Checks that all processes have the same `value`: that none has `what`.
///
/// # Errors
/// [`ErrorKind::Usage`] on every process; it names those that differ from the first.
pub fn agree(what: &str, value: &str) -> Result<()> {
    let all = gather(value.as_bytes());
    let Some(own) = all.first() else { return Ok(()) };
    let others: Vec<String> =
        (0..all.len()).filter(|&r| all[r] != *own).map(|r| format!("rank {r} ({})", shown(&all[r]))).collect();
    if others.is_empty() {
        return Ok(());
    }
    let have = if others.len() == 1 { "has" } else { "have" };
    ALL_FAILED.store(true, Ordering::Relaxed);
    bail!(Usage, "{} {have} {what} than rank 0 ({})", others.join(" and "), shown(own))
}

/// The beginning of a value, which may be a long hash.
fn shown(value: &[u8]) -> String {
    String::from_utf8_lossy(value).chars().take(12).collect()
}

/// Time that was spent in the calls of this module, waiting for others included.
static SPENT: Mutex<Duration> = Mutex::new(Duration::ZERO);

pub(super) fn timed<R>(work: impl FnOnce() -> R) -> R {
    let begun = Instant::now();
    let result = work();
    if let Ok(mut spent) = SPENT.lock() {
        *spent += begun.elapsed();
    }
    result
}

/// Seconds that this process has spent in sending, summing and waiting for others.
pub fn seconds() -> f64 {
    SPENT.lock().map(|s| s.as_secs_f64()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_everything_is_as_it_was() {
        assert_eq!((rank(), size(), is_first()), (0, 1, true));
        let mut values = [1.0f32, 2.0];
        sum(&mut values);
        broadcast_values(&mut values);
        assert_eq!(values, [1.0, 2.0]);
        assert_eq!(total(7), 7);
        assert_eq!(broadcast(vec![1, 2]), [1, 2]);
        assert_eq!(gather(b"a"), [b"a".to_vec()]);
        assert_eq!(share(3).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!((part(3, 1), part(11, 4), is_own(2)), (0..3, 0..11, true));
        assert_eq!(first(|| Ok(3)).unwrap(), 3);
        assert_eq!(all("a".to_string()).unwrap(), ["a"]);
        assert_eq!(share_out(3, Ok).unwrap(), [0, 1, 2]);
        agree("another value", "a").unwrap();
        barrier();
    }

    #[test]
    fn arrays_of_all_sizes_are_visited() {
        let mut arrays = [("a", vec![1.0f32; 3]), ("b", vec![2.0; BUCKET - 1]), ("c", vec![3.0]), ("d", Vec::new())];
        let sizes: Vec<(&str, usize)> = arrays.iter().map(|(n, v)| (*n, v.len())).collect();
        let mut seen = Vec::new();
        sum_all(sizes.into_iter(), |name, see| {
            seen.push(name.to_string());
            arrays.iter_mut().filter(|(n, _)| *n == name).for_each(|(_, v)| see(v));
            Ok(())
        })
        .unwrap();
        // The second array does not fit into the bucket of the first.
        assert_eq!(seen, ["a", "a", "b", "c", "d", "b", "c", "d"]);
        assert!(arrays[1].1.iter().all(|v| *v == 2.0) && arrays[2].1 == [3.0]);
    }
}
