//! Sums from GPU to GPU, through NCCL, whose library is loaded where it is found.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::CudaContext;
use cudarc::nccl::{result, sys};

use super::group::{broadcast, is_first, rank, size, sum as sum_on_host};
use crate::error::{Error, ErrorKind, Result};

/// What NCCL needs from call to call.
struct NcclGroup {
    context: Arc<CudaContext>,
    communicator: sys::ncclComm_t,
}

// SAFETY: NCCL's communicators may be used from any thread, one at a time, which the mutex sees to.
unsafe impl Send for NcclGroup {}

/// Not asked yet; not usable; in use.
static GROUP: Mutex<Option<Option<NcclGroup>>> = Mutex::new(None);

fn failed(what: &str, e: impl std::fmt::Debug) -> Error {
    Error::new(ErrorKind::Runtime, format!("NCCL {what}: {e:?}"))
        .hint("NCCL_DEBUG=WARN says more; where its library is not found, sums go over the host")
}

/// True where every process has NCCL. The first call starts it.
pub(super) fn is_usable() -> Result<bool> {
    let mut group = GROUP.lock().unwrap_or_else(PoisonError::into_inner);
    if group.is_none() {
        // SAFETY: it only looks for the shared library.
        let mut without = [u64::from(!unsafe { sys::is_culib_present() })];
        sum_on_host(&mut without);
        *group = Some(if without[0] == 0 { Some(start()?) } else { None });
    }
    Ok(matches!(*group, Some(Some(_))))
}

fn start() -> Result<NcclGroup> {
    // Each process sees one GPU only.
    let context = CudaContext::new(0).map_err(|e| failed("finds no GPU", e))?;
    let mut id = match is_first() {
        true => result::get_uniqueid().map_err(|e| failed("does not start", e))?,
        false => sys::ncclUniqueId { internal: [0; 128] },
    };
    let bytes = broadcast(id.internal.iter().map(|c| c.to_ne_bytes()[0]).collect());
    id.internal.iter_mut().zip(bytes).for_each(|(to, from)| *to = from as std::ffi::c_char);
    let mut communicator = std::ptr::null_mut();
    // SAFETY: the pointer is valid for the call, the id is the first process's, and all processes call this together.
    unsafe { result::comm_init_rank(&mut communicator, size() as i32, id, rank() as i32) }
        .map_err(|e| failed("does not start", e))?;
    Ok(NcclGroup { context, communicator })
}

/// Sums arrays of float32 over all processes, in place.
///
/// # Safety
/// As [`super::gpus::sum_on_gpu`].
pub(super) unsafe fn sum(arrays: &[(*mut c_void, usize)]) -> Result<()> {
    let group = GROUP.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(Some(group)) = &*group else { bail!(Internal, "NCCL was not started") };
    let failed = |e| failed("cannot sum", e);
    let driver = |e| Error::new(ErrorKind::Runtime, format!("CUDA: {e:?}"));
    group.context.bind_to_thread().map_err(driver)?;
    // One group: NCCL puts the arrays together as it sees fit.
    result::group_start().map_err(failed)?;
    for &(address, elements) in arrays {
        let (kind, add) = (sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum);
        // SAFETY: the caller's for the memory; the communicator is that of all processes; the stream is the default
        // one.
        let queued = unsafe {
            result::all_reduce(address, address, elements, kind, add, group.communicator, std::ptr::null_mut())
        };
        queued.map_err(failed)?;
    }
    result::group_end().map_err(failed)?;
    group.context.synchronize().map_err(driver)
}
