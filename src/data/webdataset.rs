//! Reads WebDataset shards: tar archives in which the files of a sample follow each other under one base name.
//!
//! The format is described at <https://github.com/webdataset/webdataset>. The members are indexed once; pictures are read
//! from the mapped file when they are asked for. A gzipped shard is unpacked in memory.

use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::Path;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use memmap2::Mmap;

use super::source::{Content, Labels, Opened, has_picture_extension, unpacked_limit};
use crate::error::{Error, ErrorKind, Result};

/// The pictures of a tar archive.
#[derive(Debug)]
pub(super) struct Shard {
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
    picture: Option<Member>,
    /// The label, and how much its place is trusted.
    label: Option<(u8, i64)>,
}

impl Shard {
    /// The number of pictures.
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    /// The name of the file of a picture in the archive.
    pub fn name(&self, index: usize) -> &str {
        self.pictures.get(index).map_or("", |member| &member.name)
    }

    /// The bytes of the file of a picture; none if there is no such picture.
    pub fn picture(&self, index: usize) -> &[u8] {
        self.pictures.get(index).map_or(&[], |member| member.of(&self.bytes))
    }
}

impl Member {
    fn of<'a>(&self, archive: &'a [u8]) -> &'a [u8] {
        archive.get(self.start..self.start + self.length).unwrap_or(&[])
    }
}

/// Opens the shard at `path`. A sample is the first picture under its base name, and the label in its `.cls` file, under
/// `label` or `cls` in its `.json` file, or in its `.txt` file.
///
/// # Errors
///
/// `Format` if it is no tar archive, breaks off, unpacks to more than is believable, or if some samples have labels and
/// others have not; `Images` if there are no pictures in it; `Io` if it cannot be read.
pub(super) fn open(path: &Path, gzipped: bool, with_labels: bool) -> Result<Opened> {
    let bytes = read(path, gzipped)?;
    let broken = |error: std::io::Error| {
        Error::new(ErrorKind::Format, format!("not a readable tar archive: {error}")).at(path).caused_by(error)
    };
    let mut pictures = Vec::new();
    let mut labels = Vec::new();
    let mut finish = |sample: Sample| {
        if let Some(picture) = sample.picture {
            pictures.push(picture);
            labels.push(sample.label.map(|(_, label)| label));
        }
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
            finish(std::mem::replace(&mut sample, Sample { key, ..Sample::default() }));
        }
        if with_labels
            && let Some(label) =
                label(&extension, member.of(&bytes)).map_err(|error| error.at(path.join(&member.name)))?
        {
            sample.label = sample.label.max(Some(label));
        }
        if sample.picture.is_none() && has_picture_extension(Path::new(&member.name)) {
            sample.picture = Some(member);
        }
    }
    finish(sample);
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
    Ok(Opened { labels, ..Opened::new(path, Content::Shard(Shard { bytes, pictures })) })
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

/// The base name of a sample with its folder, and the extension, which is all that follows the first dot, in lower case.
/// `None` for hidden files.
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
pub(super) mod tests {
    use std::fs;

    use image::{ImageFormat, RgbImage};

    use super::super::source::{ImageSource, Item, tests::gzip};
    use super::*;

    /// The bytes of a PNG file of one colour.
    pub(crate) fn png(colour: [u8; 3]) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::from_pixel(5, 4, image::Rgb(colour)).write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    pub(crate) fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn open_bytes(bytes: &[u8], gzipped: bool) -> Result<Opened> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.tar");
        fs::write(&path, bytes).unwrap();
        open(&path, gzipped, true)
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
