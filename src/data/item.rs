//! What a source is made of: containers of samples, and what is known of a container when it is opened.
//!
//! A format is one file in `formats` that implements [`Container`]. A sample is a set of named arrays, and a picture is
//! one way to come by an array.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use image::DynamicImage;
use ndarray::ArrayView3;

use crate::error::{Error, ErrorKind, Result};

/// The name of the array that an encoder of images takes.
pub(crate) const IMAGE: &str = "image";

/// An array of a sample, as its container holds it.
pub(crate) enum Item<'a> {
    /// A picture that is still to be preprocessed.
    Picture(DynamicImage),
    /// Values `[channels, height, width]` that are fed to the model as they are.
    Tensor(ArrayView3<'a, f32>),
}

/// Named arrays that belong together. Today's formats hold one array a sample, its [`IMAGE`].
pub(crate) struct Sample<'a> {
    arrays: Vec<(&'static str, Item<'a>)>,
}

impl<'a> Sample<'a> {
    /// A sample of a picture alone.
    pub fn picture(picture: DynamicImage) -> Self {
        Sample { arrays: vec![(IMAGE, Item::Picture(picture))] }
    }

    /// A sample of the values of an image alone.
    pub fn tensor(tensor: ArrayView3<'a, f32>) -> Self {
        Sample { arrays: vec![(IMAGE, Item::Tensor(tensor))] }
    }

    /// The array of that name.
    ///
    /// # Errors
    ///
    /// `Images` if the sample has none.
    pub fn take(self, name: &str) -> Result<Item<'a>> {
        let found = self.arrays.into_iter().find(|(own, _)| *own == name);
        found.map(|(_, item)| item).ok_or_else(|| Error::new(ErrorKind::Images, format!("it has no array `{name}`")))
    }
}

/// Samples that one file holds, or the picture files of a folder.
pub(crate) trait Container: fmt::Debug + Send + Sync {
    /// The number of samples.
    fn len(&self) -> usize;

    /// Reads sample `index`, which is one of them.
    ///
    /// # Errors
    ///
    /// `Images` if it cannot be decoded.
    fn sample(&self, index: usize) -> Result<Sample<'_>>;

    /// Names sample `index` of the container at `path` for messages.
    fn name<'a>(&'a self, path: &Path, index: usize) -> Cow<'a, Path> {
        within(path, format_args!("image {index}"))
    }

    /// The shape `[channels, height, width]` of images that are fed to the model as they are; `None` for pictures.
    fn tensor_shape(&self) -> Option<[usize; 3]> {
        None
    }

    /// The picture files, where each sample is one.
    fn files(&self) -> Option<&[PathBuf]> {
        None
    }

    /// A hash of what it holds, where that is not the hash of its file.
    fn digest(&self) -> Option<&str> {
        None
    }

    /// Whether the container is large, so that its fingerprint is that of its name and length rather than of its bytes.
    fn is_known_by_name(&self) -> bool {
        false
    }
}

/// A place in the file at `path`, for messages.
pub(crate) fn within<'a>(path: &Path, place: fmt::Arguments) -> Cow<'a, Path> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(", {place}"));
    Cow::Owned(name.into())
}

/// What is read of a file beside its images, and under which names.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadOptions {
    /// Whether labels are wanted.
    pub labels: bool,
    /// The image column of Parquet files, or field of tar archives, if it has another name than the usual ones.
    pub image_column: Option<String>,
    /// The label column of Parquet files, if it has another name than the usual ones.
    pub label_column: Option<String>,
}

/// What is known of a container when it is opened.
pub(crate) struct Opened {
    pub path: PathBuf,
    pub content: Box<dyn Container>,
    pub labels: Labels,
    /// The names of the classes.
    pub classes: Option<Vec<String>>,
    /// Whether it has names alone, whose order is that of sorting, and no numbers of classes.
    pub by_name: bool,
    /// Which part of the data set it is by its name.
    pub role: Option<Role>,
    /// What was assumed.
    pub notes: Vec<String>,
}

impl Opened {
    /// A container without labels.
    pub fn new(path: &Path, content: impl Container + 'static) -> Self {
        let labels = Labels::Absent("it holds images only".into());
        let content = Box::new(content);
        Opened {
            path: path.to_path_buf(),
            content,
            labels,
            classes: None,
            by_name: false,
            role: None,
            notes: Vec::new(),
        }
    }
}

/// The labels of a container.
pub(crate) enum Labels {
    /// One an image, as they stand in the file.
    Present(Vec<i64>),
    /// Why there are none.
    Absent(String),
    /// Nobody asked.
    Ignored,
}

/// What a part of a data set is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Training,
    Validation,
    Test,
}
