//! Children with what lies beside their ancestor: one folder each.

use std::fs;
use std::path::{Path, PathBuf};

use super::named;
use crate::anatomy::EMBEDDING;
use crate::bundle::{Bundle, BundleReport, ModelSizes};
use crate::cli::output::{self, check_output};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::Model;
use crate::parallel;

/// What a child is called in its folder.
const CHILD: &str = "model.onnx";

/// The file of a child whose folder was named.
///
/// # Errors
/// [`ErrorKind::Usage`] for the name of a file.
pub fn in_folder(output: &Path) -> Result<PathBuf> {
    if output.extension().is_some_and(|extension| extension == "onnx") {
        return Err(Error::new(ErrorKind::Usage, "with --with-configs the output is a folder for one child")
            .at(output)
            .hint(format!("name a folder; the child becomes {CHILD} in it, beside its configurations")));
    }
    Ok(output.join(CHILD))
}

/// What lies beside an ancestor, and the sizes that it is said to have there.
pub struct Companions {
    bundle: Bundle,
    ancestor: ModelSizes,
}

impl Companions {
    /// Looks for it; `None` where there is nothing.
    ///
    /// # Errors
    /// Those of [`Bundle::beside`] and [`ModelSizes::of`].
    pub fn find(path: &Path, tokenizer: Option<&Path>, model: &Model) -> Result<Option<Companions>> {
        let bundle = Bundle::beside(path, tokenizer)?;
        if bundle.is_empty() {
            return Ok(None);
        }
        Ok(Some(Companions { bundle, ancestor: named(path, ModelSizes::of(model))? }))
    }

    /// The same for who asked for it.
    ///
    /// # Errors
    /// Those of [`Self::find`], and [`ErrorKind::Usage`] where there is nothing.
    pub fn asked(wanted: bool, path: &Path, tokenizer: Option<&Path>, model: &Model) -> Result<Option<Companions>> {
        if !wanted {
            return Ok(None);
        }
        match Companions::find(path, tokenizer, model)? {
            Some(found) => Ok(Some(found)),
            None => {
                Err(Error::new(ErrorKind::Usage, "--with-configs copies what lies beside the model: there is nothing")
                    .at(path)
                    .hint("put its config.json and tokenizer.json beside it, or leave --with-configs out"))
            }
        }
    }

    /// Checks before any work that a child may be written with them: its folder may be new, and no file in it is one
    /// that is read, or another's without `--force`.
    ///
    /// # Errors
    /// Those of [`check_output`].
    pub fn check(&self, child: &Path, model: &Path, force: bool) -> Result<()> {
        let folder = folder(child);
        let inputs: Vec<&Path> = self.bundle.sources().chain([model]).collect();
        if !folder.is_dir() {
            return check_output(folder, &inputs, force);
        }
        check_output(child, &inputs, force)?;
        // Folders of modules may have to be made.
        let targets = self.bundle.targets(folder);
        targets.filter(|path| path.exists()).try_for_each(|path| check_output(&path, &inputs, force))
    }

    /// Makes the folder of a child where there is none yet.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn make_folder(child: &Path) -> Result<()> {
        let folder = folder(child);
        match folder.is_dir() {
            true => Ok(()),
            false => fs::create_dir(folder).map_err(|e| Error::io(folder, e)),
        }
    }

    /// Writes them beside a child, and says which sizes were corrected and which could not be; `sources` has the
    /// ancestor's layer of each of the child's.
    ///
    /// # Errors
    /// Those of [`Bundle::write`] and [`ModelSizes::of`].
    pub fn write(&self, child: &Path, model: &Model, sources: &[usize]) -> Result<BundleReport> {
        if !parallel::is_first() {
            return Ok(BundleReport::default());
        }
        let is = named(child, ModelSizes::of(model))?;
        let mut report = self.bundle.write(folder(child), &self.ancestor, &is, sources)?;
        let outputs = &model.graph().output;
        if self.bundle.lists_modules() && outputs.len() == 1 && outputs[0].name() == EMBEDDING {
            report.warnings.push(format!(
                "modules.json: it lists what pools states of tokens, and the child gives `{EMBEDDING}`, which is \
                 pooled already: take its output as it is, or make the child without --pooling"
            ));
        }
        for warning in &report.warnings {
            output::warn(warning);
        }
        let changed: Vec<String> = report.corrected.iter().map(|c| c.to_string()).collect();
        let changed = if changed.is_empty() { "as they are".into() } else { format!("with {}", changed.join(", ")) };
        let (files, folder) = (report.files.len(), report.folder.display());
        output::note(&format!("wrote {files} files beside the model into {folder}, {changed}"));
        Ok(report)
    }
}

fn folder(child: &Path) -> &Path {
    child.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
