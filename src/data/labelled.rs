//! Data sets: images with labels, class names and a split into training and validation.
//!
//! A [`Dataset`] is an [`ImageSource`] of which more is known. Labels come from the folders that pictures lie in, or from the
//! files that hold the images; a data set without any serves distillation.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rand::seq::SliceRandom;
use sha2::{Digest, Sha256};

use super::loader::{InputShape, Loader};
use super::preprocess::{Layout, Preprocess, PreprocessFlags};
use super::random::{Purpose, generator};
use super::source::{
    Content, Found, ImageSource, Labels, Opened, Opener, Role, find, has_picture_extension, hexadecimal, is_folder,
};
use crate::error::{Error, ErrorKind, Result};

const LABELS_HINT: &str = "give each class a folder of its own (DIR/CLASS/picture.jpg), or a file that holds labels, too; \
                           distillation from a teacher needs none";

/// How a data set is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatasetOptions {
    /// Whether labels are left aside, wrong ones too, as for distillation.
    pub ignore_labels: bool,
    /// The column of the pictures in Parquet files; `None` for `image` or `img`.
    pub image_column: Option<String>,
    /// The column of the labels in Parquet files; `None` for `label`, `labels` or `fine_label`.
    pub label_column: Option<String>,
}

/// The images for training and those for validation, as ascending indices into a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// The images to train on.
    pub training: Vec<usize>,
    /// The images to validate on.
    pub validation: Vec<usize>,
}

/// Images with what is known of their classes. Clones share the images, and with them the record of skipped ones.
#[derive(Clone, Debug)]
pub struct Dataset {
    source: Arc<ImageSource>,
    /// The label of every image, or why there are none.
    labels: Result<Vec<u32>, String>,
    classes: Option<Vec<String>>,
    given_split: Option<Split>,
}

impl Dataset {
    /// Opens what is at `path`:
    ///
    /// - a folder with a folder of pictures for each class, whose sorted names are the classes; in `train` and one of
    ///   `val`, `valid`, `validation` or `test` where these are there;
    /// - an IDX file of images, with the file of the labels beside it (`idx1` and `labels` for `idx3` and `images`);
    /// - an `.npz` archive with `x` and `y`, or `x_train`, `y_train`, `x_test` and `y_test`;
    /// - a binary CIFAR-10 or CIFAR-100 file;
    /// - a WebDataset tar shard, plain or gzipped;
    /// - a Parquet file with an image and a label column;
    /// - a folder of such files of one kind, whose names say what is for training (`train`, `data_batch`) and what for
    ///   validation (`val`, `valid`, `validation`, else `test` or `t10k`);
    /// - or anything else that [`ImageSource::open`] takes, without labels.
    ///
    /// # Errors
    ///
    /// Those of [`ImageSource::open`]; `Format` if labels are malformed, negative, or not as many as images, or if the
    /// parts of the data set do not agree in their classes; `Images` if a class has no pictures or a folder holds both
    /// pictures and other files of images.
    pub fn open(path: impl AsRef<Path>, options: &DatasetOptions) -> Result<Self> {
        let path = path.as_ref();
        let mut opener = Opener { labels: !options.ignore_labels, ..Opener::default() };
        for (names, name) in
            [(&mut opener.image_columns, &options.image_column), (&mut opener.label_columns, &options.label_column)]
        {
            if let Some(name) = name {
                *names = vec![name.clone()];
            }
        }
        let parts = if is_folder(path)? { open_folder(path, &opener)? } else { opener.open(path)? };
        Dataset::new(path, parts, options.ignore_labels)
    }

