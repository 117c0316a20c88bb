//! The runtime of a process: which library, which device, how many threads.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use serde::Serialize;

use super::gpu::gpu;
use super::library::{Library, find};
use crate::error::{Error, ErrorKind, Result};
use crate::parallel;

/// Which library runs graphs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// ONNX Runtime where it is found, else tract.
    #[default]
    Auto,
    /// ONNX Runtime, loaded from its shared library.
    Onnxruntime,
    /// tract, which is built in (feature `tract`).
    Tract,
}

impl RuntimeKind {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            RuntimeKind::Auto => "a runtime",
            RuntimeKind::Onnxruntime => "ONNX Runtime",
            RuntimeKind::Tract => "tract",
        }
    }
}

/// Where graphs run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, through ONNX Runtime's CUDA execution provider.
    Cuda,
}

/// How to start a runtime.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The library.
    pub kind: RuntimeKind,
    /// Path of ONNX Runtime's shared library, or of the folder that holds it.
    pub library: Option<PathBuf>,
    /// The device.
    pub device: Device,
    /// Whether a GPU rounds what matrix products multiply to TF32, which has 10 bits of mantissa.
    pub tf32: bool,
    /// Threads of one session; `None` for one a core, of those that this process has to itself.
    pub threads: Option<usize>,
}

/// The runtime of this process.
#[derive(Debug)]
pub struct Runtime {
    pub(super) environment: Environment,
    /// The library in use: never [`RuntimeKind::Auto`].
    pub kind: RuntimeKind,
    /// The shared library, where one was loaded.
    pub library: Option<Library>,
    /// The device.
    pub device: Device,
    /// Whether it multiplies in TF32.
    pub tf32: bool,
    /// Threads of one session.
    pub threads: usize,
}

/// Keeps ONNX Runtime's library from writing an identity and events, to be sent to its makers, to the user's cache
/// folder. It does so while it starts, before it can be told not to collect them (seen with 1.32); this variable it
/// reads first. To be called before there are other threads.
#[cfg(feature = "cli")]
pub(crate) fn refuse_telemetry() {
    // SAFETY: the command line calls this first of all, so nobody reads the environment meanwhile.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
}

/// What the first start of this process decided: the library's API and its environment are globals.
struct Started {
    kind: RuntimeKind,
    path: Option<PathBuf>,
    environment: Environment,
}

static STARTED: Mutex<Option<Started>> = Mutex::new(None);

impl Runtime {
    /// Starts the runtime. ONNX Runtime's own builds write an identity and events to the user's cache folder meanwhile,
    /// unless `ORT_DISABLE_TELEMETRY` is set, which Offshoot's command line does.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`] where the library that was asked for is not there or cannot be loaded, or where another
    /// one runs in this process already.
    pub fn start(options: &Options) -> Result<Arc<Runtime>> {
        let cores = std::thread::available_parallelism().map(|n| n.get()).unwrap_or(1);
        let threads = options.threads.or_else(parallel::threads).unwrap_or(cores).max(1);
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = match options.kind {
            RuntimeKind::Tract => None,
            RuntimeKind::Auto if started.as_ref().is_some_and(|s| s.kind == RuntimeKind::Tract) => None,
            RuntimeKind::Auto if options.device == Device::Cpu => match find(options.library.as_deref()) {
                Ok(library) => Some(library),
                Err(e) if options.library.is_some() || !cfg!(feature = "tract") => return Err(e),
                Err(_) => None,
            },
            _ => Some(find(options.library.as_deref())?),
        };
        let kind = if wanted.is_some() { RuntimeKind::Onnxruntime } else { RuntimeKind::Tract };
        if options.tf32 && options.device == Device::Cpu {
            return Err(Error::new(ErrorKind::Usage, "the processor has no TF32")
                .hint("leave ⟦tf32⟧ out, or add ⟦device⟧ cuda"));
        }
        if options.device == Device::Cuda && kind == RuntimeKind::Tract {
            return Err(Error::new(ErrorKind::Usage, "tract runs on the processor only")
                .hint("use `⟦runtime⟧ onnxruntime` with `⟦device⟧ cuda`"));
        }
        let path = wanted.as_ref().map(|l| l.path.clone());
        let environment = match started.as_ref() {
            Some(s) if s.kind == kind && s.path == path => s.environment.clone(),
            Some(s) => {
                bail!(Runtime, "this process runs on {:?} already; a second library cannot be loaded beside it", s.kind)
            }
            None => {
                let environment = environment(wanted.as_ref())?;
                *started = Some(Started { kind, path, environment: environment.clone() });
                environment
            }
        };
        let runtime =
            Runtime { environment, kind, library: wanted, device: options.device, tf32: options.tf32, threads };
        if runtime.device == Device::Cuda {
            runtime.check_cuda()?;
        }
        Ok(Arc::new(runtime))
    }

