//! Reads Parquet files with an image column, as Hugging Face's data sets are published.
//!
//! An image is the bytes of a picture file, in a column of its own or in the field `bytes` of a structure; or, in a
//! column of strings or the field `path`, the name of a picture file in the folder of the Parquet file. Row groups are
//! decoded when one of their images is asked for, and the last ones stay in a [`Cache`] of bounded size: a data set
//! that fits in it is decoded once, and a larger one once for every image that is drawn at random. So row groups should
//! be small (Hugging Face writes 100 rows).

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use image::DynamicImage;
use memmap2::Mmap;
use parquet::basic::{Compression, ConvertedType, LogicalType, Type};
use parquet::column::reader::get_typed_column_reader;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::{ColumnDescPtr, ColumnDescriptor};

use super::super::decode;
use super::super::item::{Container, Labels, Opened, ReadOptions, Sample, within};
use crate::error::{Error, ErrorKind, Result};

/// The memory, in bytes, that decoded row groups may fill before the one that was not used for longest is dropped.
const CACHED: u64 = 1 << 30;

/// The largest row group that is read, in bytes of its image column.
const MAXIMAL_GROUP: u64 = 2 << 30;

/// The names of image and label columns where none are given, tried in turn.
const IMAGE_COLUMNS: [&str; 2] = ["image", "img"];
const LABEL_COLUMNS: [&str; 3] = ["label", "labels", "fine_label"];

const COLUMN_HINT: &str =
    "`tune`, `eval` and `run` take the names of the columns: ⟦image-column⟧ NAME and ⟦label-column⟧ NAME";

/// The image column of a Parquet file.
struct Rows {
    reader: SerializedFileReader<Bytes>,
    /// The columns of bytes and of paths.
    columns: Images,
    /// Where the files of paths lie.
    folder: PathBuf,
    /// Up to which row the row groups reach.
    ends: Vec<usize>,
    /// Sets the row groups of this file apart from those of others.
    id: usize,
    cache: Arc<Cache>,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("columns", &self.columns).field("ends", &self.ends).finish_non_exhaustive()
    }
}

/// Which columns hold the bytes of picture files, and which their names. There is at least one of them.
#[derive(Clone, Copy, Debug)]
struct Images {
    bytes: Option<usize>,
    path: Option<usize>,
}

impl Images {
    fn columns(self) -> impl Iterator<Item = usize> {
        self.bytes.into_iter().chain(self.path)
    }
}

/// The image of a row.
#[derive(Debug)]
enum Cell {
    Bytes(ByteArray),
    Path(ByteArray),
    Null,
}

impl Cell {
    fn len(&self) -> usize {
        match self {
            Cell::Bytes(bytes) | Cell::Path(bytes) => bytes.len(),
            Cell::Null => 0,
        }
    }
}

/// Decoded row groups, of all files that share it.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Slots>);

#[derive(Debug, Default)]
struct Slots {
    groups: HashMap<(usize, usize), Slot>,
    bytes: u64,
    /// How often the cache was asked.
    clock: u64,
}

#[derive(Debug)]
struct Slot {
    group: Arc<OnceLock<RowGroup>>,
    bytes: u64,
    used: u64,
}

/// The images of a row group, or why they cannot be read.
type RowGroup = Result<Vec<Cell>, String>;

