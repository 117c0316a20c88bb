//! The classes of a data set in the terms of a model: which of its outputs stands for which of them.
//!
//! A data set orders its classes by its own rules, and a model by those of whoever trained it. Where both have names,
//! these decide; so some of a model's classes are a data set, too.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::dataset::Dataset;
use super::folders::numbers;
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::CLASSES;
use crate::onnx::Model;

/// How many names a message lists.
const LISTED: usize = 5;

/// The names of a model's classes, where its metadata holds them.
pub fn class_names(model: &Model) -> Option<Vec<String>> {
    serde_json::from_str(model.metadata(CLASSES)?).ok()
}

/// How the classes of one model lie among those of another that tells as many apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Correspondence {
    /// In the same order, as far as names say.
    Same,
    /// In another order: where each of the first model's classes lies in the second.
    Moved(Vec<usize>),
    /// Some have the same name and others have not, or not one of them has: a class of each that stand in the same
    /// place.
    Unlike(String, String),
}

impl Correspondence {
    /// Compares the names of one model's classes with those of another's.
    pub fn of(own: &[String], other: &[String]) -> Correspondence {
        let found = find(own, other);
        match found.iter().copied().collect::<Option<Vec<usize>>>() {
            Some(places) if places.iter().copied().eq(0..own.len()) => Correspondence::Same,
            Some(places) if places.iter().collect::<HashSet<_>>().len() == other.len() => Correspondence::Moved(places),
            _ => {
                let differs = |&i: &usize| found[i] != Some(i);
                let at = (0..own.len().min(other.len())).find(differs).unwrap_or(0);
                let name = |names: &[String]| names.get(at).cloned().unwrap_or_default();
                Correspondence::Unlike(name(own), name(other))
            }
        }
    }
}

/// What decided which output stands for which class of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassesBy {
    /// The names of the classes, all of which the model has.
    Names,
    /// The names of the folders, which are numbers and taken as indices of the outputs.
    Numbers,
    /// The order of the classes, which are as many as the outputs.
    Order,
    /// The labels in the files, which are indices of the outputs.
    Labels,
}

/// A data set whose labels are indices of a model's outputs.
#[derive(Clone, Debug)]
pub struct Matched {
    /// The data set. Its class names, where there are any, are one an output.
    pub dataset: Dataset,
    /// What decided.
    pub by: ClassesBy,
    /// What was assumed, if that was anything.
    pub note: Option<String>,
}

impl Dataset {
    /// The data set in the terms of a model with so many `outputs`, whose classes have the given names, if any. Names
    /// of another number than the outputs are stale and left aside.
    ///
    /// # Errors
    ///
    /// Those of [`Dataset::check_labels`]; `Images` if the model lacks some of the named classes.
    pub fn matched(&self, names: Option<&[String]>, outputs: usize) -> Result<Matched> {
        self.require_labels()?;
        let names = names.filter(|names| names.len() == outputs);
        let as_it_is = |by, note| {
            self.check_labels(outputs)?;
            Ok(Matched { dataset: self.clone(), by, note })
        };
        let Some(own) = self.classes() else { return as_it_is(ClassesBy::Labels, None) };
        self.check_labels(own.len())?;
        let same_number = own.len() == outputs;
        let Some(names) = names else {
            return match indices(own, outputs).filter(|_| self.by_name() && !same_number) {
                Some(indices) => Ok(self.by_numbers(&indices, None)),
                None => as_it_is(if self.by_name() { ClassesBy::Order } else { ClassesBy::Labels }, None),
            };
        };
        if own == names {
            return as_it_is(ClassesBy::Names, None);
        }
        let found = find(own, names);
        if let Some(found) = found.iter().copied().collect::<Option<Vec<usize>>>() {
            let dataset = self.relabelled(&found, Some(names.to_vec()));
            return Ok(Matched { dataset, by: ClassesBy::Names, note: None });
        }
        if !self.by_name() {
            // The names only describe labels, which are indices, unless they contradict them.
            let agree = found.iter().enumerate().all(|(index, found)| found.is_none_or(|found| found == index));
            if same_number && agree {
                let pair = found.iter().position(Option::is_none).map(|index| (&own[index], &names[index]));
                let note = pair.map(|(own, name)| {
                    format!(
                        "the labels are taken as indices of the model's outputs: the data's class `{own}` is `{name}`"
                    )
                });
                return as_it_is(ClassesBy::Labels, note);
            }
        } else if let Some(indices) = indices(own, outputs) {
            return Ok(self.by_numbers(&indices, Some(names)));
        }
        if same_number && found.iter().all(Option::is_none) {
            let note = format!(
                "no class of the data has the name of one of the model's: they are taken in their order, `{}` for `{}`",
                own[0], names[0]
            );
            return as_it_is(ClassesBy::Order, Some(note));
        }
        let missing: Vec<&String> = own.iter().zip(&found).filter(|(_, f)| f.is_none()).map(|(name, _)| name).collect();
        let message = format!(
            "the model has not exactly one class named {}; its {outputs} classes are {}",
            listed(&missing),
            listed(&names.iter().collect::<Vec<_>>())
        );
        Err(Error::new(ErrorKind::Images, message).at(self.source().path()).hint(format!(
            "name the classes of the data as the model does; `offshoot tune ⟦classes⟧ {}` replaces its classifier",
            own.len()
        )))
    }

