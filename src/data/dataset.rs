//! Data sets: images with labels, class names and a split into training and validation.
//!
//! A [`Dataset`] is an [`ImageSource`] of which more is known. Labels come from the folders that pictures lie in, or
//! from the files that hold the images; a data set without any serves distillation.

use std::path::Path;
use std::sync::Arc;

use rand::seq::SliceRandom;
use sha2::{Digest, Sha256};

use super::folders::open_folder;
use super::formats::{Opener, is_folder};
use super::item::{Labels, Opened, ReadOptions, Role};
use super::loader::Loader;
use super::random::{Purpose, generator};
use super::shape::{ImageLayout, InputShape};
use super::source::{ImageSource, hexadecimal};
use super::transforms::{Preprocess, PreprocessFlags};
use crate::error::{Error, ErrorKind, Result};

const LABELS_HINT: &str = "give each class a folder of its own (DIR/CLASS/picture.jpg), or a file that holds labels, \
    too; distillation from a teacher needs none";
const LABELS_OF_ARRAYS_HINT: &str = "labels are an array `y` beside arrays, and a column of a table beside texts; \
    distillation from a teacher needs none";

/// How a data set is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatasetOptions {
    /// Whether labels are left aside, wrong ones too, as for distillation.
    pub ignore_labels: bool,
    /// The column of the pictures in Parquet files, `None` for `image` or `img`; or their field in tar archives, `None`
    /// for a bare extension.
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
    /// Whether the classes are names alone, as folders are; else the labels are in the files and their names only
    /// describe them.
    by_name: bool,
    given_split: Option<Split>,
    /// The cosine that is wanted of each pair, where samples are pairs: the first ones of all are the first half of the
    /// source, the second ones the other.
    cosines: Option<Arc<[f64]>>,
    /// How long each image is, where that is known: those of one length are put into batches together.
    lengths: Option<Arc<[usize]>>,
}

