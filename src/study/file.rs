//! The study as a person writes it: a TOML file, and what it includes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::search::EpsSearch;
use super::text::Text;
use crate::data::{Side, Target, Texts};
use crate::error::{Error, ErrorKind, Result};

/// Images or samples that an ancestor is clustered and fitted on, where the study gives no number.
pub(super) const SAMPLES: usize = 256;

/// A study file. Everything but the grid may come from the file that it includes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    /// What the study is called.
    pub title: Option<String>,
    /// What a reader should know: paragraphs of Markdown.
    pub note: Option<String>,
    /// A file whose tables are used where this one has none of that name.
    pub include: Option<PathBuf>,
    /// The method whose last accuracy others are timed to.
    pub reference: Option<String>,
    /// How every cell is trained.
    pub training: Option<Training>,
    /// Ancestors by name.
    #[serde(default)]
    pub ancestor: BTreeMap<String, Ancestor>,
    /// Data sets by name.
    #[serde(default)]
    pub data: BTreeMap<String, Data>,
    /// Methods by name.
    #[serde(default)]
    pub method: BTreeMap<String, Method>,
    /// Shapes by name.
    #[serde(default)]
    pub shape: BTreeMap<String, DescendantSize>,
    /// What is combined with what.
    #[serde(default)]
    pub grid: Vec<Grid>,
}

/// How a cell is trained: AdamW, a warm-up and a cosine.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Training {
    /// Epochs.
    pub epochs: u32,
    /// Images in a batch.
    pub batch_size: u32,
    /// The highest learning rate.
    pub lr: f64,
    /// Epochs in which it rises.
    pub warmup: f64,
    /// Weight decay of matrices.
    pub weight_decay: f64,
    /// Share of every label that is spread over all classes.
    pub label_smoothing: f64,
    /// Random transforms, as `offshoot tune --augment` takes them.
    pub augment: String,
    /// The norm that gradients are clipped to.
    pub clip: Option<f64>,
}

impl Default for Training {
    fn default() -> Self {
        Training {
            epochs: 10,
            batch_size: 64,
            lr: 1e-3,
            warmup: 0.5,
            weight_decay: 0.05,
            label_smoothing: 0.1,
            augment: "light".into(),
            clip: Some(1.0),
        }
    }
}

/// An ancestor.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ancestor {
    /// Its file.
    pub model: PathBuf,
    /// Images that its heads are clustered on and that descendants are fitted on.
    pub images: Option<PathBuf>,
    /// Arrays for its inputs instead, as `--inputs` takes them.
    pub inputs: Option<PathBuf>,
    /// Texts instead, as `--texts` takes them.
    pub texts: Option<PathBuf>,
    /// How many of them at most.
    pub limit: Option<usize>,
    /// Side of its images in pixels, where its graph leaves that open: as `--input-size`.
    pub input_size: Option<usize>,
    /// Side of its images in pixels, where it is to be another.
    pub image_size: Option<usize>,
    /// As `--pooling`: what a new classifier looks at.
    pub pooling: Option<String>,
    /// As `--text-column`.
    pub text_column: Option<Columns>,
    /// As `--tokenizer`; for the texts of data, too.
    pub tokenizer: Option<PathBuf>,
    /// As `--max-length`; for the texts of data, too.
    pub max_length: Option<usize>,
    /// As `--padding-side`; for the texts of data, too.
    pub padding_side: Option<Side>,
}

/// A data set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Data {
    /// Its file or folder of labelled images.
    pub path: Option<PathBuf>,
    /// Arrays for the inputs of a model with their labels `y` instead, as `--inputs` takes them.
    pub inputs: Option<PathBuf>,
    /// Labelled texts instead, as `--texts` takes them.
    pub texts: Option<PathBuf>,
    /// Images or samples to train on at most, drawn from every class alike; the seed decides.
    pub train: Option<usize>,
    /// Those to validate on at most; the same for every cell.
    pub validate: Option<usize>,
    /// As `--label-column`.
    pub label_column: Option<String>,
    /// As `--text-column`.
    pub text_column: Option<Columns>,
    /// As `--tokenizer`; else that of the ancestor.
    pub tokenizer: Option<PathBuf>,
    /// As `--max-length`; else that of the ancestor.
    pub max_length: Option<usize>,
    /// As `--padding-side`; else that of the ancestor.
    pub padding_side: Option<Side>,
}

