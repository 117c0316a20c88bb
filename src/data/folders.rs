//! Folders that are data sets: of files of images, or of a folder of pictures for each class.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use super::decode::{foreign_kind, has_picture_extension, is_readable_picture};
use super::formats::{Files, Found, Opener, find};
use super::item::{Labels, Opened, Role};
use crate::error::{Error, ErrorKind, Result};

/// Opens the files of images in a folder, each with what its name says it is for, or the pictures in it, each in the
/// folder of its class.
///
/// # Errors
///
/// `Images` if there are none, or pictures beside other files of images, or a class has no pictures; those of
/// [`Opener::open`].
pub(super) fn open_folder(path: &Path, opener: &Opener) -> Result<Vec<Opened>> {
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
        (Some(_), None) => open_pictures(path, pictures, opener.wants_labels()),
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
pub(super) fn role_of_file(path: &Path) -> Option<Role> {
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
    if with_labels && stray.is_none() {
        no_unreadable_class(folder, names.iter().flatten().zip(&pictures))?;
    }
    let mut opened = Opened { role, ..Opened::new(folder, Files(pictures)) };
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
            let (classes, note) = in_order(found.into_iter().cloned().collect());
            opened.notes.extend(note);
            classes
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

/// Sorted names of classes, sorted as numbers where all are numbers, and what is to be said of that where it differs.
fn in_order(classes: Vec<String>) -> (Vec<String>, Option<String>) {
    let Some(numbers) = numbers(&classes).filter(|numbers| !numbers.is_sorted()) else { return (classes, None) };
    let mut sorted: Vec<(u64, String)> = numbers.into_iter().zip(classes).collect();
    sorted.sort();
    let classes = sorted.into_iter().map(|(_, name)| name).collect();
    (
        classes,
        Some(
            "the folders of the classes are sorted as numbers, where torchvision's ImageFolder sorts them as text"
                .into(),
        ),
    )
}

/// The numbers that all names are, in digits alone and each another one.
pub(super) fn numbers(names: &[String]) -> Option<Vec<u64>> {
    let digits = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit());
    let numbers: Option<Vec<u64>> = names.iter().map(|name| name.parse().ok().filter(|_| digits(name))).collect();
    numbers.filter(|numbers| numbers.iter().collect::<HashSet<_>>().len() == numbers.len())
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

/// A class is empty, too, where all of its pictures are of kinds that are not read.
fn no_unreadable_class<'a>(folder: &Path, pictures: impl Iterator<Item = (&'a String, &'a PathBuf)>) -> Result<()> {
    let mut readable = HashSet::new();
    let mut first = BTreeMap::new();
    for (class, picture) in pictures {
        if readable.contains(class) {
            continue;
        }
        if is_readable_picture(picture) {
            readable.insert(class);
        } else {
            first.entry(class).or_insert(picture);
        }
    }
    match first.into_iter().find(|(class, _)| !readable.contains(class)) {
        None => Ok(()),
        Some((class, picture)) => {
            let name = picture.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let kind = foreign_kind(picture).map_or("it is of no kind that is read".into(), |kind| kind.to_string());
            let message = format!("this folder of a class holds no pictures that can be read (`{name}`: {kind})");
            Err(Error::new(ErrorKind::Images, message)
                .at(folder.join(class))
                .hint("convert such pictures to PNG or JPEG, or remove the folder"))
        }
    }
}
