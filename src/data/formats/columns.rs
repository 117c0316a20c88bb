//! Columns of texts and of numbers in Parquet files.

use std::fs::File;
use std::path::Path;

use parquet::basic::Type;
use parquet::data_type::{BoolType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader};

use super::parquet::{broken, check_codec, guarded, named_classes, read_column, reader, values};
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

/// The values of a column of texts or numbers, its first `most` rows, as they are written; `None` for null.
///
/// # Errors
///
/// Those of [`text_column`].
pub(crate) fn value_column(path: &Path, name: &str, most: usize) -> Result<Vec<Option<String>>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let reader = reader(path, &file)?;
    let columns = reader.metadata().file_metadata().schema_descr().columns();
    let at = columns.iter().position(|column| column.path().string() == name && column.max_rep_level() == 0);
    let Some((at, kind)) = at.map(|at| (at, columns[at].physical_type())) else {
        let what = format!("its column `{name}` holds lists");
        return Err(Error::new(ErrorKind::Format, what).at(path));
    };
    match kind {
        Type::BYTE_ARRAY => return text_column(path, name, most),
        Type::BOOLEAN | Type::INT32 | Type::INT64 | Type::FLOAT | Type::DOUBLE => {}
        _ => {
            let what = format!("its column `{name}` holds neither texts nor numbers");
            return Err(Error::new(ErrorKind::Format, what).at(path));
        }
    }
    check_codec(path, &reader, at)?;
    let mut found = Vec::new();
    for number in 0..reader.num_row_groups() {
        if found.len() >= most {
            break;
        }
        let read = || numbers(reader.get_row_group(number)?.as_ref(), at, kind);
        found.extend(guarded(read).map_err(|error| broken(path, error))?);
    }
    found.truncate(most);
    Ok(found)
}

/// The numbers of a column of a row group, as they are written.
fn numbers(group: &dyn RowGroupReader, at: usize, kind: Type) -> Result<Vec<Option<String>>, ParquetError> {
    let mut found = Vec::new();
    let mut push = |value: Option<String>| {
        found.push(value);
        Ok(())
    };
    match kind {
        Type::BOOLEAN => read_column::<BoolType>(group, at, |v| push(v.map(|v| u8::from(v).to_string())))?,
        Type::INT32 => read_column::<Int32Type>(group, at, |v| push(v.map(|v| v.to_string())))?,
        Type::INT64 => read_column::<Int64Type>(group, at, |v| push(v.map(|v| v.to_string())))?,
        Type::FLOAT => read_column::<FloatType>(group, at, |v| push(v.map(|v| v.to_string())))?,
        _ => read_column::<DoubleType>(group, at, |v| push(v.map(|v| v.to_string())))?,
    }
    Ok(found)
}

/// The names of the classes that the numbers of a column stand for, where the file says so.
///
/// # Errors
///
/// Those of [`column_names`].
pub(crate) fn class_names(path: &Path, column: &str) -> Result<Option<Vec<String>>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    Ok(named_classes(&reader(path, &file)?, column))
}
