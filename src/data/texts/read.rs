//! Texts as files have them: one a line, or in the columns of a table.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use walkdir::WalkDir;

use super::super::formats::{class_names, column_names, is_folder, text_column, value_column};
use super::csv::records;
use super::targets::Target;
use crate::error::{Error, ErrorKind, Result};

const HINT: &str = "give a .txt file of one text a line, a .jsonl, .csv, .tsv or .parquet file, or a folder of them";

/// The columns of text where none are named, tried in turn.
const USUAL: [&str; 2] = ["text", "sentence"];

/// A text, or a pair of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Text {
    /// The text.
    pub text: String,
    /// The second one of a pair.
    pub pair: Option<String>,
    /// What stands beside it in the column of labels or scores.
    pub target: Option<String>,
}

/// Texts that were read.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In their order.
    pub texts: Vec<Text>,
    /// The columns that they come from.
    pub columns: Vec<String>,
    /// The column of labels or scores.
    pub target: Option<String>,
    /// The names of the classes that its numbers stand for, where a file says so.
    pub classes: Option<Vec<String>>,
}

impl Found {
    /// The column of labels or scores, and what stands there beside each text.
    pub fn beside(&self) -> Option<(&str, Vec<&str>)> {
        let values = self.texts.iter().filter_map(|text| text.target.as_deref());
        self.target.as_deref().map(|column| (column, values.collect()))
    }
}

/// What a file of texts is, by its name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum TextFormat {
    Lines,
    Json,
    /// With what sets fields apart.
    Separated(char),
    Parquet,
}

fn kind(path: &Path) -> Option<TextFormat> {
    Some(match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "txt" => TextFormat::Lines,
        "jsonl" | "ndjson" | "json" => TextFormat::Json,
        "csv" => TextFormat::Separated(','),
        "tsv" => TextFormat::Separated('\t'),
        "parquet" => TextFormat::Parquet,
        _ => return None,
    })
}

/// The first `most` texts of a file, or of the files of a folder in the order of their paths, with their labels.
///
/// # Errors
/// [`ErrorKind::Usage`] for a column that is not there; [`ErrorKind::Format`] for a file of another kind, a malformed
/// one, one without a text, and for files of which some have labels; those of reading.
pub(super) fn read(path: &Path, columns: &[String], target: &Target, most: usize) -> Result<Found> {
    let files = match is_folder(path).map_err(|e| e.rehint(HINT))? {
        true => listed(path)?,
        false => vec![path.to_path_buf()],
    };
    let mut found = Found::default();
    for file in files {
        let own = of_file(&file, columns, target, most - found.texts.len())?;
        if !found.texts.is_empty() && (&own.target, &own.classes) != (&found.target, &found.classes) {
            return Err(Error::new(ErrorKind::Format, "its labels are of another kind than those of the files before")
                .at(file)
                .hint("the files of a folder share the column of labels, and the classes"));
        }
        let mut texts = std::mem::take(&mut found.texts);
        texts.extend(own.texts);
        found = Found { texts, ..own };
        if found.texts.len() >= most {
            break;
        }
    }
    match found.texts.is_empty() {
        true => Err(Error::new(ErrorKind::Format, "there are no texts in it").at(path).hint(HINT)),
        false => Ok(found),
    }
}

/// The files of texts in a folder, which are all of one kind. Hidden ones are left out.
fn listed(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
    let visible = |e: &walkdir::DirEntry| e.depth() == 0 || !e.file_name().as_encoded_bytes().starts_with(b".");
    for entry in walk.filter_entry(visible) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(folder).to_path_buf();
            Error::io(path, error.into()).hint(HINT)
        })?;
        if entry.file_type().is_file() && kind(entry.path()).is_some() {
            files.push(entry.into_path());
        }
    }
    let wrong = |what: String| Error::new(ErrorKind::Format, what).at(folder);
    let Some(first) = files.first() else {
        return Err(wrong("there are no files of texts in this folder".into()).hint(HINT));
    };
    match files.iter().find(|file| kind(file) != kind(first)) {
        Some(other) => {
            let what = format!("it holds files of several kinds (`{}`, `{}`)", first.display(), other.display());
            Err(wrong(what).hint("name one of the files, or a folder that holds nothing else"))
        }
        None => Ok(files),
    }
}

