//! Processes that work together: which of how many this is, sums over all of them, and what the first one tells the
//! others.
//!
//! A process that was not started by an MPI launcher (`mpirun`, `srun --mpi`), or that has not [joined](start) the
//! others, is alone: rank 0 of 1. Then a sum is what it was and nothing is sent, so the code that works in a group is
//! the code that works alone. Every rank makes the same calls in the same order. A rank that fails ends the whole job
//! ([`abort`]): the others wait for it in the next call and would wait for ever. The transport is MPI, behind the cargo
//! feature `mpi`, and NCCL between GPUs.

#[cfg_attr(not(feature = "mpi"), path = "alone.rs")]
mod backend;
pub mod claims;
mod gpus;
mod group;
mod launched;
#[cfg(feature = "mpi")]
mod nccl;

pub use backend::Element;
pub use gpus::{between_gpus, sum_on_gpu};
pub use group::{
    abort, agree, all, barrier, broadcast, broadcast_values, fail, finish, first, gather, is_first, is_own, part, rank,
    seconds, share, share_out, size, start, sum, sum_all, threads, total,
};
pub use launched::{Launched, launched};
