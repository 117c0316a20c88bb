//! What stands beside texts for a model to learn: the class of each, by its number or by its name, or a score of each
//! pair.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;

use super::scale::Scale;
use crate::error::{Error, ErrorKind, Result};

/// The columns of labels where none is named, tried in turn.
const USUAL: [&str; 2] = ["label", "labels"];
/// Whole numbers up to this one are held exactly, by float32.
const MOST: f64 = (1 << 24) as f64;
/// How many classes a line lists.
const LISTED: usize = 5;

/// Which column of a table is read beside the texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Target {
    /// None.
    #[default]
    Ignored,
    /// The class of each text: the column of that name, which has to be there, or a usual one, where there is one.
    Label(Option<String>),
    /// How similar the texts of a pair are, by the column of that name. Each of the two is a text of its own then.
    Score {
        /// The column.
        column: String,
        /// The scale of the scores; any numbers where there is none.
        scale: Option<Scale>,
    },
}

impl Target {
    /// The column of a table with these.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where one that is named is not there.
    pub(super) fn column(&self, path: &Path, names: &[String]) -> Result<Option<String>> {
        let has = |name: &str| names.iter().any(|own| own == name);
        match self {
            Target::Ignored => Ok(None),
            Target::Label(None) => Ok(USUAL.into_iter().find(|name| has(name)).map(str::to_owned)),
            Target::Label(Some(name)) | Target::Score { column: name, .. } => match has(name) {
                true => Ok(Some(name.clone())),
                false => {
                    let what = format!("it has no column `{name}`; there are {}", names.join(", "));
                    let hint = format!("name one of these: {} NAME", self.flag().unwrap_or_default());
                    Err(Error::new(ErrorKind::Usage, what).at(path).hint(hint))
                }
            },
        }
    }

    /// The flag that names a column, where one is named.
    pub(super) fn flag(&self) -> Option<&'static str> {
        match self {
            Target::Ignored | Target::Label(None) => None,
            Target::Label(Some(_)) => Some("⟦label-column⟧"),
            Target::Score { .. } => Some("⟦score-column⟧"),
        }
    }

    /// What a row of a column is said to be without.
    pub(super) fn noun(&self) -> &'static str {
        if matches!(self, Target::Score { .. }) { "score" } else { "label" }
    }

    /// Checks what stands in a row of the column, as far as the row alone says.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] for a score that is no number, or none of its scale.
    pub(super) fn check(&self, path: &Path, row: usize, value: &str) -> Result<()> {
        let Target::Score { column, scale } = self else { return Ok(()) };
        let (why, hint) = match (number(value), scale) {
            (None, _) => ("which is no number".to_owned(), "leave such rows out"),
            (Some(score), Some(scale)) => match scale.refuses(score) {
                Some((range, hint)) => (format!("and {range}"), hint),
                None => return Ok(()),
            },
            (Some(_), None) => return Ok(()),
        };
        let what = format!("row {row} has the score `{value}` in its column `{column}`, {why}");
        Err(Error::new(ErrorKind::Format, what).at(path).hint(hint))
    }

    /// Why there are no labels, and what helps.
    pub(super) fn absent(&self) -> String {
        match self {
            Target::Ignored | Target::Score { .. } => "nobody asked for them".into(),
            Target::Label(_) => format!(
                "it has no column {}; name it with ⟦label-column⟧, in JSON lines, CSV, TSV or Parquet",
                USUAL.join(" or ")
            ),
        }
    }
}

/// Whose labels the classes of texts are, for JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelsReport {
    /// The column that they stand in.
    pub column: String,
    /// What stands there.
    pub by: LabelsBy,
    /// The names of the classes in their order, where they have some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
}

/// What a column of labels holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelsBy {
    /// The numbers of classes, from 0.
    Numbers,
    /// Their names, whose order is that of sorting.
    Names,
}

impl LabelsReport {
    /// What is assumed of the classes.
    pub(super) fn line(&self) -> String {
        let column = &self.column;
        let classes = self.classes.as_deref().unwrap_or_default();
        let mut listed: Vec<String> =
            classes.iter().take(LISTED).enumerate().map(|(number, name)| format!("{number} `{name}`")).collect();
        if classes.len() > LISTED {
            listed.push(format!("{} more", classes.len() - LISTED));
        }
        let listed = listed.join(", ");
        match self.by {
            LabelsBy::Names => format!("labels are the names in the column `{column}`, in sorted order: {listed}"),
            LabelsBy::Numbers if classes.is_empty() => format!("labels are the numbers in the column `{column}`"),
            LabelsBy::Numbers => format!("labels are the numbers in the column `{column}`: {listed}"),
        }
    }
}