/// The column of texts, or the two of pairs.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Columns {
    /// One.
    One(String),
    /// Two.
    Many(Vec<String>),
}

impl Columns {
    fn names(&self) -> Vec<String> {
        match self {
            Columns::One(name) => vec![name.clone()],
            Columns::Many(names) => names.clone(),
        }
    }
}

/// What samples are, and where they lie.
#[derive(Clone, Debug)]
pub(super) enum SampleSpec {
    /// Images at a path.
    Images(PathBuf),
    /// The arrays of a file.
    Inputs(PathBuf),
    /// Texts.
    Texts(Texts),
}

impl Ancestor {
    /// What it is measured and fitted on.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where that is not one thing, and for keys that are for another.
    pub(super) fn given(&self) -> Result<SampleSpec> {
        let sources = [("images", &self.images), ("inputs", &self.inputs), ("texts", &self.texts)];
        one_of(sources)?;
        let of_texts = of_texts(&self.text_column, &self.tokenizer, self.max_length, self.padding_side);
        let of_images = [("input-size", self.input_size.is_some()), ("image-size", self.image_size.is_some())];
        only(&of_texts, "texts", self.texts.is_some())?;
        only(&of_images, "images", self.images.is_some())?;
        Ok(match sources {
            [(_, Some(images)), ..] => SampleSpec::Images(images.clone()),
            [_, (_, Some(inputs)), _] => SampleSpec::Inputs(inputs.clone()),
            [.., (_, texts)] => SampleSpec::Texts(Texts {
                path: texts.clone().unwrap_or_default(),
                columns: self.text_column.as_ref().map(Columns::names).unwrap_or_default(),
                tokenizer: self.tokenizer.clone(),
                max_length: self.max_length,
                padding_side: self.padding_side,
                limit: Some(self.limit.unwrap_or(SAMPLES)),
                ..Texts::default()
            }),
        })
    }
}

impl Data {
    /// What it holds. Texts are cut into tokens as those of `ancestor`, where nothing else is said.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where that is not one thing, and for keys that are for another.
    pub(super) fn given(&self, ancestor: &Ancestor) -> Result<SampleSpec> {
        let sources = [("path", &self.path), ("inputs", &self.inputs), ("texts", &self.texts)];
        one_of(sources)?;
        let of_texts = of_texts(&self.text_column, &self.tokenizer, self.max_length, self.padding_side);
        only(&of_texts, "texts", self.texts.is_some())?;
        only(&[("label-column", self.label_column.is_some())], "texts and images", self.inputs.is_none())?;
        Ok(match sources {
            [(_, Some(path)), ..] => SampleSpec::Images(path.clone()),
            [_, (_, Some(inputs)), _] => SampleSpec::Inputs(inputs.clone()),
            [.., (_, texts)] => SampleSpec::Texts(Texts {
                path: texts.clone().unwrap_or_default(),
                columns: self.text_column.as_ref().map(Columns::names).unwrap_or_default(),
                tokenizer: self.tokenizer.clone().or(ancestor.tokenizer.clone()),
                max_length: self.max_length.or(ancestor.max_length),
                padding_side: self.padding_side.or(ancestor.padding_side),
                target: Target::Label(self.label_column.clone()),
                ..Texts::default()
            }),
        })
    }

    /// True for arrays and texts, which are taken as they are.
    pub fn is_given(&self) -> bool {
        self.path.is_none()
    }
}

