//! Reads WebDataset shards: tar archives in which the files of a sample follow each other under one base name.
//!
//! The format is described at <https://github.com/webdataset/webdataset>. The members are indexed once; pictures are
//! read from the mapped file when they are asked for. A gzipped shard is unpacked in memory.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::Path;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use memmap2::Mmap;

use super::super::decode::{self, has_picture_extension};
use super::super::item::{self, Container, Labels, Opened, ReadOptions};
use super::super::limits::unpacked_limit;
use crate::error::{Error, ErrorKind, Result};

/// How many fields a message lists.
const LISTED: usize = 5;

/// The pictures of a tar archive.
#[derive(Debug)]
struct Shard {
    bytes: Bytes,
    pictures: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    name: String,
    start: usize,
    length: usize,
}

/// What was found of a sample so far.
#[derive(Default)]
struct Sample {
    key: String,
    /// The pictures, each under its field: all that follows the first dot of its name.
    pictures: Vec<(String, Member)>,
    /// The label, and how much its place is trusted.
    label: Option<(u8, i64)>,
}

impl Container for Shard {
    fn len(&self) -> usize {
        self.pictures.len()
    }

    fn sample(&self, index: usize) -> Result<item::Sample<'_>> {
        decode::decode(self.pictures[index].of(&self.bytes)).map(item::Sample::picture)
    }

    fn name<'a>(&'a self, path: &Path, index: usize) -> Cow<'a, Path> {
        Cow::Owned(path.join(&self.pictures[index].name))
    }

    fn is_known_by_name(&self) -> bool {
        true
    }
}

impl Member {
    fn of<'a>(&self, archive: &'a [u8]) -> &'a [u8] {
        archive.get(self.start..self.start + self.length).unwrap_or(&[])
    }
}

/// Opens the shard at `path`. A sample is a picture under its base name, and the label in its `.cls` file, under
/// `label` or `cls` in its `.json` file, or in its `.txt` file. Of several pictures the one in the field that `options`
/// name is read, else the one whose field is a bare extension.
///
/// # Errors
///
/// `Format` if it is no tar archive, breaks off, unpacks to more than is believable, if some samples have labels and
/// others have not, or if it is not clear which picture of a sample is meant; `Images` if there are no pictures in it;
/// `Io` if it cannot be read.
pub(super) fn open(path: &Path, gzipped: bool, options: &ReadOptions) -> Result<Opened> {
    let with_labels = options.labels;
    let bytes = read(path, gzipped)?;
    let broken = |error: std::io::Error| {
        Error::new(ErrorKind::Format, format!("not a readable tar archive: {error}")).at(path).caused_by(error)
    };
    let mut pictures = Vec::new();
    let mut labels = Vec::new();
    let mut assumed = BTreeSet::new();
    let mut finish = |sample: Sample| {
        let label = sample.label.map(|(_, label)| label);
        if let Some((field, picture)) =
            choose(sample, options.image_column.as_deref()).map_err(|error| error.at(path))?
        {
            assumed.extend(field);
            pictures.push(picture);
            labels.push(label);
        }
        Ok::<(), Error>(())
    };
    let mut sample = Sample::default();
    let mut archive = tar::Archive::new(Cursor::new(&bytes[..]));
    for entry in archive.entries_with_seek().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let (start, length) = (entry.raw_file_position(), entry.size());
        if start.checked_add(length).is_none_or(|end| end > bytes.len() as u64) {
            return Err(Error::new(
                ErrorKind::Format,
                format!("its member `{name}` claims {length} bytes, and the archive ends before them"),
            )
            .at(path)
            .hint("the file was not written to its end; download it again"));
        }
        let member = Member { name, start: start as usize, length: length as usize };
        let Some((key, extension)) = key_and_extension(&member.name) else { continue };
        if key != sample.key {
            finish(std::mem::replace(&mut sample, Sample { key, ..Sample::default() }))?;
        }
        if with_labels
            && let Some(label) =
                label(&extension, member.of(&bytes)).map_err(|error| error.at(path.join(&member.name)))?
        {
            sample.label = sample.label.max(Some(label));
        }
        if has_picture_extension(Path::new(&member.name)) {
            sample.pictures.push((extension, member));
        }
    }
    finish(sample)?;
    if pictures.is_empty() {
        return Err(Error::new(ErrorKind::Images, "there are no pictures in this tar archive").at(path));
    }
    let unlabelled = labels.iter().position(Option::is_none).and_then(|index| pictures.get(index));
    let labels: Vec<i64> = labels.iter().copied().flatten().collect();
    let labels = match unlabelled {
        _ if !with_labels => Labels::Ignored,
        None => Labels::Present(labels),
        Some(_) if labels.is_empty() => {
            Labels::Absent("no sample of this tar archive has a .cls, .json or .txt file with a label".into())
        }
        Some(picture) => {
            return Err(Error::new(ErrorKind::Format, "this sample has no label, and others of the archive have")
                .at(path.join(&picture.name))
                .hint("a label is an integer in a .cls file, or `label` in a .json file, of the same base name"));
        }
    };
    let notes = note(&assumed).into_iter().collect();
    Ok(Opened { labels, notes, ..Opened::new(path, Shard { bytes, pictures }) })
}