    /// The data set whose folders are named by the indices of the outputs.
    fn by_numbers(&self, indices: &[usize], names: Option<&[String]>) -> Matched {
        let folder = self.classes().and_then(<[String]>::first).map_or("", String::as_str);
        let meaning = match names.and_then(|names| names.get(*indices.first()?)) {
            Some(name) => format!("`{name}`"),
            None => "the output of that number, counted from 0".into(),
        };
        let note =
            Some(format!("the folders' names are taken as indices of the model's outputs: `{folder}` is {meaning}"));
        let dataset = self.relabelled(indices, names.map(<[String]>::to_vec));
        Matched { dataset, by: ClassesBy::Numbers, note }
    }
}

/// The numbers that all names are, where these are indices of so many outputs.
fn indices(names: &[String], outputs: usize) -> Option<Vec<usize>> {
    numbers(names)?.into_iter().map(|number| usize::try_from(number).ok().filter(|&index| index < outputs)).collect()
}

/// Where each of `own` stands in `names`, in the same spelling, or else in one that differs in case, spaces and
/// punctuation. `None` for what is missing or stands there twice.
fn find(own: &[String], names: &[String]) -> Vec<Option<usize>> {
    let spelt = |name: &str| name.to_owned();
    // What has no letters has no other spelling.
    let plain = |name: &str| {
        let letters: String = name.chars().filter(|letter| letter.is_alphanumeric()).collect();
        if letters.is_empty() { name.to_owned() } else { letters.to_lowercase() }
    };
    let exact = look_up(own, names, spelt);
    if exact.iter().all(Option::is_some) {
        return exact;
    }
    let loose = look_up(own, names, plain);
    let distinct = own.iter().map(|name| plain(name)).collect::<HashSet<_>>().len() == own.len();
    if distinct { exact.iter().zip(loose).map(|(exact, loose)| exact.or(loose)).collect() } else { exact }
}

fn look_up(own: &[String], names: &[String], key: impl Fn(&str) -> String) -> Vec<Option<usize>> {
    let mut places: HashMap<String, Option<usize>> = HashMap::new();
    for (index, name) in names.iter().enumerate() {
        places.entry(key(name)).and_modify(|place| *place = None).or_insert(Some(index));
    }
    own.iter().map(|name| places.get(&key(name)).copied().flatten()).collect()
}

