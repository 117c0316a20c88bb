//! What lies beside an ancestor, and its way into the folder of a child.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::correct::{Change, Corrected, correct, length, pooling, processor};
use super::sizes::ModelSizes;
use crate::data::{folders_beside, json_beside};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::replace_file;

/// Far more bytes than a configuration has.
const MOST: u64 = 1 << 24;
const HINT: &str = "mend the file, or move it away";
/// Holds the sizes of a model.
const CONFIG: &str = "config.json";
/// Holds the size of images.
const PROCESSOR: &str = "preprocessor_config.json";
/// Hold the length of texts.
const OF_TEXTS: [&str; 2] = ["tokenizer_config.json", "sentence_bert_config.json"];
/// Lists the modules of sentence-transformers.
const MODULES: &str = "modules.json";

/// What belongs to a tokenizer; beside one that was named it is looked for first.
const OF_TOKENIZERS: [&str; 13] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tokenizer.model",
    "bpe.codes",
    "sentence_bert_config.json",
];
/// What belongs to a model.
const OF_MODELS: [&str; 6] = [
    CONFIG,
    "generation_config.json",
    PROCESSOR,
    "processor_config.json",
    MODULES,
    "config_sentence_transformers.json",
];
/// Files that name sizes.
const NAMING: [&str; 4] = [CONFIG, PROCESSOR, OF_TEXTS[0], OF_TEXTS[1]];
/// What is in the folder of a module.
const OF_MODULES: [&str; 3] = [CONFIG, "model.safetensors", "pytorch_model.bin"];

/// What lies beside an ancestor.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    /// Where each file is to be in the folder of a child, and where it lies.
    files: Vec<(PathBuf, PathBuf)>,
    /// Those of them that name sizes.
    configs: Vec<(PathBuf, Map<String, Value>)>,
}

/// What was written beside a child.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BundleReport {
    /// The folder of the child.
    pub folder: PathBuf,
    /// Its files beside the child.
    pub files: Vec<PathBuf>,
    /// What was changed, by file.
    pub corrected: Vec<Correction>,
    /// What they do not say of the child, or say wrongly.
    pub warnings: Vec<String>,
}

/// A change in a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Correction {
    /// The file.
    pub file: PathBuf,
    /// What was changed.
    #[serde(flatten)]
    pub change: Change,
}

impl fmt::Display for Correction {
    /// `num_attention_heads 12 -> 6`, with the file where it is another than `config.json`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { key, from, to } = &self.change;
        if self.file.as_os_str() != CONFIG {
            write!(f, "{} ", self.file.display())?;
        }
        match (from, to) {
            (Value::Null, Value::Object(_)) => write!(f, "{key} of its own"),
            (Value::Null, to) => write!(f, "{key} {to}"),
            (_, Value::Null) => write!(f, "no {key}"),
            (Value::Object(_) | Value::Array(_), _) => write!(f, "{key} of its own"),
            (from, to) => write!(f, "{key} {from} -> {to}"),
        }
    }
}

impl Bundle {
    /// What lies beside a model, in its folder or in the one above it that is called `onnx`; a tokenizer that was
    /// named, a file or its folder, takes the place of the model's own.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] for a configuration that is malformed, [`ErrorKind::Io`] for one that cannot be read.
    pub fn beside(model: &Path, tokenizer: Option<&Path>) -> Result<Bundle> {
        let places = folders_beside(model);
        let named = tokenizer.map(|path| if path.is_dir() { path.join(OF_TOKENIZERS[0]) } else { path.to_path_buf() });
        let first = named.iter().flat_map(|path| folders_beside(path).into_iter().take(1));
        let with_tokenizer: Vec<PathBuf> = first.chain(places.iter().cloned()).collect();
        let mut bundle = Bundle::default();
        if let Some(named) = named.filter(|path| path.is_file()) {
            bundle.files.push((OF_TOKENIZERS[0].into(), named));
        }
        OF_TOKENIZERS.iter().for_each(|name| bundle.find(&with_tokenizer, Path::new(name)));
        OF_MODELS.iter().for_each(|name| bundle.find(&places, Path::new(name)));
        for folder in bundle.modules()? {
            OF_MODULES.iter().for_each(|name| bundle.find(&places, &folder.join(name)));
        }
        let named_sizes = bundle.files.iter().filter(|(name, _)| NAMING.iter().any(|named| name.ends_with(named)));
        for (name, path) in named_sizes.cloned().collect::<Vec<_>>() {
            match json_beside(&path, MOST, HINT)? {
                Some(Value::Object(config)) => bundle.configs.push((name, config)),
                _ => return Err(Error::new(ErrorKind::Format, "not an object").at(path).hint(HINT)),
            }
        }
        Ok(bundle)
    }