/// The classes that the labels of a column are; `names` are those of its numbers, where these have some.
///
/// # Errors
/// [`ErrorKind::Format`] for a number that is not whole, and for numbers among names.
pub(super) fn classes(
    path: &Path,
    column: &str,
    labels: &[&str],
    names: Option<Vec<String>>,
) -> Result<(Vec<f32>, LabelsReport)> {
    let numbers: Vec<Option<f64>> = labels.iter().map(|label| number(label)).collect();
    let wrong = |row: usize, what: String, hint: &str| {
        let what = format!("row {row} has the label `{}` in its column `{column}`, {what}", labels[row]);
        Err(Error::new(ErrorKind::Format, what).at(path).hint(hint))
    };
    let is_class = |n: f64| n.fract() == 0.0 && n.abs() <= MOST;
    if let Some(row) = numbers.iter().position(|number| number.is_some_and(|n| !is_class(n))) {
        let hint = "labels are whole numbers from 0, or names; ⟦label-column⟧ names another column, and a ⟦teacher⟧ \
                    with ⟦distill⟧ 1 needs none";
        return wrong(row, "which is no number of a class".into(), hint);
    }
    let values: Option<Vec<f32>> = numbers.iter().map(|number| number.map(|n| n as f32)).collect();
    if let Some(values) = values {
        return Ok((values, LabelsReport { column: column.to_owned(), by: LabelsBy::Numbers, classes: names }));
    }
    if let Some(row) = numbers.iter().position(Option::is_some) {
        let name = numbers.iter().position(Option::is_none).map_or("", |row| labels[row]);
        let hint = "labels are all of them numbers of classes, or all of them names";
        return wrong(row, format!("a number, and others are names, such as `{name}`"), hint);
    }
    let classes: Vec<String> = labels.iter().collect::<BTreeSet<_>>().into_iter().map(|&name| name.into()).collect();
    let place = |name: &&str| classes.binary_search_by(|own| own.as_str().cmp(name)).unwrap_or_default() as f32;
    let values = labels.iter().map(place).collect();
    Ok((values, LabelsReport { column: column.to_owned(), by: LabelsBy::Names, classes: Some(classes) }))
}

/// The score of each pair, which were [checked](Target::check) row by row.
///
/// # Errors
/// [`ErrorKind::Format`] where all are the same.
pub(super) fn scores(path: &Path, column: &str, values: &[&str]) -> Result<Vec<f64>> {
    let scores: Vec<f64> = values.iter().filter_map(|score| number(score)).collect();
    match scores.iter().all(|score| *score == scores[0]) {
        true => Err(Error::new(ErrorKind::Format, format!("all scores in its column `{column}` are the same"))
            .at(path)
            .hint("similarities are compared with scores by their ranks: give pairs that differ in theirs")),
        false => Ok(scores),
    }
}

/// The number that a label is; none for a name.
fn number(label: &str) -> Option<f64> {
    label.trim().parse::<f64>().ok().filter(|n| n.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(labels: &[&str]) -> Result<(Vec<f32>, LabelsReport)> {
        classes(Path::new("texts.csv"), "label", labels, None)
    }

    #[test]
    fn classes_are_numbers_or_sorted_names() {
        let (values, report) = of(&["2", "0", "1.0", "-1"]).unwrap();
        assert_eq!((values, report.by, report.classes), (vec![2.0, 0.0, 1.0, -1.0], LabelsBy::Numbers, None));
        let (values, report) = of(&["no", "Yes", "maybe", "no", "nan"]).unwrap();
        assert_eq!((values, report.by), (vec![3.0, 0.0, 1.0, 3.0, 2.0], LabelsBy::Names));
        assert_eq!(
            report.line(),
            "labels are the names in the column `label`, in sorted order: 0 `Yes`, 1 `maybe`, \
            2 `nan`, 3 `no`"
        );
    }

    #[test]
    fn scores_are_numbers() {
        let path = Path::new("texts.csv");
        let of = |values: &[&str]| scores(path, "score", values);
        assert_eq!(of(&["0.5", "-1", "4"]).unwrap(), [0.5, -1.0, 4.0]);
        let any = Target::Score { column: "score".into(), scale: None };
        let five = Target::Score { column: "score".into(), scale: Some(Scale::asked([0.0, 5.0])) };
        for (target, value, says) in [
            (&any, "high", "row 7 has the score `high` in its column `score`, which is no number"),
            (&five, "NaN", "row 7 has the score `NaN` in its column `score`, which is no number"),
            (&five, "5.5", "row 7 has the score `5.5` in its column `score`, and `score_range` is from 0 to 5"),
        ] {
            let error = target.check(path, 7, value).unwrap_err();
            assert!(error.to_string().contains(says) && error.hint_text().is_some(), "{error}");
        }
        assert!(any.check(path, 0, "-7").is_ok() && five.check(path, 0, "5").is_ok());
        assert!(of(&["2", "2.0"]).unwrap_err().to_string().contains("all scores in its column `score` are the same"));
    }

    #[test]
    fn what_is_no_class_is_named() {
        for (labels, says) in [
            (&["1", "0.5"][..], "row 1 has the label `0.5` in its column `label`, which is no number of a class"),
            (&["1e9"], "which is no number of a class"),
            (
                &["a", "b", "3"],
                "row 2 has the label `3` in its column `label`, a number, and others are names, such as `a`",
            ),
        ] {
            let error = of(labels).unwrap_err();
            assert!(error.to_string().contains(says) && error.hint_text().is_some(), "{error}");
        }
    }
}