    /// The same runtime with sessions of one thread each, for work that is done side by side.
    pub fn single_threaded(&self) -> Arc<Runtime> {
        let (environment, library) = (self.environment.clone(), self.library.clone());
        Arc::new(Runtime { environment, kind: self.kind, library, device: self.device, tf32: self.tf32, threads: 1 })
    }

    /// What runs, in words.
    pub fn describe(&self) -> String {
        match &self.library {
            None => "tract (built in)".to_string(),
            Some(l) => format!("ONNX Runtime {} ({})", l.version, l.path.display()),
        }
    }

    /// Execution providers that the library was built with.
    pub fn providers(&self) -> Vec<&'static str> {
        use ort::ep::ExecutionProvider;
        if self.kind == RuntimeKind::Tract {
            return vec!["CPUExecutionProvider"];
        }
        let mut list = Vec::new();
        if ort::ep::CUDA::is_available().unwrap_or(false) {
            list.push("CUDAExecutionProvider");
        }
        list.push("CPUExecutionProvider");
        list
    }

    /// Says plainly what the CUDA execution provider lacks.
    fn check_cuda(&self) -> Result<()> {
        let gpu = gpu();
        let missing = |what: String, hint: &str| Err(Error::new(ErrorKind::Runtime, what).hint(hint));
        if !self.providers().contains(&"CUDAExecutionProvider") {
            let at = self.library.as_ref().map(|l| l.path.display().to_string()).unwrap_or_default();
            return missing(
                format!("the ONNX Runtime at `{at}` was built without the CUDA execution provider"),
                "use the library of the wheel `onnxruntime-gpu` (⟦onnxruntime⟧ PATH)",
            );
        }
        match gpu {
            Err(why) => missing(
                format!("no usable NVIDIA GPU: {why}"),
                "install the NVIDIA driver, or run on the processor with ⟦device⟧ cpu",
            ),
            Ok(_) => Ok(()),
        }
    }
}

/// Loads the library, or sets the built-in one up.
fn environment(library: Option<&Library>) -> Result<Environment> {
    let builder = match library {
        None => {
            embed()?;
            ort::init()
        }
        Some(library) => ort::init_from(&library.path).map_err(|e| {
            Error::new(ErrorKind::Runtime, format!("ONNX Runtime cannot be loaded: {e}"))
                .at(&library.path)
                .hint("give another library with ⟦onnxruntime⟧ PATH, or use ⟦runtime⟧ tract")
        })?,
    };
    let environment = builder
        .with_telemetry(false)
        .build()
        .map_err(|e| Error::new(ErrorKind::Runtime, format!("the runtime cannot start: {e}")))?;
    if library.is_some() {
        environment.set_log_level(ort::logging::LogLevel::Error);
    }
    Ok(environment)
}

/// Puts tract behind the API.
#[cfg(feature = "tract")]
fn embed() -> Result<()> {
    ort::set_api(ort_tract::api());
    Ok(())
}

#[cfg(not(feature = "tract"))]
fn embed() -> Result<()> {
    Err(Error::new(ErrorKind::Runtime, "this build has no embedded runtime")
        .hint("give ONNX Runtime's library with ⟦onnxruntime⟧ PATH, or build with the feature `tract`"))
}