impl Cache {
    /// The row group under `key`, decoded once, however many threads ask for it at the same time.
    fn get(&self, key: (usize, usize), limit: u64, decode: impl FnOnce() -> RowGroup) -> Arc<OnceLock<RowGroup>> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let group = {
            let mut slots = lock();
            slots.clock += 1;
            let used = slots.clock;
            let slot = slots.groups.entry(key).or_insert_with(|| Slot { group: Arc::default(), bytes: 0, used });
            slot.used = used;
            slot.group.clone()
        };
        let mut decoded = None;
        group.get_or_init(|| {
            let group = decode();
            decoded = Some(group.as_ref().map_or(0, |images| images.iter().map(|image| image.len() as u64).sum()));
            group
        });
        if let Some(bytes) = decoded {
            let mut slots = lock();
            if let Some(slot) = slots.groups.get_mut(&key) {
                slot.bytes = bytes;
                slots.bytes += bytes;
            }
            while slots.bytes > limit {
                let oldest = slots.groups.iter().filter(|(other, slot)| **other != key && slot.bytes > 0);
                let Some(oldest) = oldest.min_by_key(|(_, slot)| slot.used).map(|(&key, _)| key) else { break };
                slots.bytes -= slots.groups.remove(&oldest).map_or(0, |slot| slot.bytes);
            }
        }
        group
    }
}

impl Container for Rows {
    fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn sample(&self, row: usize) -> Result<Sample<'_>> {
        self.picture(row).map(Sample::picture)
    }

    fn name<'a>(&'a self, path: &Path, row: usize) -> Cow<'a, Path> {
        within(path, format_args!("row {row}"))
    }

    fn is_known_by_name(&self) -> bool {
        true
    }
}

impl Rows {
    /// The picture in a row.
    ///
    /// # Errors
    ///
    /// `Images` if there is none, or its row group or itself cannot be decoded.
    fn picture(&self, row: usize) -> Result<DynamicImage> {
        let number = self.ends.partition_point(|&end| end <= row);
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        let group = self
            .cache
            .get((self.id, number), CACHED, || guarded(|| self.group(number)).map_err(|error| error.to_string()));
        match group.get() {
            Some(Ok(images)) => match images.get(row - start) {
                Some(Cell::Bytes(bytes)) => decode::decode(bytes.data()),
                Some(Cell::Path(path)) => decode::read(&self.beside(path.data())?),
                Some(Cell::Null) | None => bail!(Images, "cannot be decoded: it holds nothing"),
            },
            Some(Err(message)) => bail!(Images, "its row group cannot be decoded: {message}"),
            None => bail!(Internal, "a row group was not decoded"),
        }
    }

    /// The file of that name in the folder of the Parquet file, which no name leads out of: it comes from the file.
    fn beside(&self, name: &[u8]) -> Result<PathBuf> {
        let name = String::from_utf8_lossy(name);
        let refused =
            |why: &str| Error::new(ErrorKind::Images, format!("it holds only the name `{name}` of a file{why}"));
        let relative = Path::new(&*name);
        if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(refused(", which leads out of the folder of the Parquet file"));
        }
        let missing = |_| refused(", and there is none in the folder of the Parquet file");
        let (inside, found) = (self.folder.canonicalize(), self.folder.join(relative).canonicalize());
        let (inside, found) = (inside.map_err(missing)?, found.map_err(missing)?);
        if !found.starts_with(inside) {
            return Err(refused(", a link that leads out of the folder of the Parquet file"));
        }
        Ok(found)
    }

    fn group(&self, number: usize) -> Result<Vec<Cell>, ParquetError> {
        let group = self.reader.get_row_group(number)?;
        let bytes = self.columns.bytes.map(|column| values(group.as_ref(), column)).transpose()?;
        // Names are of no use where all bytes are there.
        let wanted = bytes.as_ref().is_none_or(|bytes| bytes.iter().any(Option::is_none));
        let paths = self.columns.path.filter(|_| wanted).map(|column| values(group.as_ref(), column)).transpose()?;
        let rows = bytes.as_ref().or(paths.as_ref()).map_or(0, Vec::len);
        let mut bytes = bytes.into_iter().flatten();
        let mut paths = paths.into_iter().flatten();
        Ok((0..rows)
            .map(|_| match (bytes.next().flatten(), paths.next().flatten()) {
                (Some(bytes), _) => Cell::Bytes(bytes),
                (None, Some(path)) => Cell::Path(path),
                (None, None) => Cell::Null,
            })
            .collect())
    }
}