/// Whether bytes are the first of a tar archive.
pub(super) fn is_tar(head: &[u8]) -> bool {
    head.get(257..262) == Some(b"ustar")
}

/// The picture of a sample that is meant, if it has any, with its field where that was assumed.
fn choose(sample: Sample, wanted: Option<&str>) -> Result<Option<(Option<String>, Member)>> {
    let Sample { key, mut pictures, .. } = sample;
    if pictures.is_empty() {
        return Ok(None);
    }
    let listed = |pictures: &[(String, Member)]| {
        let fields: Vec<&str> = pictures.iter().take(LISTED).map(|(field, _)| field.as_str()).collect();
        let more = pictures.len().saturating_sub(LISTED);
        fields.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    };
    if let Some(wanted) = wanted {
        // The field as it is, or without its extension.
        let wanted = wanted.to_lowercase();
        let is_wanted = |field: &str| field == wanted || field.rsplit_once('.').is_some_and(|(name, _)| name == wanted);
        let found = pictures.iter().position(|(field, _)| is_wanted(field));
        return match found {
            Some(index) => Ok(Some((None, pictures.swap_remove(index).1))),
            None => Err(Error::new(
                ErrorKind::Format,
                format!("its sample `{key}` has no picture in a field `{wanted}`, only in {}", listed(&pictures)),
            )
            .hint("name the field with ⟦image-column⟧: what follows the first dot of the files' names")),
        };
    }
    let bare = pictures.iter().filter(|(field, _)| !field.contains('.')).count();
    if bare > 0 {
        pictures.retain(|(field, _)| !field.contains('.'));
    }
    if pictures.len() > 1 {
        let message = format!(
            "its sample `{key}` has several pictures{}: the fields {}",
            if bare > 0 { "" } else { ", none under a bare extension" },
            listed(&pictures)
        );
        return Err(Error::new(ErrorKind::Format, message).hint(
            "keep one picture a sample, whose name ends at the first dot of the files' names; `tune`, `eval` and `run` \
             take \
             the field that is meant: ⟦image-column⟧ NAME",
        ));
    }
    Ok(pictures.pop().map(|(field, member)| ((bare == 0).then_some(field), member)))
}

/// What is said of pictures that are read from named fields because their samples have no other.
fn note(fields: &BTreeSet<String>) -> Option<String> {
    let shown: Vec<String> = fields.iter().take(LISTED).map(|field| format!("`{field}`")).collect();
    let more = if fields.len() > LISTED { ", ..." } else { "" };
    (!fields.is_empty()).then(|| {
        format!(
            "pictures of the tar archive are read from the fields {}{more}: the name of a sample ends at its first dot",
            shown.join(", ")
        )
    })
}

fn read(path: &Path, gzipped: bool) -> Result<Bytes> {
    let failed = |error| Error::io(path, error);
    let file = File::open(path).map_err(failed)?;
    if !gzipped {
        // SAFETY: the map is only read, as bytes, each of which may have any value. As with every mapped file, nobody
        // must truncate it while it is in use.
        return Ok(Bytes::from_owner(unsafe { Mmap::map(&file) }.map_err(failed)?));
    }
    let limit = unpacked_limit(file.metadata().map_err(failed)?.len());
    unpack(BufReader::new(file), limit).map_err(|error| error.at(path))
}