/// The keys that say how texts are cut into tokens, and which of them are given.
fn of_texts(
    columns: &Option<Columns>,
    tokenizer: &Option<PathBuf>,
    length: Option<usize>,
    side: Option<Side>,
) -> [(&'static str, bool); 4] {
    [
        ("text-column", columns.is_some()),
        ("tokenizer", tokenizer.is_some()),
        ("max-length", length.is_some()),
        ("padding-side", side.is_some()),
    ]
}

/// Checks that samples come from one of these keys.
fn one_of(sources: [(&str, &Option<PathBuf>); 3]) -> Result<()> {
    let named: Vec<&str> = sources.iter().filter(|(_, path)| path.is_some()).map(|(key, _)| *key).collect();
    let keys = sources.map(|(key, _)| format!("`{key}`")).join(", ");
    match named[..] {
        [_] => Ok(()),
        [] => {
            Err(Error::new(ErrorKind::Usage, "nothing says where the samples are").hint(format!("give one of {keys}")))
        }
        _ => Err(Error::new(ErrorKind::Usage, format!("`{}` and `{}` both give samples", named[0], named[1]))
            .hint(format!("give one of {keys}"))),
    }
}

/// Checks that keys which are for some samples alone stand beside these.
fn only(keys: &[(&str, bool)], what: &str, is_such: bool) -> Result<()> {
    match keys.iter().find(|(_, given)| *given && !is_such) {
        Some((key, _)) => {
            Err(Error::new(ErrorKind::Usage, format!("`{key}` is for {what}, and there are none")).hint("leave it out"))
        }
        None => Ok(()),
    }
}

/// The size of a descendant.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DescendantSize {
    /// As `offshoot grow --layers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Text>,
    /// As `--heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<Text>,
    /// As `--width`: the paper's w.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<f64>,
    /// As `--ffn-width`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffn_width: Option<Text>,
    /// As `--embedding-dim`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_dim: Option<usize>,
    /// Parameters of the whole model, for `shrink`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
}

impl DescendantSize {
    /// This shape, and what another says beside it or instead.
    pub fn with(&self, other: &DescendantSize) -> DescendantSize {
        let heads = other.heads.is_some() || other.width.is_some();
        DescendantSize {
            layers: other.layers.clone().or(self.layers.clone()),
            heads: if heads { other.heads.clone() } else { self.heads.clone() },
            width: if heads { other.width } else { self.width },
            ffn_width: other.ffn_width.clone().or(self.ffn_width.clone()),
            embedding_dim: other.embedding_dim.or(self.embedding_dim),
            parameters: other.parameters.or(self.parameters),
        }
    }
}

/// Which of the two a row of a table follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Follows {
    /// The paper's description (or, for a method that it compares with, the description of that method).
    Description,
    /// The published code, where it differs from the description.
    Code,
    /// Neither: something else.
    Neither,
}

impl Follows {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Follows::Description => "description",
            Follows::Code => "code",
            Follows::Neither => "neither",
        }
    }
}

/// What becomes of the ancestor's classifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Classifier {
    /// A new one takes its place, as in the paper.
    #[default]
    New,
    /// It stays, where the data has the ancestor's classes.
    Kept,
}

/// A method.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Method {
    /// As `offshoot grow --init`, or `shrink`, `magnitude` or `model`.
    pub init: String,
    /// The file, for `model`: what another tool made of the ancestor.
    #[serde(skip_serializing)]
    pub model: Option<PathBuf>,
    /// Which of the two its rows follow.
    #[serde(skip_serializing)]
    pub follows: Option<Follows>,
    /// As `--order`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// As `--projection`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection: Option<String>,
    /// As `--eps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<Text>,
    /// As `--ffn-eps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffn_eps: Option<Text>,
    /// As `--min-heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_heads: Option<usize>,
    /// As `--cluster`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// As `--centroid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub centroid: Option<String>,
    /// As `--ffn-centroid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffn_centroid: Option<String>,
    /// As `--ffn-rule`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffn_rule: Option<String>,
    /// As `--ffn-clusters`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffn_clusters: Option<String>,
    /// As `--inherit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inherit: Option<Text>,
    /// As `--share`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<usize>,
    /// As `--transform`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transform: Option<String>,
    /// What becomes of the classifier.
    #[serde(default)]
    pub classifier: Classifier,
    /// What this method needs of the shape to come to the size that others have.
    #[serde(default)]
    pub shape: DescendantSize,
    /// Looks for the hyperparameters first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<EpsSearch>,
}