/// The values of a column of a row group.
pub(super) fn values(group: &dyn RowGroupReader, column: usize) -> Result<Vec<Option<ByteArray>>, ParquetError> {
    let mut bytes = 0;
    let mut values = Vec::new();
    read_column::<ByteArrayType>(group, column, |value| {
        bytes += value.as_ref().map_or(0, |value| value.len() as u64);
        values.push(value);
        if bytes > MAXIMAL_GROUP { Err(too_large()) } else { Ok(()) }
    })?;
    Ok(values)
}

/// What `read` returns, or an error where the library panics: it asserts what a damaged file does not keep.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    // Nothing that a panic may leave half done is used after it.
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(ParquetError::General("the file is damaged".into())))
}

fn too_large() -> ParquetError {
    ParquetError::General(format!("its values are more than {MAXIMAL_GROUP} bytes; write smaller row groups"))
}

/// The error of a file that the library does not read.
pub(super) fn broken(path: &Path, error: ParquetError) -> Error {
    Error::new(ErrorKind::Format, format!("not a readable Parquet file: {error}")).at(path).caused_by(error)
}

/// A reader of a Parquet file.
///
/// # Errors
///
/// `Format` if it is no Parquet file; `Io` if it cannot be read.
pub(super) fn reader(path: &Path, file: &File) -> Result<SerializedFileReader<Bytes>> {
    // SAFETY: the map is only read, as bytes, each of which may have any value. As with every mapped file, nobody must
    // truncate it while it is in use.
    let map = unsafe { Mmap::map(file) }.map_err(|error| Error::io(path, error))?;
    guarded(|| SerializedFileReader::new(Bytes::from_owner(map))).map_err(|error| broken(path, error))
}

/// Checks that this build reads how a column is packed.
///
/// # Errors
///
/// `Unsupported` if it does not.
pub(super) fn check_codec(path: &Path, reader: &SerializedFileReader<Bytes>, column: usize) -> Result<()> {
    let groups = reader.metadata().row_groups().iter();
    let codecs = groups.map(|group| group.column(column).compression());
    let Some((codec, feature)) = codecs.filter_map(unread).next() else { return Ok(()) };
    let name = reader.metadata().file_metadata().schema_descr().column(column).path().string();
    let message = format!("its column `{name}` is packed with {codec}, which this build does not read");
    let hint = match feature {
        Some(feature) => format!(
            "the release archive and the wheel read it, and so does a build with `cargo install --path . \
             --features {feature}`"
        ),
        None => "write the file anew, packed with Snappy, gzip or nothing".into(),
    };
    Err(Error::new(ErrorKind::Unsupported, message).at(path).hint(hint))
}

/// Opens the Parquet file at `path`. Its labels are read, its images are not.
///
/// # Errors
///
/// `Format` if it is no Parquet file, has no image column, labels that are no integers, or a null among them; `Io` if
/// it cannot be read.
pub(super) fn open(path: &Path, file: &File, options: &ReadOptions, cache: &Arc<Cache>) -> Result<Opened> {
    static FILES: AtomicUsize = AtomicUsize::new(0);
    let reader = reader(path, file)?;
    let ends = row_ends(path, &reader)?;
    let columns = Columns { path, reader: &reader, all: reader.metadata().file_metadata().schema_descr().columns() };
    let images = columns.images(&names(options.image_column.as_deref(), &IMAGE_COLUMNS))?;
    let label_names = names(options.label_column.as_deref(), &LABEL_COLUMNS);
    let label = columns.find(&label_names, "");
    for read in images.columns().chain(label.filter(|_| options.labels)) {
        check_codec(path, &reader, read)?;
    }
    let labels = match label {
        _ if !options.labels => Labels::Ignored,
        None => Labels::Absent(columns.absent("labels", &label_names)),
        Some(label) => Labels::Present(columns.labels(label)?),
    };
    let classes = label.and_then(|label| named_classes(&reader, columns.all[label].path().parts().first()?));
    let id = FILES.fetch_add(1, Ordering::Relaxed);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
    let rows = Rows { columns: images, folder, ends, id, cache: cache.clone(), reader };
    Ok(Opened { labels, classes, ..Opened::new(path, rows) })
}