impl Dataset {
    /// Opens what is at `path`:
    ///
    /// - a folder with a folder of pictures for each class, whose sorted names are the classes, sorted as numbers where
    ///   all are numbers; in `train` and one of `val`, `valid`, `validation` or `test` where these are there;
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
        let opener = Opener::new(ReadOptions {
            labels: !options.ignore_labels,
            image_column: options.image_column.clone(),
            label_column: options.label_column.clone(),
        });
        let parts = if is_folder(path)? { open_folder(path, &opener)? } else { opener.open(path)? };
        Dataset::of_parts(path, parts, options.ignore_labels)
    }

    pub(super) fn of_parts(path: &Path, mut parts: Vec<Opened>, ignore_labels: bool) -> Result<Self> {
        let has = |role| parts.iter().any(|part| part.role == Some(role));
        let validation = if has(Role::Validation) { Role::Validation } else { Role::Test };
        let is_split = has(Role::Training) && has(validation) && parts.iter().all(|part| part.role.is_some());
        if is_split {
            parts.retain(|part| part.role == Some(Role::Training) || part.role == Some(validation));
        }
        let classes = agreed_classes(&parts)?;
        let by_name = parts.iter().all(|part| part.by_name || part.content.files().is_some());
        let notes: Vec<String> = parts.iter_mut().flat_map(|part| std::mem::take(&mut part.notes)).collect();
        let mut contents = Vec::new();
        let mut descriptions = Vec::new();
        for part in parts {
            contents.push((part.path.clone(), part.content));
            descriptions.push((part.path, part.labels, part.role));
        }
        let source = ImageSource::new(path, contents)?.with_notes(notes);
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
        let given_split = is_split.then_some(split);
        Ok(Dataset { source: Arc::new(source), labels, classes, by_name, given_split, cosines: None, lengths: None })
    }

    /// The same as pairs, with the cosine that is wanted of each: image i and the one as many places behind it as there
    /// are cosines.
    ///
    /// # Errors
    ///
    /// `Internal` if there are not twice as many images, or if these are pictures, of which one may not be readable.
    pub fn in_pairs(self, cosines: Vec<f64>) -> Result<Dataset> {
        if self.source.len() != 2 * cosines.len() || !self.source.is_tensors() {
            bail!(Internal, "{} images are no {} pairs", self.source.len(), cosines.len());
        }
        Ok(Dataset { cosines: Some(cosines.into()), ..self })
    }

    /// The cosine that is wanted of each pair, where samples are pairs.
    pub fn cosines(&self) -> Option<&[f64]> {
        self.cosines.as_deref()
    }

    /// The same with the length of every image.
    ///
    /// # Errors
    ///
    /// `Internal` if there are not as many.
    pub(super) fn of_lengths(self, lengths: Vec<usize>) -> Result<Dataset> {
        if self.source.len() != lengths.len() {
            bail!(Internal, "{} images have {} lengths", self.source.len(), lengths.len());
        }
        Ok(Dataset { lengths: Some(lengths.into()), ..self })
    }

    /// The same without lengths: nothing is gained by batches of one.
    pub(crate) fn of_one_length(self) -> Dataset {
        Dataset { lengths: None, ..self }
    }

    /// How long a sample is, where that is known of all of them.
    pub(crate) fn length_of(&self, sample: usize) -> Option<usize> {
        let lengths = self.lengths.as_ref()?;
        self.images_of(vec![sample]).into_iter().filter_map(|image| lengths.get(image).copied()).max()
    }

    /// How many images a sample is.
    pub fn images_each(&self) -> usize {
        if self.cosines.is_some() { 2 } else { 1 }
    }

    /// The images of some samples: those of a pair one behind the other.
    pub(super) fn images_of(&self, samples: Vec<usize>) -> Vec<usize> {
        match self.cosines() {
            None => samples,
            Some(cosines) => samples.into_iter().flat_map(|pair| [pair, pair + cosines.len()]).collect(),
        }
    }

    /// The number of samples, readable or not.
    pub fn len(&self) -> usize {
        self.source.len() / self.images_each()
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
        let hint = if self.source.is_tensors() { LABELS_OF_ARRAYS_HINT } else { LABELS_HINT };
        self.labels.as_deref().map_err(|reason| Error::new(ErrorKind::Images, reason.clone()).hint(hint))
    }

    /// The names of the classes, where the data set tells them.
    pub fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    /// Whether the classes are names alone, such as the folders that the pictures lie in.
    pub(super) fn by_name(&self) -> bool {
        self.by_name
    }

    /// The same images, with label `indices[i]` for each label i, and classes of other names.
    pub(super) fn relabelled(&self, indices: &[usize], classes: Option<Vec<String>>) -> Dataset {
        let relabel = |labels: &Vec<u32>| labels.iter().map(|&label| indices[label as usize] as u32).collect();
        Dataset { labels: self.labels.as_ref().map(relabel).map_err(String::clone), classes, ..self.clone() }
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
    /// same seed, and from every class alike, so that the number from a class differs from its share by less than one.
    /// At least one image is left for training.
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

    /// The share that is held out for validation where nobody says how many: a tenth, but at least eight images, or a
    /// fifth where there are fewer than 40. What fewer than eight images say of a model is chance.
    pub fn held_out_share(&self) -> f64 {
        match self.len() {
            0..40 => 0.2,
            count => (8.0 / count as f64).max(0.1),
        }
    }

    /// A hash of the images, as [`ImageSource::fingerprint`], and of what is beside them; for resuming and for records.
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
        for cosine in self.cosines().unwrap_or_default() {
            hasher.update(cosine.to_le_bytes());
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
        let hint = format!("`offshoot tune ⟦classes⟧ {needed}` replaces the classifier by one of {needed} classes");
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

    /// A loader of the samples with the given indices, in this order, through the evaluation transform.
    ///
    /// # Errors
    ///
    /// Those of [`Loader::new`]; `Usage` if there is no such image.
    pub fn loader(&self, indices: Vec<usize>, preprocess: Option<Preprocess>, layout: ImageLayout) -> Result<Loader> {
        let loader = Loader::shared(self.source.clone(), preprocess)?.select(self.images_of(indices))?;
        Ok(loader.with_layout(layout).together(self.images_each()))
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use image::DynamicImage;
    use ndarray::{Array, Array1, Array3, Array4};
    use ndarray_npy::NpzWriter;

    use super::super::folders::role_of_file;
    use super::super::item::Item;
    use super::super::testing::{cifar, gzip, idx, png, tar, write_picture};
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
    }

    fn open(path: impl AsRef<Path>) -> Result<Dataset> {
        Dataset::open(path, &DatasetOptions::default())
    }

    /// A folder of a small picture for each of the paths.
    fn folder(paths: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for path in paths {
            write_picture(&folder.path().join(path), 3, 2, [1, 2, 3]);
        }
        folder
    }

    fn error(path: impl AsRef<Path>, message: &str) {
        let error = open(path).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.hint_text().is_some(), "{error}");
    }

    fn bytes(dataset: &Dataset, index: usize) -> Vec<u8> {
        match dataset.source.read(index).unwrap() {
            Item::Picture(picture) => picture.into_bytes(),
            Item::Tensor(_) => panic!("a tensor"),
        }
    }

    #[test]
    fn folders_are_classes() {
        let folder = folder(&["cat/2.png", "cat/deep/1.png", "ant/x.png", "dog/y.png", ".hidden/z.png"]);
        let dataset = open(folder.path()).unwrap();
        assert_eq!(dataset.classes().unwrap(), ["ant", "cat", "dog"]);
        assert_eq!(dataset.labels().unwrap(), [0, 1, 1, 2]);
        assert_eq!((dataset.len(), dataset.class_count()), (4, Some(3)));
        assert_eq!(dataset.given_split(), None);

        let ignored = DatasetOptions { ignore_labels: true, ..DatasetOptions::default() };
        let unlabelled = Dataset::open(folder.path(), &ignored).unwrap();
        assert_eq!((unlabelled.labels(), unlabelled.classes(), unlabelled.class_count()), (None, None, None));

        fs::write(folder.path().join("model.bin"), "no data set").unwrap();
        assert_eq!(open(folder.path()).unwrap().len(), 4);

        fs::create_dir(folder.path().join("bee")).unwrap();
        error(folder.path(), "this folder of a class holds no pictures");
        assert!(Dataset::open(folder.path(), &ignored).is_ok());
    }

    #[test]
    fn pictures_without_folders_have_no_labels() {
        let folder = folder(&["cat/2.png", "stray.png"]);
        let dataset = open(folder.path()).unwrap();
        assert_eq!(dataset.labels(), None);
        let error = dataset.require_labels().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Images);
        assert!(error.to_string().contains("stray.png` lies in no folder of a class"), "{error}");
        assert!(error.hint_text().unwrap().contains("distillation"));
        assert!(dataset.check_labels(1).is_err());
    }

    #[test]
    fn folders_may_be_a_split() {
        let both = folder(&["val/cat/1.png", "train/ant/1.png", "train/cat/2.png", "test/unknown/1.png"]);
        let dataset = open(both.path()).unwrap();
        // The test set is left aside, whatever its classes.
        assert_eq!(dataset.labels().unwrap(), [0, 1, 1]);
        let expected = Split { training: vec![0, 1], validation: vec![2] };
        assert_eq!(dataset.given_split(), Some(&expected));
        assert_eq!(dataset.classes().unwrap(), ["ant", "cat"]);

        fs::remove_dir_all(both.path().join("val")).unwrap();
        error(both.path(), "there is no such class among the images for training");
        fs::rename(both.path().join("test/unknown"), both.path().join("test/ant")).unwrap();
        let dataset = open(both.path()).unwrap();
        assert_eq!(dataset.labels().unwrap(), [0, 1, 0]);
        assert_eq!(dataset.given_split(), Some(&expected));

        // Classes of these names are no split where there are others.
        let classes = folder(&["train/1.png", "test/1.png", "bus/1.png"]);
        let dataset = open(classes.path()).unwrap();
        assert_eq!((dataset.given_split(), dataset.class_count()), (None, Some(3)));
        let unlabelled = folder(&["train/1.png", "test/1.png"]);
        let dataset = open(unlabelled.path()).unwrap();
        assert_eq!(dataset.given_split(), Some(&Split { training: vec![0], validation: vec![1] }));
        assert_eq!(dataset.labels(), None);
    }

    #[test]
    fn folders_of_pictures_and_archives_are_refused() {
        let folder = folder(&["cat/1.png"]);
        fs::write(folder.path().join("cat.tar"), tar(&[])).unwrap();
        error(folder.path(), "holds pictures");
        fs::remove_dir_all(folder.path().join("cat")).unwrap();
        fs::write(folder.path().join("data.parquet"), "").unwrap();
        error(folder.path(), "files of several kinds");
    }

    #[test]
    fn idx_labels_lie_beside_the_images() {
        let dataset = open(fixture("fashion-images.idx3-ubyte")).unwrap();
        assert_eq!((dataset.len(), dataset.class_count()), (300, Some(10)));
        let labels = dataset.labels().unwrap();
        assert!((0..10).all(|class| labels.iter().filter(|&&label| label == class).count() == 30));

        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        let images = |count: u32| idx([0x0803, count, 1, 2], &vec![7; 2 * count as usize]);
        let labels = |labels: &[u8]| [&[0, 0, 8, 1], &(labels.len() as u32).to_be_bytes()[..], labels].concat();
        write("train-images-idx3-ubyte.gz", &gzip(&images(3)));
        write("train-images-idx3-ubyte", &images(3));
        write("train-labels-idx1-ubyte.gz", &gzip(&labels(&[2, 0, 1])));
        write("t10k-images-idx3-ubyte.gz", &gzip(&images(2)));
        write("t10k-labels-idx1-ubyte", &labels(&[1, 1]));
        let dataset = open(folder.path()).unwrap();
        // The images for testing come first by name.
        assert_eq!(dataset.labels().unwrap(), [1, 1, 2, 0, 1]);
        let split = dataset.given_split().unwrap();
        assert_eq!((&split.training[..], &split.validation[..]), (&[2, 3, 4][..], &[0, 1][..]));

        write("t10k-labels-idx1-ubyte", &labels(&[1]));
        error(folder.path(), "there are 2 images and 1 labels");
        write("t10k-labels-idx1-ubyte", &images(2));
        error(folder.path(), "not an IDX label file");
        write("t10k-labels-idx1-ubyte", &labels(&[1, 1])[..9]);
        let shown = open(folder.path()).unwrap_err().to_string();
        assert!(shown.contains("t10k-labels") && shown.contains("only 1 are there"), "{shown}");
        fs::remove_file(folder.path().join("t10k-labels-idx1-ubyte")).unwrap();
        error(folder.path(), "some files of the data set have labels");
        fs::remove_file(folder.path().join("train-labels-idx1-ubyte.gz")).unwrap();
        let reason = open(folder.path()).unwrap().require_labels().unwrap_err().to_string();
        assert!(reason.contains("no file of labels"), "{reason}");
    }

    #[test]
    fn cifar_batches_are_a_split() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        let names = "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n";
        write("batches.meta.txt", names.as_bytes());
        write("data_batch_1.bin", &cifar(&[&[6], &[9]]));
        write("data_batch_2.bin", &cifar(&[&[1]]));
        write("test_batch.bin", &cifar(&[&[3]]));
        let dataset = open(folder.path()).unwrap();
        assert_eq!(dataset.labels().unwrap(), [6, 9, 1, 3]);
        assert_eq!(dataset.classes().unwrap()[9], "truck");
        assert_eq!(dataset.given_split().unwrap().validation, [3]);
        assert_eq!(bytes(&dataset, 2)[..3], [1, 100, 0]);
        let alone = open(folder.path().join("test_batch.bin")).unwrap();
        assert_eq!((alone.labels().unwrap(), alone.given_split()), (&[3][..], None));
        write("data_batch_2.bin", b"short");
        error(folder.path(), "no CIFAR file");
    }

    #[test]
    fn formats_of_other_programs_hold_the_same_pictures() {
        let original = open(fixture("fashion-images.idx3-ubyte")).unwrap();
        let indices: Vec<usize> = (0..7).map(|index| index * 42).collect();
        let labels: Vec<u32> = indices.iter().map(|&index| original.labels().unwrap()[index]).collect();
        for name in ["hugging-face.parquet", "webdataset.tar.gz", "keras.npz"] {
            let dataset = open(fixture("datasets").join(name)).unwrap();
            assert_eq!(dataset.labels().unwrap(), labels, "{name}");
            // Backwards, so that the row groups are not read in order.
            for (position, &index) in indices.iter().enumerate().rev() {
                assert_eq!(bytes(&dataset, position), bytes(&original, index), "{name}");
            }
            let named = dataset.classes().map(|classes| classes[3].clone());
            assert_eq!(named.as_deref(), (name == "hugging-face.parquet").then_some("dress"));
            let split = dataset.given_split().map(|split| split.validation.clone());
            assert_eq!(split, (name == "keras.npz").then(|| vec![5, 6]));
            let source = ImageSource::open(fixture("datasets").join(name)).unwrap();
            assert_eq!(source.len(), 7);
        }
    }

    #[test]
    fn parts_are_found_by_their_names() {
        for (name, role) in [
            ("data/train-00000-of-00002.parquet", Some(Role::Training)),
            ("train/0001.tar", Some(Role::Training)),
            ("imagenet-val-000.tar", Some(Role::Validation)),
            ("validation/train.tar", Some(Role::Training)),
            ("t10k-images-idx3-ubyte.gz", Some(Role::Test)),
            ("test_batch.bin", Some(Role::Test)),
            ("data_batch_5.bin", Some(Role::Training)),
            ("contest.tar", None),
        ] {
            assert_eq!(role_of_file(Path::new(name)), role, "{name}");
        }
        let folder = tempfile::tempdir().unwrap();
        let picture = png([1, 2, 3]);
        for (name, label) in [("train-0.tar", "1"), ("train-1.tar", "0"), ("val.tar", "1"), ("test.tar", "-1")] {
            let shard = tar(&[("1.png", &picture), ("1.cls", label.as_bytes())]);
            fs::write(folder.path().join(name), shard).unwrap();
        }
        let dataset = open(folder.path()).unwrap();
        assert_eq!(dataset.labels().unwrap(), [1, 0, 1]);
        assert_eq!(dataset.given_split().unwrap().validation, [2]);
        fs::remove_file(folder.path().join("val.tar")).unwrap();
        error(folder.path(), "test.tar/1.png`: its label is -1");
    }

    #[test]
    fn arrays_are_tensors_or_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.npz");
        let write = |x: &Array4<f32>, y: &Array1<i64>| {
            let mut writer = NpzWriter::new(fs::File::create(&path).unwrap());
            writer.add_array("x", x).unwrap();
            writer.add_array("y", y).unwrap();
            writer.finish().unwrap();
        };
        let tensors = Array::from_iter((0..24u8).map(f32::from)).into_shape_with_order((2, 3, 2, 2)).unwrap();
        write(&tensors, &ndarray::array![5, 0]);
        let dataset = open(&path).unwrap();
        assert_eq!(dataset.labels().unwrap(), [5, 0]);
        assert_eq!(dataset.source().tensor_shape(), Some([2, 3, 2, 2]));
        write(&tensors, &ndarray::array![5]);
        error(&path, "there are 2 images and 1 labels");
        write(&tensors, &ndarray::array![5, -3]);
        error(&path, "data.npz, image 1`: its label is -3");
        write(&tensors, &ndarray::array![5, 1 << 40]);
        error(&path, "its label is 1099511627776");

        // Pictures for training and tensors for testing.
        let mut writer = NpzWriter::new(fs::File::create(&path).unwrap());
        writer.add_array("x_train", &Array3::from_elem((2, 2, 2), 1u8)).unwrap();
        writer.add_array("x_test", &tensors).unwrap();
        writer.finish().unwrap();
        error(&path, "tensors of 3 x 2 x 2");
    }

    #[test]
    fn splits_are_stratified_and_seeded() {
        let dataset = open(fixture("fashion-images.idx3-ubyte")).unwrap();
        let split = dataset.split(0.25, 1);
        assert_eq!((split.training.len(), split.validation.len()), (225, 75));
        let mut all = [split.training.clone(), split.validation.clone()].concat();
        assert!(split.training.is_sorted() && split.validation.is_sorted());
        all.sort_unstable();
        assert_eq!(all, (0..300).collect::<Vec<_>>());
        for class in 0..10 {
            let count = split.validation.iter().filter(|&&index| dataset.labels().unwrap()[index] == class).count();
            assert!((7..=8).contains(&count), "{count}");
        }
        assert_eq!(dataset.split(0.25, 1), split);
        assert_ne!(dataset.split(0.25, 2), split);
        assert!(dataset.split(0.0, 1).validation.is_empty());
        assert_eq!(dataset.split(1.0, 1).training.len(), 1);

        let unlabelled = Dataset { labels: Err(String::new()), ..dataset };
        let split = unlabelled.split(0.1, 1);
        assert_eq!((split.training.len(), split.validation.len()), (270, 30));
        assert_ne!(split, unlabelled.split(0.1, 2));
    }

    #[test]
    fn labels_must_fit_the_model() {
        let dataset = open(fixture("fashion-images.idx3-ubyte")).unwrap();
        assert!(dataset.check_labels(10).is_ok());
        // Numbers alone do not say how many classes there are.
        assert!(dataset.check_labels(1000).is_ok());
        let error = dataset.check_labels(9).unwrap_err();
        let first = dataset.labels().unwrap().iter().position(|&label| label == 9).unwrap();
        assert!(error.to_string().contains(&format!("image {first}`: its label is 9")), "{error}");
        assert!(error.hint_text().unwrap().contains("tune classes 10"));
        let folder = folder(&["cat/1.png", "dog/1.png"]);
        let error = open(folder.path()).unwrap().check_labels(1000).unwrap_err();
        assert!(error.to_string().contains("2 classes") && error.to_string().contains("1000"), "{error}");
        assert!(error.hint_text().unwrap().contains("tune classes 2"));
    }

    #[test]
    fn fingerprints_follow_images_and_labels() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images-idx3");
        fs::write(&path, idx([0x0803, 2, 1, 1], &[1, 2])).unwrap();
        let labels = folder.path().join("labels-idx1");
        let fingerprint = |values: [u8; 2]| {
            fs::write(&labels, [&[0, 0, 8, 1, 0, 0, 0, 2], &values[..]].concat()).unwrap();
            open(&path).unwrap().fingerprint().unwrap()
        };
        assert_eq!(fingerprint([0, 1]), fingerprint([0, 1]));
        assert_ne!(fingerprint([0, 1]), fingerprint([1, 0]));
    }

    #[test]
    fn loaders_follow_the_indices() {
        let folder = folder(&["cat/1.png", "cat/2.png", "dog/1.png"]);
        fs::write(folder.path().join("cat/2.png"), "broken").unwrap();
        let dataset = open(folder.path()).unwrap();
        let input = InputShape { channels: 3, height: 2, width: 2, layout: ImageLayout::Nchw };
        let preprocess = dataset.preprocess(&PreprocessFlags::default(), None, input).unwrap();
        let loader = dataset.loader(vec![2, 1, 0], preprocess.clone(), input.layout).unwrap();
        let batch = loader.batches(8).next().unwrap().unwrap();
        assert_eq!(batch.indices, [2, 0]);
        assert_eq!(batch.images.dim(), (2, 3, 2, 2));
        assert_eq!(dataset.source().skipped().count, 1);
        let error = loader.strict(true).batches(8).next().unwrap().unwrap_err();
        assert!(error.to_string().contains("2.png"), "{error}");
        assert!(dataset.loader(vec![3], preprocess, input.layout).is_err());
        assert!(matches!(dataset.source.read(0).unwrap(), Item::Picture(DynamicImage::ImageRgb8(_))));
    }
}
