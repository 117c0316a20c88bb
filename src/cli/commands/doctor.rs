//! `offshoot doctor`: what is there to run graphs on.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::named;
use crate::cli::common::RuntimeFlags;
use crate::cli::output;
use crate::data::parquet_codecs;
use crate::error::Result;
use crate::metadata::schema;
use crate::runtime::{self, Options, Runtime, RuntimeKind};

/// `offshoot doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub runtime: RuntimeFlags,
    /// Open a model in a plain session of ONNX Runtime, with every option at its default, and exit with 1 where that
    /// fails
    #[arg(long, value_name = "MODEL.onnx")]
    pub opens: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(c: &DoctorArgs) -> Result<()> {
    if let Some(model) = &c.opens {
        let options = Options { kind: RuntimeKind::Onnxruntime, ..c.runtime.options() };
        return named(model, Runtime::start(&options)?.open_plain(model));
    }
    let found: Vec<_> = runtime::candidates()
        .into_iter()
        .map(|path| match runtime::find(Some(&path)) {
            Ok(l) => json!({"path": path, "version": l.version}),
            Err(e) => json!({"path": path, "error": e.marked()}),
        })
        .collect();
    let gpu = runtime::gpu();
    let runtime = Runtime::start(&c.runtime.options())?;
    let cores = std::thread::available_parallelism().map(|n| n.get()).unwrap_or(1);
    if c.json {
        return output::print_json(&json!({
            "schema": schema::DOCTOR,
            "offshoot": env!("CARGO_PKG_VERSION"),
            "runtime": runtime.kind,
            "library": runtime.library,
            "execution_providers": runtime.providers(),
            "libraries_found": found,
            "tract": cfg!(feature = "tract").then_some("0.23"),
            "tokenizers": cfg!(feature = "text"),
            "parquet_codecs": parquet_codecs(),
            "gpu": gpu.as_ref().ok(),
            "gpu_error": gpu.as_ref().err(),
            "cores": cores,
            "threads": runtime.threads,
        }));
    }
    let mut text = format!("offshoot {}\n", env!("CARGO_PKG_VERSION"));
    text += &format!("runtime in use: {}\n", runtime.describe());
    text += &format!("execution providers: {}\n", runtime.providers().join(", "));
    text += "ONNX Runtime libraries:\n";
    if found.is_empty() {
        text += "  none found (put it beside the executable, or install the Python wheel `onnxruntime`)\n";
    }
    for f in &found {
        let what = f["version"].as_str().or(f["error"].as_str()).unwrap_or_default();
        text += &format!("  {}  {what}\n", f["path"].as_str().unwrap_or_default());
    }
    text += if cfg!(feature = "tract") { "tract: built in\n" } else { "tract: left out of this build\n" };
    text += if cfg!(feature = "text") { "tokenizers: built in\n" } else { "tokenizers: left out of this build\n" };
    text += &format!("Parquet files packed with: {}\n", parquet_codecs().join(", "));
    text += &match &gpu {
        Ok(g) => format!(
            "GPU: {}, {:.1} GiB, CUDA driver {}.{}\n",
            g.name,
            g.memory as f64 / (1u64 << 30) as f64,
            g.driver / 1000,
            g.driver % 1000 / 10
        ),
        Err(why) => format!("GPU: none ({why})\n"),
    };
    text += &format!("cores: {cores}, threads of a session: {}\n", runtime.threads);
    output::print(&text)
}