    fn new(path: &Path, mut parts: Vec<Opened>, ignore_labels: bool) -> Result<Self> {
        let has = |role| parts.iter().any(|part| part.role == Some(role));
        let validation = if has(Role::Validation) { Role::Validation } else { Role::Test };
        let is_split = has(Role::Training) && has(validation) && parts.iter().all(|part| part.role.is_some());
        if is_split {
            parts.retain(|part| part.role == Some(Role::Training) || part.role == Some(validation));
        }
        let classes = agreed_classes(&parts)?;
        let mut contents = Vec::new();
        let mut descriptions = Vec::new();
        for part in parts {
            contents.push((part.path.clone(), part.content));
            descriptions.push((part.path, part.labels, part.role));
        }
        let source = ImageSource::new(path, contents)?;
        let mut labels = Ok(Vec::with_capacity(source.len()));
        let mut split = Split::default();
        let mut first = 0;
        for ((path, part_labels, role), count) in descriptions.into_iter().zip(source.counts()) {
            let indices = first..first + count;
            if role == Some(Role::Training) { &mut split.training } else { &mut split.validation }.extend(indices);
            labels = match (labels, part_labels) {
                (Ok(mut labels), Labels::Present(values)) => {
                    if values.len() != count {
                        return Err(Error::new(
                            ErrorKind::Format,
                            format!("there are {count} images and {} labels", values.len()),
                        )
                        .at(path)
                        .hint("give the labels that belong to the images, one each"));
                    }
                    for (index, value) in values.into_iter().enumerate() {
                        labels.push(u32::try_from(value).map_err(|_| {
                            Error::new(ErrorKind::Format, format!("its label is {value}, which stands for no class"))
                                .at(source.file(first + index))
                                .hint("labels count from 0; leave out parts that have none")
                        })?);
                    }
                    Ok(labels)
                }
                (Ok(labels), Labels::Absent(reason)) if labels.is_empty() => {
                    Err(format!("`{}` has no labels: {reason}", path.display()))
                }
                (Err(reason), Labels::Absent(_)) => Err(reason),
                (_, Labels::Ignored) => Err("its labels were left aside".into()),
                _ => {
                    return Err(Error::new(
                        ErrorKind::Format,
                        "some files of the data set have labels, and others, such as this one, differ",
                    )
                    .at(path)
                    .hint("give all files labels, or none"));
                }
            };
            first += count;
        }
        let classes = if ignore_labels { None } else { classes };
        Ok(Dataset { source: Arc::new(source), labels, classes, given_split: is_split.then_some(split) })
    }

    /// The number of images, readable or not.
    pub fn len(&self) -> usize {
        self.source.len()
    }

    /// Whether there are no images; never so after [`Dataset::open`] succeeded.
    pub fn is_empty(&self) -> bool {
        self.source.is_empty()
    }

    /// The images.
    pub fn source(&self) -> &Arc<ImageSource> {
        &self.source
    }