    /// Takes the first file of a name.
    fn find(&mut self, places: &[PathBuf], name: &Path) {
        let found = places.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
        if let Some(path) = found.filter(|_| self.files.iter().all(|(own, _)| own != name)) {
            self.files.push((name.to_path_buf(), path));
        }
    }

    /// The folders of the modules of sentence-transformers; a path that leads elsewhere is none.
    fn modules(&self) -> Result<Vec<PathBuf>> {
        let Some((_, path)) = self.files.iter().find(|(name, _)| name.as_os_str() == MODULES) else {
            return Ok(Vec::new());
        };
        let list = json_beside(path, MOST, HINT)?.unwrap_or_default();
        let paths = list.as_array().into_iter().flatten().filter_map(|module| module.get("path")?.as_str());
        let inside = |path: &&Path| {
            path.components().next().is_some() && path.components().all(|c| matches!(c, Component::Normal(_)))
        };
        Ok(paths.map(Path::new).filter(inside).map(Path::to_path_buf).collect())
    }

    /// True where there is nothing.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// True where sentence-transformers is told which modules stand behind the model.
    pub fn lists_modules(&self) -> bool {
        self.files.iter().any(|(name, _)| name.as_os_str() == MODULES)
    }

    /// The files that lie beside the ancestor.
    pub fn sources(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(_, path)| path.as_path())
    }

    /// The files that are to lie in the folder of a child.
    pub fn targets(&self, folder: &Path) -> impl Iterator<Item = PathBuf> {
        self.files.iter().map(move |(name, _)| folder.join(name))
    }

    /// Copies them into a folder, each at once or not at all, with the sizes of a child (`is`) in the place of its
    /// ancestor's (`was`); `sources` has the ancestor's layer of each of the child's. Files of the same names are
    /// replaced.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] where one cannot be read or written.
    pub fn write(&self, folder: &Path, was: &ModelSizes, is: &ModelSizes, sources: &[usize]) -> Result<BundleReport> {
        let mut report = BundleReport { folder: folder.to_path_buf(), ..BundleReport::default() };
        for (name, from) in &self.files {
            let target = folder.join(name);
            let within = target.parent().unwrap_or(folder);
            fs::create_dir_all(within).map_err(|e| Error::io(within, e))?;
            let config = self.configs.iter().find(|(own, _)| own == name);
            let corrected = config.map(|(_, config)| corrected(name, config, was, is, sources));
            // What says no size is copied to the last byte.
            match corrected.as_ref().filter(|(_, done)| !done.changes.is_empty()) {
                Some((config, _)) => replace_file(&target, |out| {
                    serde_json::to_writer_pretty(&mut *out, config)?;
                    out.write_all(b"\n")
                })?,
                None => {
                    let mut source = File::open(from).map_err(|e| Error::io(from, e))?;
                    replace_file(&target, |out| io::copy(&mut source, out).map(drop))?
                }
            };
            let done = corrected.map(|(_, done)| done).unwrap_or_default();
            let correction = |change| Correction { file: name.clone(), change };
            report.corrected.extend(done.changes.into_iter().map(correction));
            report.warnings.extend(done.warnings.into_iter().map(|text| format!("{}: {text}", name.display())));
            report.files.push(name.clone());
        }
        Ok(report)
    }
}

/// A configuration with the sizes of a child.
fn corrected(
    name: &Path,
    config: &Map<String, Value>,
    was: &ModelSizes,
    is: &ModelSizes,
    sources: &[usize],
) -> (Map<String, Value>, Corrected) {
    let mut config = config.clone();
    let done = match name.to_str() {
        Some(CONFIG) => correct(&mut config, was, is, sources),
        Some(name) if OF_TEXTS.contains(&name) => length(&mut config, was, is),
        Some(PROCESSOR) => processor(&mut config, was, is),
        _ => pooling(&mut config, was, is),
    };
    (config, done)
}