fn of_file(path: &Path, columns: &[String], target: &Target, most: usize) -> Result<Found> {
    let wrong = |what: String| Error::new(ErrorKind::Format, what).at(path).hint(HINT);
    match kind(path) {
        None => Err(wrong("its name does not say how texts stand in it".into())),
        Some(TextFormat::Lines) if !columns.is_empty() => {
            Err(Error::new(ErrorKind::Usage, "lines of text have no columns").at(path).hint("drop ⟦text-column⟧"))
        }
        Some(TextFormat::Lines) if target.flag().is_some() => {
            let hint = format!("drop {}", target.flag().unwrap_or_default());
            Err(Error::new(ErrorKind::Usage, "lines of text have no columns").at(path).hint(hint))
        }
        Some(TextFormat::Lines) => {
            let lines = utf8(path)?;
            let texts = lines.lines().take(most).map(|line| joined([line.to_owned()].into_iter(), None)).collect();
            Ok(Found { texts, ..Found::default() })
        }
        Some(TextFormat::Json) => of_json(path, &utf8(path)?, columns, target, most),
        Some(TextFormat::Separated(separator)) => {
            let mut rows = records(&utf8(path)?, separator).map_err(wrong)?.into_iter();
            let names = rows.next().ok_or_else(|| wrong("it is empty".into()))?;
            let is_set_apart = |e: Error| set_apart(e, &names, separator);
            let columns = chosen(path, &names, columns).map_err(is_set_apart)?;
            let column = target.column(path, &names).map_err(is_set_apart)?;
            check_unique(path, &names, columns.iter().chain(&column))?;
            let at = |column: &String| names.iter().position(|name| name == column).unwrap_or_default();
            let places: Vec<usize> = columns.iter().map(at).collect();
            let beside = column.as_ref().map(at);
            let mut texts = Vec::new();
            for (number, row) in rows.take(most).enumerate() {
                if row.len() != names.len() {
                    let what = format!("row {number} has {} fields, and the first line {}", row.len(), names.len());
                    return Err(wrong(what).rehint("texts with separators or breaks stand in double quotes"));
                }
                let label = beside.map(|p| row[p].clone());
                let label = labelled(path, number, target, &column, label)?;
                texts.push(joined(places.iter().map(|&p| row[p].clone()), label));
            }
            Ok(Found { texts, columns, target: column, classes: None })
        }
        Some(TextFormat::Parquet) => {
            let names = column_names(path).map_err(|e| e.hint(HINT))?;
            let columns = chosen(path, &names, columns)?;
            let column = target.column(path, &names)?;
            check_unique(path, &names, columns.iter().chain(&column))?;
            let read = |name: &String| text_column(path, name, most).map_err(|e| e.hint(HINT));
            let read: Vec<Vec<Option<String>>> = columns.iter().map(read).collect::<Result<_>>()?;
            let beside = column.as_ref().map(|name| value_column(path, name, most)).transpose();
            let beside = beside.map_err(|e| e.hint("labels are whole numbers from 0, or names"))?;
            let classes = column.as_ref().map(|name| class_names(path, name)).transpose()?.flatten();
            let row = |number: usize| {
                let texts = columns.iter().zip(&read).map(|(column, texts)| {
                    let text = texts.get(number).cloned().flatten();
                    text.ok_or_else(|| no_text(path, number, column))
                });
                let texts = texts.collect::<Result<Vec<String>>>()?;
                let label = beside.as_ref().and_then(|labels| labels.get(number).cloned().flatten());
                labelled(path, number, target, &column, label).map(|label| joined(texts.into_iter(), label))
            };
            let texts = (0..read.first().map_or(0, Vec::len)).map(row).collect::<Result<_>>()?;
            Ok(Found { texts, columns, target: column, classes })
        }
    }
}

