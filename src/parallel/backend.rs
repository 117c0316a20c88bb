//! Several processes, through MPI.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Equivalence, Root, Source};

use super::launched::Launched;
use crate::error::{Error, ErrorKind, Result};

/// What can be summed over processes.
pub trait Element: Copy + Default + Equivalence {}

impl Element for f32 {}
impl Element for f64 {}
impl Element for u64 {}
impl Element for u8 {}

/// How long a process sleeps before it looks for news of the first one.
const PAUSE: Duration = Duration::from_millis(1);

static PLACE: OnceLock<(usize, usize)> = OnceLock::new();
static UNIVERSE: Mutex<Option<Universe>> = Mutex::new(None);

pub(super) fn start(launched: Launched) -> Result<()> {
    let mut universe = UNIVERSE.lock().unwrap_or_else(PoisonError::into_inner);
    if universe.is_some() {
        return Ok(());
    }
    // One call at a time, from whichever thread the work is on.
    match mpi::initialize_with_threading(Threading::Serialized) {
        Some((started, threading)) if threading >= Threading::Serialized => *universe = Some(started),
        Some(_) => bail!(Runtime, "this MPI works with one thread only"),
        None => bail!(Runtime, "MPI was started before Offshoot"),
    }
    let world = SimpleCommunicator::world();
    let (rank, size) = (world.rank() as usize, world.size() as usize);
    if size != launched.size {
        return Err(Error::new(
            ErrorKind::Runtime,
            format!("the launcher started {} processes and MPI knows of {size}", launched.size),
        )
        .hint("start it with the `mpirun` of the MPI that it was built with; `srun` needs the right --mpi"));
    }
    PLACE.get_or_init(|| (rank, size));
    Ok(())
}

pub(super) fn place() -> (usize, usize) {
    PLACE.get().copied().unwrap_or((0, 1))
}

pub(super) fn finish() {
    // MPI ends when its universe is dropped.
    UNIVERSE.lock().unwrap_or_else(PoisonError::into_inner).take();
}

pub(super) fn abort(code: i32) -> ! {
    match place() {
        (_, 1) => std::process::exit(code),
        _ => SimpleCommunicator::world().abort(code),
    }
}

pub(super) fn barrier() {
    SimpleCommunicator::world().barrier();
}

/// Processes that wait in a collective call keep their cores busy; this wait leaves them to the first one.
pub(super) fn await_first() {
    let world = SimpleCommunicator::world();
    let (rank, size) = place();
    if rank == 0 {
        (1..size).for_each(|other| world.process_at_rank(other as i32).send(&0u8));
        return;
    }
    let first = world.process_at_rank(0);
    while first.immediate_probe().is_none() {
        std::thread::sleep(PAUSE);
    }
    let _: (u8, _) = first.receive();
}

pub(super) fn sum<T: Element>(values: &mut [T]) {
    let mut sums = vec![T::default(); values.len()];
    SimpleCommunicator::world().all_reduce_into(values, &mut sums[..], SystemOperation::sum());
    values.copy_from_slice(&sums);
}

pub(super) fn broadcast<T: Element>(values: &mut [T]) {
    SimpleCommunicator::world().process_at_rank(0).broadcast_into(values);
}

pub(super) fn gather(bytes: &[u8]) -> Vec<Vec<u8>> {
    let world = SimpleCommunicator::world();
    let mut counts = vec![0i32; place().1];
    world.all_gather_into(&(bytes.len() as i32), &mut counts[..]);
    let starts: Vec<i32> = counts.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect();
    let mut all = vec![0u8; counts.iter().map(|n| *n as usize).sum()];
    {
        let mut parts = PartitionMut::new(&mut all[..], &counts[..], &starts[..]);
        world.all_gather_varcount_into(bytes, &mut parts);
    }
    starts.iter().zip(&counts).map(|(s, n)| all[*s as usize..(*s + *n) as usize].to_vec()).collect()
}