/// Up to which row each row group reaches.
fn row_ends(path: &Path, reader: &SerializedFileReader<Bytes>) -> Result<Vec<usize>> {
    let mut ends = Vec::new();
    for group in reader.metadata().row_groups() {
        let rows = usize::try_from(group.num_rows()).ok();
        let Some(end) = rows.and_then(|rows| rows.checked_add(ends.last().copied().unwrap_or(0))) else {
            let message = format!("a row group claims {} rows", group.num_rows());
            return Err(broken(path, ParquetError::General(message)));
        };
        ends.push(end);
    }
    Ok(ends)
}

/// The names that a column may have: the given one, else the usual ones.
fn names(given: Option<&str>, usual: &[&str]) -> Vec<String> {
    given.map_or_else(|| usual.iter().map(|&name| name.to_owned()).collect(), |name| vec![name.to_owned()])
}

/// The columns of a file, named as the messages list them, with the structures that they lie in.
struct Columns<'f> {
    path: &'f Path,
    reader: &'f SerializedFileReader<Bytes>,
    all: &'f [ColumnDescPtr],
}

impl Columns<'_> {
    /// The column that has the first of these names, or is this field of it.
    fn find(&self, names: &[String], field: &str) -> Option<usize> {
        names.iter().find_map(|name| {
            let name = format!("{name}{field}");
            self.all.iter().position(|column| column.path().string() == name)
        })
    }

    fn is_usable(&self, column: usize, types: &[Type]) -> bool {
        let column = &self.all[column];
        column.max_rep_level() == 0 && types.contains(&column.physical_type())
    }

    fn absent(&self, what: &str, names: &[String]) -> String {
        let listed = self.all.iter().map(|column| column.path().string()).collect::<Vec<_>>().join(", ");
        format!("it has no column of {what} named {}; there are {listed}", names.join(" or "))
    }

    fn fault(&self, message: String) -> Error {
        Error::new(ErrorKind::Format, message).at(self.path).hint(COLUMN_HINT)
    }

    /// An error where a column does not hold what it should.
    fn check(&self, column: usize, types: &[Type], what: &str) -> Result<()> {
        if self.is_usable(column, types) {
            return Ok(());
        }
        Err(self.fault(format!("its column `{}` does not hold {what}", self.all[column].path().string())))
    }

    /// The columns of pictures.
    fn images(&self, names: &[String]) -> Result<Images> {
        let images = match self.find(names, "") {
            Some(column) if is_text(&self.all[column]) => Images { bytes: None, path: Some(column) },
            Some(column) => Images { bytes: Some(column), path: None },
            None => Images {
                bytes: self.find(names, ".bytes"),
                // A column of nulls alone may be of any type.
                path: self.find(names, ".path").filter(|&column| self.is_usable(column, &[Type::BYTE_ARRAY])),
            },
        };
        if images.columns().next().is_none() {
            return Err(self.fault(self.absent("pictures", names)));
        }
        for column in images.columns() {
            self.check(column, &[Type::BYTE_ARRAY], "the bytes of picture files")?;
        }
        Ok(images)
    }

    /// The labels in a column, one for each row.
    fn labels(&self, column: usize) -> Result<Vec<i64>> {
        self.check(column, &[Type::INT32, Type::INT64, Type::BOOLEAN], "integers")?;
        let labels = guarded(|| read_labels(self.reader, column)).map_err(|error| broken(self.path, error))?;
        let missing = |row| {
            Error::new(ErrorKind::Format, format!("row {row} has no label")).at(self.path).hint("leave such rows out")
        };
        labels.into_iter().enumerate().map(|(row, label)| label.ok_or_else(|| missing(row))).collect()
    }
}