/// A part of the study: every combination of what it names.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Grid {
    /// Names of ancestors.
    pub ancestors: Vec<String>,
    /// Names of methods.
    pub methods: Vec<String>,
    /// Names of shapes.
    pub shapes: Vec<String>,
    /// Names of data sets.
    pub data: Vec<String>,
    /// Shares of the training images.
    #[serde(default = "whole")]
    pub fractions: Vec<f64>,
    /// Seeds.
    #[serde(default = "three")]
    pub seeds: Vec<u64>,
    /// Epochs, where they are others than the study's.
    pub epochs: Option<u32>,
    /// The learning rate, where it is another.
    pub lr: Option<f64>,
    /// Draw the attention of the first and the last layer.
    #[serde(default)]
    pub attention: bool,
}

fn whole() -> Vec<f64> {
    vec![1.0]
}

fn three() -> Vec<u64> {
    vec![0, 1, 2]
}

impl File {
    /// Reads a study and what it includes. Paths become relative to the working folder.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] for a file that cannot be read, [`ErrorKind::Format`] for one that is no study, with the line.
    pub fn read(path: &Path) -> Result<File> {
        let mut file = File::read_one(path)?;
        let Some(include) = file.include.take() else { return Ok(file) };
        let mut other = File::read_one(&include)?;
        if other.include.is_some() || !other.grid.is_empty() {
            return Err(Error::new(ErrorKind::Format, "an included file includes no other and has no grid")
                .at(include)
                .hint("keep the grids in the studies"));
        }
        // What this file says wins.
        other.ancestor.append(&mut file.ancestor);
        other.data.append(&mut file.data);
        other.method.append(&mut file.method);
        other.shape.append(&mut file.shape);
        Ok(File {
            training: file.training.or(other.training),
            ancestor: other.ancestor,
            data: other.data,
            method: other.method,
            shape: other.shape,
            ..file
        })
    }

    fn read_one(path: &Path) -> Result<File> {
        let text = fs::read_to_string(path)
            .map_err(|e| Error::io(path, e).hint("give a study: a TOML file, see docs/studies/README.md"))?;
        let mut file: File = toml::from_str(&text).map_err(|e| {
            Error::new(ErrorKind::Format, e.to_string().trim().to_string())
                .at(path)
                .hint("docs/studies/README.md lists the keys")
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let beside = |p: &mut PathBuf| *p = folder.join(&*p);
        file.include.iter_mut().for_each(beside);
        for ancestor in file.ancestor.values_mut() {
            beside(&mut ancestor.model);
            let Ancestor { images, inputs, texts, tokenizer, .. } = ancestor;
            [images, inputs, texts, tokenizer].into_iter().flatten().for_each(beside);
        }
        for data in file.data.values_mut() {
            let Data { path, inputs, texts, tokenizer, .. } = data;
            [path, inputs, texts, tokenizer].into_iter().flatten().for_each(beside);
        }
        file.method.values_mut().filter_map(|m| m.model.as_mut()).for_each(beside);
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_overlays_another() {
        let shape = |text: &str| toml::from_str::<DescendantSize>(text).unwrap();
        let base = shape("layers = 6\nwidth = 2\n");
        assert_eq!(base.with(&shape("heads = [4]")), shape("layers = 6\nheads = '4,'"));
        assert_eq!(base.with(&DescendantSize::default()), base);
        assert_eq!(base.with(&shape("ffn-width = '50%'")).width, Some(2.0));
    }

    #[test]
    fn what_a_study_says_wins_over_what_it_includes() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("common.toml", "[training]\nepochs = 3\n[shape.a]\nlayers = 1\n[shape.b]\nlayers = 2\n");
        write("study.toml", "include = 'common.toml'\n[shape.b]\nlayers = 5\n[data.d]\npath = 'd'\n");
        let file = File::read(&folder.path().join("study.toml")).unwrap();
        assert_eq!(file.training.unwrap().epochs, 3);
        assert_eq!(file.shape["a"].layers, Some(Text("1".into())));
        assert_eq!(file.shape["b"].layers, Some(Text("5".into())));
        assert_eq!(file.data["d"].path, Some(folder.path().join("d")));
    }
}