fn of_json(path: &Path, lines: &str, columns: &[String], target: &Target, most: usize) -> Result<Found> {
    let mut found = Found::default();
    for (number, line) in lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).take(most) {
        let wrong = |what: String| {
            let what = format!("line {} {what}", number + 1);
            Error::new(ErrorKind::Format, what).at(path).hint("JSON lines have one object of named values a line")
        };
        let value: Value = serde_json::from_str(line).map_err(|e| wrong(format!("is not JSON: {e}")))?;
        let Value::Object(object) = value else { return Err(wrong("is no object".into())) };
        if found.columns.is_empty() {
            let names: Vec<String> = object.keys().cloned().collect();
            found.columns = chosen(path, &names, columns)?;
            found.target = target.column(path, &names)?;
        }
        let text = |column: &String| {
            let text = object.get(column).and_then(Value::as_str).map(str::to_owned);
            text.ok_or_else(|| no_text(path, found.texts.len(), column))
        };
        let texts = found.columns.iter().map(text).collect::<Result<Vec<String>>>()?;
        let label = found.target.as_ref().and_then(|name| match object.get(name)? {
            Value::String(name) => Some(name.clone()),
            // A class has a number, and a score is one.
            Value::Bool(value) if matches!(target, Target::Score { .. }) => Some(value.to_string()),
            Value::Bool(value) => Some(u8::from(*value).to_string()),
            Value::Number(value) => Some(value.to_string()),
            _ => None,
        });
        let label = labelled(path, found.texts.len(), target, &found.target, label)?;
        found.texts.push(joined(texts.into_iter(), label));
    }
    Ok(found)
}

/// The columns that were asked for, or the usual one, of those that are there.
fn chosen(path: &Path, names: &[String], asked: &[String]) -> Result<Vec<String>> {
    let has = |name: &str| names.iter().any(|own| own == name);
    let missing = |what: String| {
        Error::new(ErrorKind::Usage, format!("{what}; there are {}", names.join(", ")))
            .at(path)
            .hint("name the column of texts: ⟦text-column⟧ NAME, or ⟦text-column⟧ A,B for pairs")
    };
    match (asked, USUAL.into_iter().find(|name| has(name))) {
        ([], Some(usual)) => Ok(vec![usual.to_owned()]),
        ([], None) => Err(missing(format!("it has no column {}", USUAL.join(" or ")))),
        _ => match asked.iter().find(|name| !has(name)) {
            Some(name) => Err(missing(format!("it has no column `{name}`"))),
            None => Ok(asked.to_vec()),
        },
    }
}

/// Checks that a name that is read stands for one column.
fn check_unique<'n>(path: &Path, names: &[String], read: impl IntoIterator<Item = &'n String>) -> Result<()> {
    let count = |name: &String| names.iter().filter(|own| *own == name).count();
    match read.into_iter().map(|name| (name, count(name))).find(|(_, count)| *count > 1) {
        Some((name, count)) => {
            let what = format!("{count} of its columns are called `{name}`");
            Err(Error::new(ErrorKind::Format, what).at(path).hint("give each column a name of its own"))
        }
        None => Ok(()),
    }
}

/// An error on a column that is not there, of a table whose first line is set apart by something else than `separator`.
fn set_apart(e: Error, names: &[String], separator: char) -> Error {
    let other = [('\t', "tabs"), (';', "`;`"), (',', "commas"), ('|', "`|`")];
    let is_in = |(own, _): &&(char, &str)| *own != separator && names.iter().any(|name| name.contains(*own));
    match other.iter().find(is_in) {
        Some(('\t', _)) => e.rehint("its fields are set apart by tabs: let its name end in .tsv"),
        Some((',', _)) => e.rehint("its fields are set apart by commas: let its name end in .csv"),
        Some((_, other)) => e.rehint(format!(
            "its fields are set apart by {other}: write them with commas into a .csv, or tabs into a .tsv"
        )),
        None => e,
    }
}

fn no_text(path: &Path, row: usize, column: &str) -> Error {
    Error::new(ErrorKind::Format, format!("row {row} has no text in its column `{column}`"))
        .at(path)
        .hint("leave such rows out; an empty text is \"\"")
}