/// Whether a column holds text, by what its file says of it.
fn is_text(column: &ColumnDescriptor) -> bool {
    column.converted_type() == ConvertedType::UTF8 || column.logical_type_ref() == Some(&LogicalType::String)
}

/// The codecs that this build reads.
pub fn codecs() -> Vec<&'static str> {
    let optional =
        [("zstd", cfg!(feature = "zstd")), ("lz4", cfg!(feature = "lz4")), ("brotli", cfg!(feature = "brotli"))];
    ["snappy", "gzip"]
        .into_iter()
        .chain(optional.into_iter().filter(|(_, built)| *built).map(|(name, _)| name))
        .collect()
}

/// The name of a codec that this build does not read, with the feature of the crate that has it.
fn unread(codec: Compression) -> Option<(&'static str, Option<&'static str>)> {
    match codec {
        Compression::ZSTD(_) if !cfg!(feature = "zstd") => Some(("Zstandard", Some("zstd"))),
        Compression::LZ4 | Compression::LZ4_RAW if !cfg!(feature = "lz4") => Some(("LZ4", Some("lz4"))),
        Compression::BROTLI(_) if !cfg!(feature = "brotli") => Some(("Brotli", Some("brotli"))),
        Compression::LZO => Some(("LZO", None)),
        _ => None,
    }
}

fn read_labels(reader: &SerializedFileReader<Bytes>, column: usize) -> Result<Vec<Option<i64>>, ParquetError> {
    let mut labels = Vec::new();
    for number in 0..reader.num_row_groups() {
        let group = reader.get_row_group(number)?;
        let group = group.as_ref();
        let mut push = |label: Option<i64>| {
            labels.push(label);
            Ok(())
        };
        match group.metadata().column(column).column_type() {
            Type::INT32 => read_column::<Int32Type>(group, column, |label| push(label.map(i64::from)))?,
            Type::INT64 => read_column::<Int64Type>(group, column, push)?,
            _ => read_column::<BoolType>(group, column, |label| push(label.map(i64::from)))?,
        }
    }
    Ok(labels)
}

/// Passes every value of a column that is not repeated to `take`, `None` for null.
pub(super) fn read_column<T: DataType>(
    group: &dyn RowGroupReader,
    column: usize,
    mut take: impl FnMut(Option<T::T>) -> Result<(), ParquetError>,
) -> Result<(), ParquetError> {
    const ROWS: usize = 1024;
    let metadata = group.metadata().column(column);
    if u64::try_from(metadata.uncompressed_size()).map_or(true, |size| size > MAXIMAL_GROUP) {
        return Err(too_large());
    }
    let filled = metadata.column_descr().max_def_level();
    let mut reader = get_typed_column_reader::<T>(group.get_column_reader(column)?);
    let expected = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
    let mut rows = 0;
    loop {
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let (records, _, _) = reader.read_records(ROWS, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            break;
        }
        rows += records;
        if rows > expected {
            break;
        }
        if filled == 0 {
            values.into_iter().try_for_each(|value| take(Some(value)))?;
        } else {
            let mut values = values.into_iter();
            levels.into_iter().try_for_each(|level| take(if level == filled { values.next() } else { None }))?;
        }
    }
    if rows != expected {
        return Err(ParquetError::General(format!("a row group has {rows} rows, and claims {expected}")));
    }
    Ok(())
}