    /// The class of every image, counted from 0; `None` if the data set has no labels.
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref().ok()
    }

    /// The class of every image, counted from 0.
    ///
    /// # Errors
    ///
    /// `Images`, saying why the data set has no labels.
    pub fn require_labels(&self) -> Result<&[u32]> {
        self.labels.as_deref().map_err(|reason| Error::new(ErrorKind::Images, reason.clone()).hint(LABELS_HINT))
    }

    /// The names of the classes, where the data set tells them.
    pub fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    /// The number of classes: that of their names, or one more than the highest label; `None` without labels.
    pub fn class_count(&self) -> Option<usize> {
        let labels = self.labels()?;
        let highest = labels.iter().max().map_or(0, |&label| label as usize + 1);
        Some(self.classes().map_or(highest, <[String]>::len))
    }

    /// The split that comes with the data set.
    pub fn given_split(&self) -> Option<&Split> {
        self.given_split.as_ref()
    }

    /// Splits off the given `share` of the images, between 0 and 1, for validation: drawn at random, the same for the
    /// same seed, and from every class alike, so that the number from a class differs from its share by less than one. At
    /// least one image is left for training.
    pub fn split(&self, share: f64, seed: u64) -> Split {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.shuffle(&mut generator(seed, Purpose::Split, 0, 0));
        if let Some(labels) = self.labels() {
            order.sort_by_key(|&index| labels[index]);
        }
        // Classes lie one after the other, and every (1 / share)-th image is taken.
        let share = share.clamp(0.0, 1.0);
        let taken = |count: usize| (count as f64 * share + 0.5).floor() as usize;
        let (mut validation, mut training): (Vec<_>, Vec<_>) =
            (0..self.len()).partition(|&position| taken(position + 1) > taken(position));
        if training.is_empty() {
            training.extend(validation.pop());
        }
        let sorted = |positions: Vec<usize>| {
            let mut indices: Vec<usize> = positions.into_iter().map(|position| order[position]).collect();
            indices.sort_unstable();
            indices
        };
        Split { training: sorted(training), validation: sorted(validation) }
    }

    /// A hash of the images, as [`ImageSource::fingerprint`], and of the labels; for resuming and for records.
    ///
    /// # Errors
    ///
    /// `Io` if a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        hasher.update(self.source.fingerprint()?);
        for label in self.labels().unwrap_or_default() {
            hasher.update(label.to_le_bytes());
        }
        Ok(hexadecimal(hasher))
    }

    /// Checks that the labels are classes of a model of `class_count` outputs.
    ///
    /// # Errors
    ///
    /// Those of [`Dataset::require_labels`]; `Images` if the data set names another number of classes, or if a label is
    /// out of range, naming the first such image.
    pub fn check_labels(&self, class_count: usize) -> Result<()> {
        let labels = self.require_labels()?;
        let needed = self.class_count().unwrap_or(0);
        let hint = format!("--classes {needed} replaces the classifier by one of {needed} classes");
        if let Some(index) = labels.iter().position(|&label| label as usize >= class_count) {
            return Err(Error::new(
                ErrorKind::Images,
                format!("its label is {}, and the model tells {class_count} classes apart, from 0", labels[index]),
            )
            .at(self.source.file(index))
            .hint(hint));
        }
        match self.classes() {
            Some(classes) if classes.len() != class_count => Err(Error::new(
                ErrorKind::Images,
                format!("the data set has {} classes, and the model tells {class_count} apart", classes.len()),
            )
            .at(self.source.path())
            .hint(hint)),
            _ => Ok(()),
        }
    }

    /// The transform that prepares the pictures for a model, as [`ImageSource::preprocess`].
    ///
    /// # Errors
    ///
    /// As [`ImageSource::preprocess`].
    pub fn preprocess(
        &self,
        flags: &PreprocessFlags,
        metadata: Option<&str>,
        input: InputShape,
    ) -> Result<Option<Preprocess>> {
        self.source.preprocess(flags, metadata, input)
    }

    /// A loader of the images with the given indices, in this order, through the evaluation transform.
    ///
    /// # Errors
    ///
    /// Those of [`Loader::new`]; `Usage` if there is no such image.
    pub fn loader(&self, indices: Vec<usize>, preprocess: Option<Preprocess>, layout: Layout) -> Result<Loader> {
        Ok(Loader::shared(self.source.clone(), preprocess)?.select(indices)?.with_layout(layout))
    }
}

/// The names of the classes, which all parts that have them share.
fn agreed_classes(parts: &[Opened]) -> Result<Option<Vec<String>>> {
    let mut named = parts.iter().filter(|part| part.classes.is_some());
    let Some(first) = named.next() else { return Ok(None) };
    match named.find(|part| part.classes != first.classes) {
        None => Ok(first.classes.clone()),
        Some(other) => {
            Err(Error::new(ErrorKind::Format, format!("its classes are not those of `{}`", first.path.display()))
                .at(&other.path)
                .hint("the parts of a data set share their classes"))
        }
    }
}

fn open_folder(path: &Path, opener: &Opener) -> Result<Vec<Opened>> {
    let Found { pictures, archives } = find(path)?;
    match (pictures.first(), archives.first()) {
        (Some(picture), Some(archive)) => Err(Error::new(
            ErrorKind::Images,
            format!(
                "this folder holds pictures (`{}`) and other files of images (`{}`)",
                picture.display(),
                archive.display()
            ),
        )
        .at(path)
        .hint("name the file, or the folder, that is the data set")),
        (Some(_), None) => open_pictures(path, pictures, opener.labels),
        _ => {
            let mut parts = Vec::new();
            for archive in archives {
                let role = role_of_file(archive.strip_prefix(path).unwrap_or(&archive));
                parts
                    .extend(opener.open(&archive)?.into_iter().map(|part| Opened { role: part.role.or(role), ..part }));
            }
            Ok(parts)
        }
    }
}

/// What a file is for, as words of its name or of the folders that it lies in say; the nearest word counts.
fn role_of_file(path: &Path) -> Option<Role> {
    let names = path.components().rev().filter_map(|part| part.as_os_str().to_str());
    names.map(str::to_ascii_lowercase).find_map(|name| {
        // The training part of CIFAR-10.
        let batch = name.starts_with("data_batch").then_some(Role::Training);
        batch.or_else(|| name.split(|letter: char| !letter.is_ascii_alphanumeric()).find_map(role_of_word))
    })
}