fn unpack(packed: impl Read, limit: u64) -> Result<Bytes> {
    let mut bytes = Vec::new();
    MultiGzDecoder::new(packed).take(limit + 1).read_to_end(&mut bytes).map_err(|error| {
        Error::new(ErrorKind::Format, format!("its gzip stream is broken: {error}")).caused_by(error)
    })?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(ErrorKind::Format, format!("it unpacks to more than {limit} bytes"))
            .hint("if you trust it, unpack it with `gunzip`: a plain .tar is not held in memory"));
    }
    Ok(bytes.into())
}

/// The base name of a sample with its folder, and the extension, which is all that follows the first dot, in lower
/// case. `None` for hidden files.
fn key_and_extension(name: &str) -> Option<(String, String)> {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = start + name[start..].find('.')?;
    (dot > start).then(|| (name[..dot].to_owned(), name[dot + 1..].to_ascii_lowercase()))
}

/// The label that a member of a sample holds, with its rank among the places for labels.
fn label(extension: &str, bytes: &[u8]) -> Result<Option<(u8, i64)>> {
    let number = || std::str::from_utf8(bytes).ok().and_then(|text| text.trim().parse().ok());
    match extension {
        "cls" => match number() {
            Some(label) => Ok(Some((2, label))),
            None => Err(Error::new(ErrorKind::Format, "this label is no integer")
                .hint("a .cls file holds the index of the class, such as `17`")),
        },
        "json" => {
            let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| {
                Error::new(ErrorKind::Format, format!("not readable as JSON: {error}")).caused_by(error)
            })?;
            let label = ["label", "cls"].iter().find_map(|name| value.get(name)?.as_i64());
            Ok(label.map(|label| (1, label)))
        }
        // Captions are text, too.
        "txt" => Ok(number().map(|label| (0, label))),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::super::item::Item;
    use super::*;
    use crate::data::ImageSource;
    use crate::data::testing::{gzip, png, tar as archive};

    fn open_bytes(bytes: &[u8], gzipped: bool) -> Result<Opened> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.tar");
        fs::write(&path, bytes).unwrap();
        open(&path, gzipped, &ReadOptions { labels: true, ..ReadOptions::default() })
    }

    #[test]
    fn samples_are_grouped_by_base_name() {
        let (red, green) = (png([200, 0, 0]), png([0, 200, 0]));
        let bytes = archive(&[
            ("data/a.b/1.cls", b"3\n"),
            ("data/a.b/1.png", &red),
            ("data/a.b/1.json", b"{\"label\": 9, \"caption\": \"a thing\"}"),
            ("data/a.b/._2.png", b"resource fork"),
            ("data/a.b/2.input.PNG", &green),
            ("data/a.b/2.txt", b"a green thing"),
            ("data/a.b/2.json", b"{\"cls\": 4}"),
            ("data/a.b/3.jpg", b"broken"),
            ("data/a.b/3.txt", b" 5 "),
            ("notes.json", b"{}"),
        ]);
        for (bytes, gzipped) in [(gzip(&bytes), true), (bytes, false)] {
            let opened = open_bytes(&bytes, gzipped).unwrap();
            let Labels::Present(labels) = opened.labels else { panic!("no labels") };
            assert_eq!(labels, [3, 4, 5]);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("data");
            fs::write(&path, bytes).unwrap();
            let source = ImageSource::open(&path).unwrap();
            assert_eq!(source.len(), 3);
            let Item::Picture(picture) = source.read(1).unwrap() else { panic!("no picture") };
            assert_eq!(picture.as_bytes()[..3], [0, 200, 0]);
            let error = source.read(2).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Images);
            assert!(error.to_string().contains("data/data/a.b/3.jpg"), "{error}");
        }
    }

    /// The first red value of every picture, and what is noted.
    fn reds(members: &[(&str, &[u8])], column: Option<&str>) -> Result<(Vec<u8>, Vec<String>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.tar");
        fs::write(&path, archive(members)).unwrap();
        let opened =
            open(&path, false, &ReadOptions { image_column: column.map(str::to_owned), ..ReadOptions::default() })?;
        let notes = opened.notes.clone();
        let source = ImageSource::new(&path, [(opened.path, opened.content)])?;
        let red = |index| match source.read(index).unwrap() {
            Item::Picture(picture) => picture.as_bytes()[0],
            Item::Tensor(_) => panic!("a tensor"),
        };
        Ok(((0..source.len()).map(red).collect(), notes))
    }

    #[test]
    fn fields_are_chosen_by_name_and_never_by_order() {
        let [one, two, three] = [1, 2, 3].map(|red| png([red, 0, 0]));
        // The bare extension, wherever it stands.
        let members: [(&str, &[u8]); 5] =
            [("0.depth.png", &one), ("0.png", &two), ("0.cls", b"1"), ("1.png", &two), ("1.depth.png", &one)];
        assert_eq!(reds(&members, None).unwrap(), (vec![2, 2], vec![]));
        assert_eq!(reds(&members, Some("depth")).unwrap(), (vec![1, 1], vec![]));
        assert_eq!(reds(&members, Some("depth.png")).unwrap().0, [1, 1]);
        let error = reds(&members, Some("rgb")).unwrap_err();
        assert!(error.to_string().contains("only in depth.png, png"), "{error}");
        // Several, and none to prefer.
        for members in [
            [("a/0.depth.png", &one[..]), ("a/0.rgb.png", &two), ("a/0.normal.png", &three)],
            [("n01.0000.png", &one), ("n01.0001.png", &two), ("n01.0002.png", &three)],
            [("0.jpg", &one), ("0.png", &two), ("0.mask.png", &three)],
        ] {
            let error = reds(&members, None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Format);
            let first = members[0].0.split_once('.').unwrap().1;
            assert!(error.to_string().contains(&format!("the fields {first}, ")), "{error}");
            assert!(error.hint_text().unwrap().contains("`image_column`"));
        }
        // One alone is read, and named.
        let (found, notes) = reds(&[("n01.0000.png", &one), ("n02.0000.png", &two)], None).unwrap();
        assert_eq!(found, [1, 2]);
        assert!(notes[0].contains("the fields `0000.png`:"), "{notes:?}");
    }

    #[test]
    fn labels_may_be_absent_but_not_in_part() {
        let picture = png([1, 2, 3]);
        let opened = open_bytes(&archive(&[("1.png", &picture), ("1.txt", b"a thing"), ("2.png", &picture)]), false);
        assert!(matches!(opened.unwrap().labels, Labels::Absent(_)));
        let partly = archive(&[("1.png", &picture), ("1.cls", b"1"), ("2.png", &picture)]);
        let error = open_bytes(&partly, false).err().unwrap();
        assert!(error.to_string().contains("shard.tar/2.png"), "{error}");
        for label in [("1.cls", &b"one"[..]), ("1.cls", b"\xff"), ("1.json", b"{")] {
            let error = open_bytes(&archive(&[("1.png", &picture), label]), false).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Format);
            assert!(error.to_string().contains(label.0), "{error}");
        }
    }

    #[test]
    fn truncated_and_lying_archives_are_errors() {
        let picture = png([1, 2, 3]);
        let whole = archive(&[("1.png", &picture), ("1.cls", b"1"), ("2.png", &picture), ("2.cls", b"1")]);
        // In the middle of a member, and of a header.
        for length in [540, 1024 + 100, 1024 + 512] {
            let error = open_bytes(&whole[..length], false).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Format, "{error}");
        }
        let error = open_bytes(&gzip(&whole)[..100], true).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Format);
        let mut lying = whole.clone();
        let mut header = tar::Header::new_gnu();
        header.set_path("1.png").unwrap();
        header.set_size(1 << 40);
        header.set_cksum();
        lying[..512].copy_from_slice(header.as_bytes());
        let error = open_bytes(&lying, false).err().unwrap();
        assert!(error.to_string().contains("claims 1099511627776 bytes"), "{error}");
        for bytes in [archive(&[("1.cls", b"1")]), vec![0; 1024]] {
            assert_eq!(open_bytes(&bytes, false).err().unwrap().kind(), ErrorKind::Images);
        }
    }

    #[test]
    fn a_gzip_bomb_is_refused() {
        let bomb = gzip(&[0; 1 << 20]);
        assert!(bomb.len() < 2000);
        assert!(unpack(&bomb[..], 1 << 20).is_ok());
        let error = unpack(&bomb[..], (1 << 20) - 1).unwrap_err();
        assert!(error.to_string().contains("unpacks to more"), "{error}");
        assert!(error.hint_text().unwrap().contains("gunzip"));
    }
}