/// The names of the classes, which Hugging Face's `datasets` leaves in the metadata of the file.
pub(super) fn named_classes(reader: &SerializedFileReader<Bytes>, column: &str) -> Option<Vec<String>> {
    let entries = reader.metadata().file_metadata().key_value_metadata()?;
    let json = entries.iter().find(|entry| entry.key == "huggingface")?.value.as_ref()?;
    let json: serde_json::Value = serde_json::from_str(json).ok()?;
    serde_json::from_value(json.get("info")?.get("features")?.get(column)?.get("names")?.clone()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use parquet::basic::Compression;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::super::super::item::Item;
    use super::*;
    use crate::data::ImageSource;
    use crate::data::testing::png;

    /// A file whose first column holds the picture and whose second column, if the schema has one, the label of each
    /// row, two rows a group.
    fn write(
        schema: &str,
        rows: &[(Option<Vec<u8>>, Option<i64>)],
        compression: Compression,
    ) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::with_suffix(".parquet").unwrap();
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        let mut writer = SerializedFileWriter::new(file.reopen().unwrap(), schema, properties).unwrap();
        for rows in rows.chunks(2) {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let images: Vec<ByteArray> =
                rows.iter().filter_map(|(image, _)| image.clone().map(ByteArray::from)).collect();
            let levels: Vec<i16> = rows.iter().map(|(image, _)| i16::from(image.is_some())).collect();
            column.typed::<ByteArrayType>().write_batch(&images, Some(&levels), Some(&vec![0; rows.len()])).unwrap();
            column.close().unwrap();
            if let Some(mut column) = group.next_column().unwrap() {
                let labels: Vec<i64> = rows.iter().filter_map(|(_, label)| *label).collect();
                let levels: Vec<i16> = rows.iter().map(|(_, label)| i16::from(label.is_some())).collect();
                match column.untyped() {
                    parquet::column::writer::ColumnWriter::Int64ColumnWriter(column) => {
                        column.write_batch(&labels, Some(&levels), None).unwrap();
                    }
                    parquet::column::writer::ColumnWriter::Int32ColumnWriter(column) => {
                        let labels: Vec<i32> = labels.iter().map(|&label| label as i32).collect();
                        column.write_batch(&labels, Some(&levels), None).unwrap();
                    }
                    _ => panic!("no integers"),
                }
                column.close().unwrap();
            }
            group.close().unwrap();
        }
        writer.close().unwrap();
        file
    }

    fn open_with(path: &Path, options: &ReadOptions) -> Result<Opened> {
        open(path, &File::open(path).unwrap(), options, &Arc::default())
    }

    fn options() -> ReadOptions {
        ReadOptions { labels: true, ..ReadOptions::default() }
    }

    fn rows(count: u8) -> Vec<(Option<Vec<u8>>, Option<i64>)> {
        (0..count).map(|row| (Some(png([row, 0, 0])), Some(i64::from(row % 3)))).collect()
    }

    const PLAIN: &str = "message schema { optional binary img; optional int64 label; }";

    #[test]
    fn columns_of_several_kinds_are_read() {
        for (schema, compression) in [
            (PLAIN, Compression::UNCOMPRESSED),
            ("message schema { optional binary image; optional int32 fine_label; }", Compression::SNAPPY),
            (
                "message schema { optional group image { required binary bytes; } optional int32 labels \
                 (INTEGER(8,true)); }",
                Compression::GZIP(Default::default()),
            ),
        ] {
            let file = write(schema, &rows(5), compression);
            let opened = open_with(file.path(), &options()).unwrap();
            let Labels::Present(labels) = &opened.labels else { panic!("no labels") };
            assert_eq!(labels, &[0, 1, 2, 0, 1]);
            let source = ImageSource::open(file.path()).unwrap();
            for row in [4, 0, 3, 1, 2] {
                let Item::Picture(picture) = source.read(row).unwrap() else { panic!("no picture") };
                assert_eq!(picture.as_bytes()[..3], [row as u8, 0, 0]);
            }
        }
    }

    #[test]
    fn null_pictures_are_corrupt_and_null_labels_are_errors() {
        let mut some = rows(3);
        some[1].0 = None;
        let file = write(PLAIN, &some, Compression::UNCOMPRESSED);
        let source = ImageSource::open(file.path()).unwrap();
        assert!(source.read(2).is_ok());
        let error = source.read(1).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Images);
        assert!(error.to_string().contains(".parquet, row 1`"), "{error}");
        some[2].1 = None;
        let file = write(PLAIN, &some, Compression::UNCOMPRESSED);
        let error = open_with(file.path(), &options()).err().unwrap();
        assert!(error.to_string().contains("row 2 has no label"), "{error}");
        assert!(open_with(file.path(), &ReadOptions::default()).is_ok(), "labels that nobody asks for");
    }

    #[test]
    fn columns_are_named_where_they_are_not_found() {
        let file =
            write("message schema { optional binary photo; optional int64 kind; }", &rows(1), Compression::SNAPPY);
        let error = open_with(file.path(), &options()).err().unwrap();
        assert!(error.to_string().contains("there are photo, kind"), "{error}");
        assert!(error.hint_text().unwrap().contains("`image_column`"));
        let named = |image: &str, label: &str| ReadOptions {
            image_column: Some(image.into()),
            label_column: Some(label.into()),
            ..options()
        };
        assert!(matches!(open_with(file.path(), &named("photo", "kind")).unwrap().labels, Labels::Present(_)));
        assert!(matches!(open_with(file.path(), &named("photo", "label")).unwrap().labels, Labels::Absent(_)));
        let error = open_with(file.path(), &named("kind", "kind")).err().unwrap();
        assert!(error.to_string().contains("`kind` does not hold the bytes"), "{error}");
        let error = open_with(file.path(), &named("photo", "photo")).err().unwrap();
        assert!(error.to_string().contains("`photo` does not hold integers"), "{error}");
        let list = write("message schema { repeated binary img; }", &rows(1), Compression::SNAPPY);
        assert!(open_with(list.path(), &options()).is_err());
    }

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reports/parquet").join(name)
    }

    /// The first red value of a picture, or why there is none.
    type Red = Result<u8, String>;

    /// Those of all pictures, and the labels.
    fn reds(path: &Path, options: &ReadOptions) -> Result<(Vec<Red>, Vec<i64>)> {
        let opened = open_with(path, options)?;
        let Labels::Present(labels) = opened.labels else { panic!("no labels") };
        let source = ImageSource::new(path, [(opened.path, opened.content)])?;
        let red = |row| match source.read(row) {
            Ok(Item::Picture(picture)) => Ok(picture.as_bytes()[0]),
            Ok(Item::Tensor(_)) => panic!("a tensor"),
            Err(error) => Err(error.to_string()),
        };
        Ok(((0..source.len()).map(red).collect(), labels))
    }

    #[test]
    fn codecs_are_read_or_the_feature_is_named() {
        for (codec, name, is_built_in) in [
            ("snappy", "", true),
            ("zstd", "Zstandard", cfg!(feature = "zstd")),
            ("lz4", "LZ4", cfg!(feature = "lz4")),
            ("brotli", "Brotli", cfg!(feature = "brotli")),
        ] {
            let found = reds(&fixture(&format!("{codec}.parquet")), &options());
            if is_built_in {
                assert_eq!(found.unwrap(), (vec![Ok(10), Ok(20)], vec![1, 0]), "{codec}");
            } else {
                let error = found.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert!(error.to_string().contains(&format!("its column `image` is packed with {name}")), "{error}");
                assert!(error.hint_text().unwrap().contains(&format!("--features {codec}")), "{error:?}");
            }
        }
    }

    #[test]
    fn pictures_that_are_only_named_lie_beside_the_file() {
        let (found, _) = reds(&fixture("names.parquet"), &options()).unwrap();
        assert_eq!(found[..2], [Ok(10), Ok(20)]);
        let said = |row: usize| found[row].clone().unwrap_err();
        assert!(
            said(2).contains("row 2`: it holds only the name `red/none.png` of a file, and there is none"),
            "{}",
            said(2)
        );
        assert!(said(3).contains("leads out of the folder"), "{}", said(3));
        let (found, _) = reds(&fixture("some-names.parquet"), &options()).unwrap();
        assert_eq!(found[..2], [Ok(20), Ok(10)]);
        assert!(found[2].clone().unwrap_err().contains("holds nothing"));
    }

    #[cfg(unix)]
    #[test]
    fn no_link_leads_a_named_picture_out_of_the_folder() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("data");
        fs::create_dir_all(folder.join("red")).unwrap();
        fs::copy(fixture("names.parquet"), folder.join("names.parquet")).unwrap();
        fs::copy(fixture("red/10.png"), outer.path().join("secret.png")).unwrap();
        fs::copy(fixture("red/20.png"), folder.join("red/20.png")).unwrap();
        std::os::unix::fs::symlink(outer.path().join("secret.png"), folder.join("red/10.png")).unwrap();
        let (found, _) = reds(&folder.join("names.parquet"), &options()).unwrap();
        assert!(found[0].clone().unwrap_err().contains("a link that leads out"), "{found:?}");
        assert_eq!(found[1], Ok(20));
    }

    #[test]
    fn columns_in_structures_are_named_as_they_are_listed() {
        let named = |image: &str, label: &str| ReadOptions {
            image_column: Some(image.into()),
            label_column: Some(label.into()),
            ..options()
        };
        for (file, image) in [
            ("nested.parquet", "sample.image"),
            ("nested.parquet", "sample.image.bytes"),
            ("nested-plain.parquet", "sample.image"),
        ] {
            let found = reds(&fixture(file), &named(image, "sample.label")).unwrap();
            assert_eq!(found, (vec![Ok(10), Ok(20)], vec![1, 0]), "{file} {image}");
        }
        let error = reds(&fixture("nested.parquet"), &options()).unwrap_err();
        assert!(error.to_string().contains("there are sample.image.bytes, sample.image.path, sample.label"), "{error}");
    }

    #[test]
    fn damaged_files_are_errors() {
        let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/datasets/hugging-face.parquet");
        let whole = fs::read(path).unwrap();
        let file = tempfile::NamedTempFile::with_suffix(".parquet").unwrap();
        let mut failures = 0;
        let mut check = |bytes: &[u8]| {
            fs::write(file.path(), bytes).unwrap();
            match open_with(file.path(), &options()) {
                Ok(opened) => {
                    let contents = [(file.path().to_path_buf(), opened.content)];
                    let Ok(source) = ImageSource::new(file.path(), contents) else { return };
                    failures += (0..source.len().min(20)).filter(|&row| source.read(row).is_err()).count();
                }
                Err(error) => {
                    assert!([ErrorKind::Format, ErrorKind::Images].contains(&error.kind()), "{error}");
                    failures += 1;
                }
            }
        };
        for length in (0..whole.len()).step_by(397) {
            check(&whole[..length]);
        }
        for position in (0..whole.len()).step_by(31) {
            let mut damaged = whole.clone();
            damaged[position] ^= 1 << (position % 8);
            check(&damaged);
        }
        assert!(failures > 50, "{failures}");
    }

    #[test]
    fn the_cache_is_bounded_and_decodes_once() {
        let cache = Cache::default();
        let mut decoded = Vec::new();
        let mut get = |number: usize| {
            let group = cache.get((0, number), 25, || {
                decoded.push(number);
                Ok(vec![Cell::Bytes(ByteArray::from(vec![number as u8; 10])), Cell::Null])
            });
            let Cell::Bytes(bytes) = &group.get().unwrap().as_ref().unwrap()[0] else { panic!("no bytes") };
            assert_eq!(bytes.data(), [number as u8; 10]);
        };
        for number in [0, 1, 0, 2, 0, 1] {
            get(number);
        }
        // The third group drove out the second, which was not used for longest.
        assert_eq!(decoded, [0, 1, 2, 1]);
        assert_eq!(cache.0.lock().unwrap().bytes, 20);
    }
}
