//! A cell of a study: what it is, and what was measured.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::file::{DescendantSize, Follows, Method, Training};
use super::search::Trial;
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::schema;

/// One descendant, trained once.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Name of the ancestor.
    pub ancestor: String,
    /// Name of the data set.
    pub data: String,
    /// Name of the method.
    pub method: String,
    /// Name of the shape.
    pub shape: String,
    /// Share of the training images.
    pub fraction: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// How it is trained.
    pub training: Training,
    /// The method.
    pub how: Method,
    /// The shape with what the method changes of it.
    pub size: DescendantSize,
    /// Draw attention.
    pub attention: bool,
    /// SHA-256 of the ancestor, the data and other files that enter.
    pub sources: Vec<String>,
    /// Images to train on and to validate on, at most.
    pub images: [Option<usize>; 2],
    /// Images that are clustered and fitted on, at most, and the side that they are given.
    pub calibration: (usize, Option<usize>),
}

impl Cell {
    /// Everything that the result depends on.
    pub fn settings(&self) -> Value {
        json!({
            "schema": schema::CELL,
            "sources": self.sources,
            "images": self.images,
            "calibration": self.calibration,
            "fraction": self.fraction,
            "seed": self.seed,
            "training": self.training,
            "method": self.how,
            "shape": self.size,
            "attention": self.attention,
        })
    }

    /// The name of its file.
    pub fn file(&self) -> String {
        file([&self.ancestor, &self.data, &self.method, &self.shape], &self.settings())
    }

    /// True where a record is of this cell, whatever the bytes were that the ancestor and the data had.
    pub fn is_of(&self, record: &CellRecord) -> bool {
        let names = [&self.ancestor, &self.data, &self.method, &self.shape];
        let mut settings = self.settings();
        settings["sources"] = record.settings["sources"].clone();
        names == [&record.ancestor, &record.data, &record.method, &record.shape] && settings == record.settings
    }

    /// What its rows have in common: cells that differ in the seed alone.
    pub fn row(&self) -> (String, String, String, String, u64, u32) {
        let (ancestor, data) = (self.ancestor.clone(), self.data.clone());
        (ancestor, data, self.shape.clone(), self.method.clone(), self.fraction.to_bits(), self.training.epochs)
    }

    /// Which of the two its row follows, where the study does not say it: the published code has an output projection
    /// of its own.
    pub fn follows(&self) -> Follows {
        let own = ["shrink", "magnitude", "model"].contains(&self.how.init.as_str()) || self.how.search.is_some();
        let automatic = [&self.how.eps, &self.how.ffn_eps].into_iter().flatten().any(|t| t.0 == "auto");
        let usual = match self.how.projection.as_deref() {
            Some("paper") => Follows::Code,
            Some("fitted") => Follows::Neither,
            _ if own || automatic => Follows::Neither,
            _ => Follows::Description,
        };
        self.how.follows.unwrap_or(usual)
    }
}

/// The name of a cell's file: readable parts, and a hash of what the result depends on.
fn file(names: [&str; 4], settings: &Value) -> String {
    let slug = |text: &str| -> String {
        let plain: String =
            text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
        plain.split('-').filter(|p| !p.is_empty()).collect::<Vec<_>>().join("-")
    };
    let hash = Sha256::digest(settings.to_string());
    let hash: String = hash[..5].iter().map(|b| format!("{b:02x}")).collect();
    let part = match settings["fraction"].as_f64() {
        Some(fraction) if fraction < 1.0 => format!("{}pc-", 100.0 * fraction),
        _ => String::new(),
    };
    let [ancestor, data, method, shape] = names.map(slug);
    let (epochs, seed) = (&settings["training"]["epochs"], &settings["seed"]);
    format!("{ancestor}.{data}.{method}.{shape}.{part}{epochs}e-seed{seed}.{hash}.json")
}

/// An epoch.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Epoch {
    /// From 1; 0 is before the training, where the classifier was kept.
    pub epoch: u64,
    /// Share of the validation images that were recognised.
    pub top1: f64,
    /// Mean cross-entropy over them.
    pub loss: f64,
}

/// What was measured.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CellRecord {
    /// [`schema::CELL`].
    pub schema: String,
    /// Name of the ancestor.
    pub ancestor: String,
    /// Name of the data set.
    pub data: String,
    /// Name of the method.
    pub method: String,
    /// Name of the shape.
    pub shape: String,
    /// Which of the two the row follows.
    pub follows: Follows,
    /// Everything that the result depends on.
    pub settings: Value,
    /// Accuracy and loss after every epoch.
    pub epochs: Vec<Epoch>,
    /// Parameters of the descendant.
    pub parameters: u64,
    /// Parameters of the ancestor.
    pub ancestor_parameters: u64,
    /// Parameters that the descendant takes from the ancestor, each weight once, without the classifier.
    pub inherited: u64,
    /// I-Params of the whole learngene as the paper counts them, where there is one.
    pub learngene: Option<u64>,
    /// Multiply-accumulate operations for one image.
    pub macs: u64,
    /// Images that were trained on and validated on.
    pub images: [usize; 2],
    /// Seconds that the descendant and its training took.
    pub seconds: [f64; 2],
    /// What the search for hyperparameters tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<Trial>,
    /// Attention of the first and the last layer, as `[ancestor's first, descendant's first, ancestor's last,
    /// descendant's last]`: a file beside this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<PathBuf>,
    /// What ran it.
    pub runtime: String,
    /// The version of Offshoot.
    pub offshoot: String,
}

/// Where the attention of the cell in this file is drawn, if that was asked for.
pub fn picture(cell: &Path) -> PathBuf {
    cell.with_extension("png")
}

impl CellRecord {
    /// Reads a cell's file; `None` where there is none, or its picture is gone.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] for a damaged file.
    pub fn read(path: &Path) -> Result<Option<CellRecord>> {
        let bytes = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Error::io(path, e))?,
        };
        let record = CellRecord::parse(&bytes)
            .map_err(|why| Error::new(ErrorKind::Format, why).at(path).hint("remove it: the cell is then made anew"))?;
        let drawn = record.attention.is_none() || picture(path).exists();
        Ok(drawn.then_some(record))
    }

    /// Reads the text of a cell; what is wrong with it, where something is.
    pub(super) fn parse(text: &[u8]) -> std::result::Result<CellRecord, String> {
        let record: CellRecord = serde_json::from_slice(text).map_err(|e| format!("this is no cell: {e}"))?;
        match record.epochs.is_empty() || record.epochs.iter().any(|e| !e.top1.is_finite()) {
            true => Err("this cell has no accuracy".into()),
            false => Ok(record),
        }
    }

    /// The name that its cell's file has, or had before it was packed.
    pub fn file(&self) -> String {
        file([&self.ancestor, &self.data, &self.method, &self.shape], &self.settings)
    }

    /// Accuracy after the last epoch.
    pub fn last(&self) -> f64 {
        self.epochs.last().map_or(f64::NAN, |e| e.top1)
    }

    /// The best accuracy over all epochs of training, which is what the paper reports.
    pub fn best(&self) -> f64 {
        self.epochs.iter().filter(|e| e.epoch > 0).map(|e| e.top1).fold(f64::NAN, f64::max)
    }
}
