//! Sums over what lies on the GPUs of processes.

#[cfg(feature = "mpi")]
use super::group::{size, timed};
#[cfg(feature = "mpi")]
use super::nccl;
use crate::error::Result;

/// Whether sums of what lies on GPUs go from GPU to GPU; the first call finds out.
///
/// # Errors
/// [`ErrorKind::Runtime`](crate::error::ErrorKind::Runtime) where NCCL is there and does not start.
pub fn between_gpus() -> Result<bool> {
    #[cfg(feature = "mpi")]
    if size() > 1 {
        return nccl::is_usable();
    }
    Ok(false)
}

/// Arrays of float32 on the GPU (address and length) become their sums over all processes.
///
/// # Errors
/// [`ErrorKind::Runtime`](crate::error::ErrorKind::Runtime) where NCCL fails or was not found.
///
/// # Safety
/// Each address must be that of so many elements in the memory of CUDA's device 0, and nobody else may use them
/// meanwhile.
pub unsafe fn sum_on_gpu(arrays: &[(*mut std::ffi::c_void, usize)]) -> Result<()> {
    #[cfg(feature = "mpi")]
    // SAFETY: the caller's.
    return timed(|| unsafe { nccl::sum(arrays) });
    #[cfg(not(feature = "mpi"))]
    bail!(Internal, "{} arrays are on a GPU of a process that is alone", arrays.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_alone_has_nothing_to_sum() {
        assert!(!between_gpus().unwrap());
    }
}
