//! Finds the files of images in a folder, by their names.

use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use super::super::decode::{has_picture_extension, is_picture};
use crate::error::{Error, ErrorKind, Result};

pub(super) const SOURCE_HINT: &str =
    "give a folder of pictures, or an IDX, .npy, .npz, CIFAR .bin, .tar or .parquet file";

/// The kinds of files other than pictures that a folder may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Idx,
    Cifar,
    Npz,
    Tar,
    Parquet,
}

impl FileKind {
    const ALL: [FileKind; 5] = [FileKind::Idx, FileKind::Cifar, FileKind::Npz, FileKind::Tar, FileKind::Parquet];
}

/// Whether a file is of a kind, by its name.
pub(super) fn is_kind(path: &Path, kind: FileKind) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    let name = name.to_ascii_lowercase();
    match kind {
        FileKind::Idx => name.contains("images") && name.contains("idx3"),
        FileKind::Cifar => name.ends_with(".bin"),
        FileKind::Npz => name.ends_with(".npz"),
        FileKind::Tar => [".tar", ".tar.gz", ".tgz"].iter().any(|end| name.ends_with(end)),
        FileKind::Parquet => name.ends_with(".parquet"),
    }
}

/// The kind of a file in a folder, by its name. Many programs write `.bin` files.
fn kind_in_folder(path: &Path) -> Option<FileKind> {
    let kind = FileKind::ALL.into_iter().find(|&kind| is_kind(path, kind))?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let is_cifar = ["train", "test", "test_batch"].contains(&stem) || stem.starts_with("data_batch");
    (kind != FileKind::Cifar || is_cifar).then_some(kind)
}

/// What a folder holds, each sorted by path.
pub(crate) struct Found {
    /// The picture files.
    pub pictures: Vec<PathBuf>,
    /// Files of images of one [`FileKind`].
    pub archives: Vec<PathBuf>,
}

/// Searches `folder` for pictures and other files of images, recursively. Files that bear no name of either are
/// pictures by their content, or nothing: a README, or a list of labels. Hidden entries and links that lead back to a
/// folder around them are left out; broken links to pictures are kept, so that they are counted as unreadable.
///
/// # Errors
///
/// `Images` if there is nothing, or no pictures and archives of several kinds; `Io` if a folder cannot be read.
pub(crate) fn find(folder: &Path) -> Result<Found> {
    let visible = |entry: &DirEntry| entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".");
    let mut pictures = Vec::new();
    let mut archives = Vec::new();
    for entry in WalkDir::new(folder).follow_links(true).into_iter().filter_entry(visible) {
        match entry {
            Ok(entry) if !entry.file_type().is_file() => {}
            Ok(entry) if has_picture_extension(entry.path()) => pictures.push(entry.into_path()),
            Ok(entry) => match kind_in_folder(entry.path()) {
                Some(kind) => archives.push((kind, entry.into_path())),
                None if is_picture(entry.path()) => pictures.push(entry.into_path()),
                None => {}
            },
            Err(error) if error.loop_ancestor().is_some() => {}
            Err(error) => {
                let path = error.path().unwrap_or(folder).to_path_buf();
                let missing = error.io_error().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound);
                if !missing {
                    return Err(Error::io(path, error.into()));
                } else if has_picture_extension(&path) {
                    pictures.push(path);
                }
            }
        }
    }
    pictures.sort();
    archives.sort_by(|(_, a), (_, b)| a.cmp(b));
    if let Some((first, path)) = archives.first()
        && let Some((_, other)) = archives.iter().find(|(kind, _)| kind != first)
        && pictures.is_empty()
    {
        return Err(Error::new(
            ErrorKind::Images,
            format!("this folder holds files of several kinds (`{}`, `{}`)", path.display(), other.display()),
        )
        .at(folder)
        .hint("name the file, or a folder that holds nothing else"));
    }
    let mut archives: Vec<PathBuf> = archives.into_iter().map(|(_, path)| path).collect();
    // Downloads leave the packed file beside the unpacked one, which sorts right before it.
    archives.dedup_by(|later, earlier| {
        later.extension().is_some_and(|extension| extension == "gz") && later.with_extension("") == *earlier
    });
    if pictures.is_empty() && archives.is_empty() {
        return Err(Error::new(
            ErrorKind::Images,
            "there are no pictures in this folder; looked for files that end in .jpg, .png and the like, and for \
             pictures under \
             other names",
        )
        .at(folder)
        .hint("name the folder that holds the pictures, or an IDX, .npz, CIFAR .bin, .tar or .parquet file"));
    }
    Ok(Found { pictures, archives })
}

/// Whether there is a folder at `path`.
///
/// # Errors
///
/// `Images` if nothing is there, `Io` if that cannot be told.
pub(crate) fn is_folder(path: &Path) -> Result<bool> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::new(ErrorKind::Images, "no such file or folder").at(path).hint(SOURCE_HINT))
        }
        Err(error) => Err(Error::io(path, error)),
    }
}