/// What stands in the column beside the text of a row, where there is one.
fn labelled(
    path: &Path,
    row: usize,
    target: &Target,
    column: &Option<String>,
    label: Option<String>,
) -> Result<Option<String>> {
    match (column, label.filter(|label| !label.trim().is_empty())) {
        (Some(column), None) => {
            let what = format!("row {row} has no {} in its column `{column}`", target.noun());
            Err(Error::new(ErrorKind::Format, what).at(path).hint("leave such rows out"))
        }
        (Some(_), Some(label)) => target.check(path, row, &label).map(|()| Some(label)),
        (None, label) => Ok(label),
    }
}

fn joined(mut texts: impl Iterator<Item = String>, target: Option<String>) -> Text {
    Text { text: texts.next().unwrap_or_default(), pair: texts.next(), target }
}

/// A file of text, without a byte order mark.
fn utf8(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e).hint(HINT))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
        Error::new(ErrorKind::Format, format!("line {line} is not UTF-8")).at(path).hint("convert it to UTF-8")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(path: &Path, columns: &[&str]) -> Result<Vec<(String, Option<String>)>> {
        let columns: Vec<String> = columns.iter().map(|name| name.to_string()).collect();
        read(path, &columns, &Target::Ignored, 3)
            .map(|found| found.texts.into_iter().map(|t| (t.text, t.pair)).collect())
    }

    #[test]
    fn every_kind_of_file_holds_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            path
        };
        let single: Vec<_> = ["a, b", "", "c"].map(|text| (text.to_owned(), None)).into();
        let files = [
            write("one.txt", "\u{feff}a, b\r\n\nc\nmore\n"),
            write("one.csv", "id,text\n1,\"a, b\"\n2,\n3,c\n4,more\n"),
            write("one.tsv", "text\tid\na, b\t1\n\"\"\t2\nc\t3\n"),
            write("one.jsonl", "{\"text\": \"a, b\"}\n\n{\"id\": 1, \"text\": \"\"}\n{\"text\": \"c\"}\n"),
        ];
        for file in files {
            assert_eq!(texts(&file, &[]).unwrap(), single, "{}", file.display());
        }
        write("many/b.txt", "\nc\n");
        write("many/a.txt", "a, b\n");
        write("many/.hidden.txt", "no\n");
        write("many/README.md", "no\n");
        assert_eq!(texts(&folder.path().join("many"), &[]).unwrap(), single);
        let pairs = write("pairs.csv", "one,two\na,b\n");
        assert_eq!(texts(&pairs, &["two", "one"]).unwrap(), [("b".to_owned(), Some("a".to_owned()))]);
        // A column of strings: the names of pictures.
        let parquet = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reports/parquet/names.parquet");
        assert_eq!(texts(&parquet, &["image"]).unwrap()[0], ("red/10.png".to_owned(), None));
    }

    #[test]
    fn labels_stand_beside_texts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let beside = |path: &Path, column: &str| {
            let found = read(path, &[column.to_owned()], &Target::Label(None), 3)?;
            Ok::<_, Error>(found.beside().map(|(name, values)| (name.to_owned(), values.join(" "))))
        };
        let of = |values: &str| Some(("label".to_owned(), values.to_owned()));
        let csv = write("a.csv", "text,label\na,1\nb,0\nc,1\nd,0\n");
        let json = write("a.jsonl", "{\"text\": \"a\", \"label\": true}\n{\"text\": \"b\", \"label\": \"no\"}\n");
        let parquet = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reports/parquet/names.parquet");
        assert_eq!(beside(&csv, "text").unwrap(), of("1 0 1"));
        assert_eq!(beside(&json, "text").unwrap(), of("1 no"));
        assert_eq!(beside(&parquet, "image").unwrap(), of("1 0 1"));
        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        for (name, column) in [("a.csv", "label"), ("b.csv", "id")] {
            fs::write(other.join(name), format!("text,{column}\na,1\n")).unwrap();
        }
        let error = beside(&other, "text").unwrap_err();
        assert!(error.to_string().contains("b.csv`: its labels are of another kind"), "{error}");
    }

    #[test]
    fn a_truth_is_a_class_and_no_score() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.jsonl");
        fs::write(&path, "{\"a\": \"x\", \"b\": \"y\", \"own\": 0.5}\n{\"a\": \"x\", \"b\": \"y\", \"own\": true}\n")
            .unwrap();
        let columns = ["a", "b"].map(str::to_owned);
        let label = read(&path, &columns, &Target::Label(Some("own".into())), 3).unwrap();
        assert_eq!(label.beside().unwrap().1, ["0.5", "1"]);
        let score = Target::Score { column: "own".into(), scale: None };
        let error = read(&path, &columns, &score, 3).unwrap_err().to_string();
        assert!(error.contains("row 1 has the score `true` in its column `own`, which is no number"), "{error}");
    }

    #[test]
    fn what_is_malformed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |name: &str, content: &[u8], columns: &[&str], says: &str| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            let error = texts(&path, columns).unwrap_err();
            assert!(error.to_string().contains(says) && error.hint_text().is_some(), "{error:?}");
        };
        refused("empty.txt", b"", &[], "there are no texts in it");
        refused("latin.txt", b"fine\nna\xefve\n", &[], "line 2 is not UTF-8");
        refused("lines.txt", b"a\n", &["text"], "lines of text have no columns");
        refused("other.docx", b"a\n", &[], "does not say how texts stand in it");
        refused("empty.csv", b"", &[], "it is empty");
        refused("head.csv", b"text\n", &[], "there are no texts in it");
        refused("two.csv", b"a,b\n1,2\n", &[], "it has no column text or sentence; there are a, b");
        refused("two.csv", b"a,b\n1,2\n", &["a", "c"], "it has no column `c`; there are a, b");
        refused("twice.csv", b"text,b,text\n1,2,3\n", &[], "twice.csv`: 2 of its columns are called `text`");
        refused("twice.csv", b"a,b,a\n1,2,3\n", &["b", "a"], "2 of its columns are called `a`");
        let hint = |name: &str, content: &str, says: &str| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            for target in [Target::Ignored, Target::Label(Some("label".into()))] {
                let error = read(&path, &["text".to_owned()], &target, 3).unwrap_err();
                assert!(error.hint_text().is_some_and(|hint| hint.contains(says)), "{error:?}");
            }
        };
        hint("german.csv", "text;label\na;1\n", "set apart by `;`: write them with commas into a .csv");
        hint("tabs.csv", "text\tlabel\na\t1\n", "set apart by tabs: let its name end in .tsv");
        hint("commas.tsv", "text,label\na,1\n", "set apart by commas: let its name end in .csv");
        refused("long.csv", b"text,b\n1,2\n1,2,3\n", &[], "row 1 has 3 fields, and the first line 2");
        refused("open.csv", b"text\n\"a\n", &[], "a quote in line 2 is not closed");
        refused("one.jsonl", b"{\"text\": \"a\"}\n{\"text\": null}\n", &[], "row 1 has no text in its column `text`");
        refused("two.jsonl", b"{\"text\": \"a\"}\n[1]\n", &[], "line 2 is no object");
        refused("three.jsonl", b"{\"text\": \"a\"}\n{\"te", &[], "line 2 is not JSON");
        refused("cut.parquet", b"PAR1 and no more", &["a"], "not a readable Parquet file");
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/datasets/hugging-face.parquet");
        assert!(texts(&images, &["image.bytes"]).unwrap_err().to_string().contains("`image.bytes` holds no text"));
        let error = texts(&images, &["label"]).unwrap_err();
        assert!(error.to_string().contains("`label` holds no text"), "{error}");
        // Files of several kinds, no file, and nothing at all.
        assert!(texts(folder.path(), &[]).unwrap_err().to_string().contains("files of several kinds"));
        let none = tempfile::tempdir().unwrap();
        assert!(texts(none.path(), &[]).unwrap_err().to_string().contains("no files of texts"));
        assert!(texts(&none.path().join("missing.txt"), &[]).unwrap_err().hint_text().unwrap().contains(".txt"));
    }
}
