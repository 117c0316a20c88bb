//! Columns of text in Parquet files.

use std::fs::File;
use std::path::Path;

use parquet::basic::Type;
use parquet::errors::ParquetError;
use parquet::file::reader::FileReader;

use super::parquet::{broken, check_codec, guarded, reader, values};
use crate::error::{Error, ErrorKind, Result};

/// The names of the columns of a Parquet file, with the structures that they lie in.
///
/// # Errors
///
/// `Format` if it is no Parquet file; `Io` if it cannot be read.
pub(crate) fn column_names(path: &Path) -> Result<Vec<String>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let reader = reader(path, &file)?;
    Ok(reader.metadata().file_metadata().schema_descr().columns().iter().map(|c| c.path().string()).collect())
}

/// The texts of a column of a Parquet file, its first `most` rows; `None` for null.
///
/// # Errors
///
/// `Format` if it is no Parquet file, or the column holds no text; `Unsupported` if it is packed in a way that this
/// build does not read; `Io` if it cannot be read.
pub(crate) fn text_column(path: &Path, name: &str, most: usize) -> Result<Vec<Option<String>>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let reader = reader(path, &file)?;
    let columns = reader.metadata().file_metadata().schema_descr().columns();
    let no_text = || Error::new(ErrorKind::Format, format!("its column `{name}` holds no text")).at(path);
    let at = columns.iter().position(|column| {
        column.path().string() == name && column.max_rep_level() == 0 && column.physical_type() == Type::BYTE_ARRAY
    });
    let at = at.ok_or_else(no_text)?;
    check_codec(path, &reader, at)?;
    let mut texts = Vec::new();
    for number in 0..reader.num_row_groups() {
        if texts.len() >= most {
            break;
        }
        let read = || -> Result<_, ParquetError> { values(reader.get_row_group(number)?.as_ref(), at) };
        for value in guarded(read).map_err(|error| broken(path, error))? {
            let text = value.map(|bytes| String::from_utf8(bytes.data().to_vec())).transpose();
            texts.push(text.map_err(|_| no_text().hint("its text has to be UTF-8"))?);
        }
    }
    texts.truncate(most);
    Ok(texts)
}