fn listed(names: &[&String]) -> String {
    let mut text = names.iter().take(LISTED).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED {
        text += &format!(" and {} more", names.len() - LISTED);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::DatasetOptions;
    use super::super::testing::write_picture;
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn names_are_found_in_any_spelling_but_only_once() {
        let names = strings(&["Ankle boot", "crane", "crane", "T-shirt/top", "cat", "Cat"]);
        let own = strings(&["ankle_boot", "crane", "t - shirt / top", "cat", "dog"]);
        assert_eq!(find(&own, &names), [Some(0), None, Some(3), Some(4), None]);
        // Two classes of the data that differ in case alone are not one of the model's.
        assert_eq!(find(&strings(&["DOG", "dog"]), &strings(&["Dog", "cat"])), [None, None]);
        assert_eq!(find(&strings(&["+", "-"]), &strings(&["-", "+"])), [Some(1), Some(0)]);
    }

    #[test]
    fn numbers_are_digits_alone() {
        assert_eq!(numbers(&strings(&["007", "10", "2"])), Some(vec![7, 10, 2]));
        for names in [&["1", "one"][..], &["-1"], &["+1"], &["1.0"], &["1", "01"], &[""], &["99999999999999999999999"]]
        {
            assert_eq!(numbers(&strings(names)), None, "{names:?}");
        }
        assert_eq!(indices(&strings(&["3", "12"]), 12), None);
    }

    /// What a data set of a picture in each of these folders becomes for a model with these names and so many outputs.
    fn matched(folders: &[&str], names: Option<&[&str]>, outputs: usize) -> Result<(Vec<u32>, ClassesBy, bool)> {
        let root = tempfile::tempdir().unwrap();
        for folder in folders {
            write_picture(&root.path().join(folder).join("1.png"), 3, 2, [1, 2, 3]);
        }
        let dataset = Dataset::open(root.path(), &DatasetOptions::default()).unwrap();
        let matched = dataset.matched(names.map(strings).as_deref(), outputs)?;
        matched.dataset.check_labels(outputs).unwrap();
        assert!(matched.dataset.classes().is_none_or(|classes| classes.len() == outputs));
        Ok((matched.dataset.labels().unwrap().to_vec(), matched.by, matched.note.is_some()))
    }

    #[test]
    fn folders_are_matched_by_names_numbers_or_order() {
        let named: Option<&[&str]> = Some(&["zebra", "apple", "mango"]);
        let check = |folders: &[&str], names, outputs, expected: (&[u32], ClassesBy, bool)| {
            let (labels, by, noted) = matched(folders, names, outputs).unwrap();
            assert_eq!((&labels[..], by, noted), expected, "{folders:?}");
        };
        // Labels follow the order of the paths, in which digits are text.
        check(&["zebra", "apple", "mango"], named, 3, (&[1, 2, 0], ClassesBy::Names, false));
        check(&["Zebra", "mango"], named, 3, (&[0, 2], ClassesBy::Names, false));
        check(&["1", "2"], named, 3, (&[1, 2], ClassesBy::Numbers, true));
        check(&["1", "2", "3"], named, 3, (&[0, 1, 2], ClassesBy::Order, true));
        check(&["cat", "dog", "eel"], named, 3, (&[0, 1, 2], ClassesBy::Order, true));
        // Stale names are none.
        check(&["apple", "zebra"], named, 2, (&[0, 1], ClassesBy::Order, false));
        check(&["cat", "dog"], None, 2, (&[0, 1], ClassesBy::Order, false));
        check(&["10", "9"], None, 2, (&[1, 0], ClassesBy::Order, false));
        check(&["10", "9"], None, 12, (&[10, 9], ClassesBy::Numbers, true));
        for (folders, names, outputs) in
            [(&["apple", "cat", "dog"][..], named, 3), (&["cat"], named, 3), (&["cat"], None, 3), (&["12"], None, 12)]
        {
            let error = matched(folders, names, outputs).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Images, "{folders:?}");
            assert!(error.hint_text().unwrap().contains("`offshoot tune classes"), "{folders:?}");
        }
        let error = matched(&["apple", "cat", "dog"], named, 3).unwrap_err().to_string();
        assert!(error.contains("class named `cat`, `dog`; its 3 classes are `zebra`, `apple`, `mango`"), "{error}");
    }

    #[test]
    fn names_of_labels_in_files_describe_them() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/datasets/hugging-face.parquet");
        let dataset = Dataset::open(path, &DatasetOptions::default()).unwrap();
        let own = dataset.classes().unwrap().to_vec();
        let labels = dataset.labels().unwrap().to_vec();
        let by_names = |names: &[String], outputs: usize| dataset.matched(Some(names), outputs);
        // In another order, and among others.
        let reversed: Vec<String> = own.iter().rev().cloned().chain(["one more".into()]).collect();
        let matched = by_names(&reversed, 11).unwrap();
        let expected: Vec<u32> = labels.iter().map(|&label| own.len() as u32 - 1 - label).collect();
        assert_eq!((matched.dataset.labels().unwrap(), matched.by), (&expected[..], ClassesBy::Names));
        // Another word for a class does not move it.
        let mut other = own.clone();
        other[3] = "frock".into();
        let matched = by_names(&other, 10).unwrap();
        assert_eq!((matched.dataset.labels().unwrap(), matched.by), (&labels[..], ClassesBy::Labels));
        assert!(matched.note.unwrap().contains("`dress` is `frock`"));
        // Names that contradict the labels.
        other.swap(0, 1);
        assert!(by_names(&other, 10).unwrap_err().to_string().contains("`dress`"));
    }

    #[test]
    fn classes_of_two_models_are_compared_by_name() {
        let names = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let of = |a: &str, b: &str| Correspondence::of(&names(a), &names(b));
        assert_eq!(of("zebra apple mango", "zebra apple mango"), Correspondence::Same);
        assert_eq!(of("zebra apple mango", "Zebra apple man-go"), Correspondence::Same);
        assert_eq!(of("zebra apple mango", "apple mango zebra"), Correspondence::Moved(vec![2, 0, 1]));
        let unlike = |a: &str, b: &str| Correspondence::Unlike(a.into(), b.into());
        assert_eq!(of("zebra apple mango", "zebra pomme mangue"), unlike("apple", "pomme"));
        assert_eq!(of("zebra apple", "apple kiwi"), unlike("zebra", "apple"));
        // A name that one of them has twice says nothing.
        assert_eq!(of("apple apple", "apple pear"), unlike("apple", "pear"));
        assert_eq!(of("zebra apple", "apple apple"), unlike("zebra", "apple"));
    }
}
