//! The GPU of this machine, as the driver sees it.

use serde::Serialize;

/// A GPU as the driver sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// Version of the CUDA driver, as 1000 x major + 10 x minor.
    pub driver: i32,
}

/// The first GPU, or why there is none.
pub fn gpu() -> std::result::Result<Gpu, String> {
    use cudarc::driver::{result, sys};
    // SAFETY: it only looks for the driver's shared library.
    if !unsafe { sys::is_culib_present() } {
        return Err("the NVIDIA driver's library (libcuda) is not installed".into());
    }
    let text = |e: cudarc::driver::DriverError| format!("{e:?}");
    result::init().map_err(text)?;
    if result::device::get_count().map_err(text)? < 1 {
        return Err("the driver sees no GPU".into());
    }
    let device = result::device::get(0).map_err(text)?;
    let name = result::device::get_name(device).map_err(text)?;
    // SAFETY: the device handle comes from the driver that was just initialised.
    let memory = unsafe { result::device::total_mem(device) }.map_err(text)? as u64;
    let mut driver = 0;
    // SAFETY: the pointer is valid for the call.
    unsafe { sys::cuDriverGetVersion(&mut driver) };
    Ok(Gpu { name, memory, driver })
}