/// The part of a data set that a word stands for.
fn role_of_word(word: &str) -> Option<Role> {
    match word {
        "train" | "training" => Some(Role::Training),
        "val" | "valid" | "validation" => Some(Role::Validation),
        "test" | "testing" | "t10k" => Some(Role::Test),
        _ => None,
    }
}

/// A folder of pictures, in which `train` and another folder may be a split.
fn open_pictures(path: &Path, pictures: Vec<PathBuf>, with_labels: bool) -> Result<Vec<Opened>> {
    let top = |picture: &Path| match picture.strip_prefix(path).ok()?.components().next()? {
        Component::Normal(name) => name.to_str().map(str::to_owned),
        _ => None,
    };
    let mut groups: Vec<(PathBuf, Role, Vec<PathBuf>)> = Vec::new();
    let mut rest = Vec::new();
    for picture in &pictures {
        let name = top(picture).unwrap_or_default();
        match role_of_word(&name) {
            Some(role) if !has_picture_extension(Path::new(&name)) => match groups.last_mut() {
                Some((folder, _, group)) if *folder == path.join(&name) => group.push(picture.clone()),
                _ => groups.push((path.join(&name), role, vec![picture.clone()])),
            },
            _ => rest.push(picture),
        }
    }
    let has = |wanted: Role| groups.iter().any(|(_, role, _)| *role == wanted);
    if !(rest.is_empty() && has(Role::Training) && (has(Role::Validation) || has(Role::Test))) {
        return Ok(vec![open_classes(path, pictures, None, with_labels, None)?]);
    }
    groups.sort_by_key(|(_, role, _)| *role);
    let mut parts: Vec<Opened> = Vec::new();
    for (folder, role, group) in groups {
        // A test set need not have labels if there is a validation set.
        if role == Role::Test && parts.iter().any(|part| part.role == Some(Role::Validation)) {
            continue;
        }
        let classes = parts.first().and_then(|part| part.classes.clone());
        parts.push(open_classes(&folder, group, Some(role), with_labels, classes)?);
    }
    Ok(parts)
}

/// The pictures below `folder`, each in the folder of its class. The classes are those that are known, or the folders.
fn open_classes(
    folder: &Path,
    pictures: Vec<PathBuf>,
    role: Option<Role>,
    with_labels: bool,
    known: Option<Vec<String>>,
) -> Result<Opened> {
    let class = |picture: &PathBuf| {
        let relative = picture.strip_prefix(folder).ok()?;
        let name = relative.components().next()?.as_os_str();
        (relative != Path::new(name)).then(|| name.to_string_lossy().into_owned())
    };
    let names: Vec<Option<String>> = pictures.iter().map(class).collect();
    let stray = names.iter().position(Option::is_none).map(|index| pictures[index].display().to_string());
    let mut opened = Opened { role, ..Opened::new(folder, Content::Files(pictures)) };
    if !with_labels {
        return Ok(opened);
    }
    if let Some(stray) = stray {
        opened.labels = Labels::Absent(format!("`{stray}` lies in no folder of a class"));
        return Ok(opened);
    }
    let names: Vec<String> = names.into_iter().flatten().collect();
    let classes = match known {
        Some(classes) => classes,
        None => {
            let found: BTreeSet<&String> = names.iter().collect();
            no_empty_class(folder, &found)?;
            found.into_iter().cloned().collect()
        }
    };
    let index: HashMap<&String, i64> = classes.iter().zip(0..).collect();
    let labels = names
        .iter()
        .map(|name| {
            index.get(name).copied().ok_or_else(|| {
                Error::new(ErrorKind::Images, "there is no such class among the images for training")
                    .at(folder.join(name))
                    .hint("the folders for training and validation hold the same classes")
            })
        })
        .collect::<Result<_>>()?;
    opened.labels = Labels::Present(labels);
    opened.classes = Some(classes);
    Ok(opened)
}

/// A folder without pictures would be a class in other programs, or a typing error; either way labels would differ.
fn no_empty_class(folder: &Path, classes: &BTreeSet<&String>) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
    for entry in entries {
        let path = entry.map_err(|error| Error::io(folder, error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && !classes.contains(&name) {
            return Err(Error::new(ErrorKind::Images, "this folder of a class holds no pictures")
                .at(path)
                .hint("remove it, or put the pictures of the class into it"));
        }
    }
    Ok(())
}
