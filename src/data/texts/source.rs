//! Texts as a model takes them: arrays of tokens for its inputs.

use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2, ArrayD};
use rayon::prelude::*;

use super::super::arrays::{LABELS, SPECIAL};
use super::super::formats::ArrayFile;
use super::inputs::Takes;
use super::read::{Found, Text, read};
use super::report::{TextsReport, Tokenised};
use super::settings::{PaddingReport, PaddingSide, Settings, find, on_the_left, tokenizer_beside};
use super::targets::{Target, classes, scores};
use super::tokenizer::Tokenizer;
use super::tokens::{Own, Row, Side, TokenRows};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::Model;

/// Texts that a model is run on, and how they are cut into tokens.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    /// A file of texts, or a folder of such files.
    pub path: PathBuf,
    /// The column of texts in a table, or the two of pairs; the usual one where none is named.
    pub columns: Vec<String>,
    /// The tokenizer; else the one that lies beside the model.
    pub tokenizer: Option<PathBuf>,
    /// Tokens of a text at most; else as many as files beside the tokenizer and the model say.
    pub max_length: Option<usize>,
    /// The side that padding is on; else the right one, unless the tokenizer has it on the left.
    pub padding_side: Option<Side>,
    /// Tokens of a text at most because a child is to take no more.
    pub tokens: Option<usize>,
    /// Texts that are read at most.
    pub limit: Option<usize>,
    /// How many of them are taken, the first ones; what labels stand for is settled by all.
    pub first: Option<usize>,
    /// The column that is read beside them.
    pub target: Target,
}

impl Texts {
    /// The tokenizer that lies beside a model.
    pub fn tokenizer_beside(model: &Path) -> Option<PathBuf> {
        tokenizer_beside(model)
    }

    /// Arrays for the inputs of a model that lies at `path`, padded to the same length.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where there is no tokenizer, for one whose vocabulary the model has no embeddings for, for
    /// a length that the model does not take, where nothing says what padding is, and where it is on a side that
    /// cannot be right; [`ErrorKind::Unsupported`] for a
    /// model that takes no tokens; those of reading.
    pub(crate) fn arrays(&self, path: &Path, model: &Model) -> Result<(ArrayFile, Tokenised)> {
        self.check_columns()?;
        let takes = Takes::new(model)?;
        let file = find(path, self.tokenizer.as_deref())?;
        let settings = Settings::read(path, &file)?;
        let tokenizer = Tokenizer::open(&file)?;
        let own = tokenizer.own();
        let padding = suited(&takes, &settings, &tokenizer, &file)?;
        let first = settings.first_place(&takes, padding.as_ref())?;
        let max_length = settings.length(self.max_length, self.tokens, &takes, first)?;
        let (cut_on, _) = settings.side("truncation_side", own.cuts)?;
        let mut found = read(&self.path, &self.columns, &self.target, self.limit.unwrap_or(usize::MAX))?;
        let (mut of_labels, mut scores) = (None, Vec::new());
        match (&self.target, found.beside()) {
            (Target::Score { .. }, Some((column, values))) => scores = self::scores(&self.path, column, &values)?,
            (_, Some((column, values))) => {
                of_labels = Some(classes(&self.path, column, &values, found.classes.clone())?);
            }
            (_, None) => {}
        }
        let (mut classes, labels): (Option<Vec<f32>>, _) = of_labels.unzip();
        if let Some(first) = self.first {
            found.texts.truncate(first);
            scores.truncate(first);
            classes.iter_mut().for_each(|classes| classes.truncate(first));
        }
        if !scores.is_empty() {
            apart(&mut found);
        }
        let most = max_length.as_ref().map(|length| length.tokens);
        let TokenRows { rows, cut } = tokenizer.tokens(&found.texts, most, cut_on)?;
        // No row is without a real token: engines differ in what attention gives where there is no key.
        if let Some(at) = rows.iter().position(|row| row.ids.is_empty()) {
            let what = format!("its text {} is without a token, and the tokenizer adds no special ones", at + 1);
            return Err(Error::new(ErrorKind::Usage, what).at(&self.path).hint("leave such texts out"));
        }
        let longest = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        let unmasked = takes.mask.is_none();
        // What has no mask sees padding, and was trained on texts of one length.
        let padded_to = match &max_length {
            Some(length) if unmasked => length.tokens,
            _ => takes.fixed.unwrap_or(longest),
        };
        let is_padded = rows.iter().any(|row| row.ids.len() < padded_to);
        let (padded_on, padding_side) = self.padding_side(&settings, &own, &takes)?;
        if let (true, Some(from)) = (is_padded, padding_side.left_by) {
            return Err(on_the_left(from, &file));
        }
        let Some(pad) = padding.as_ref().map(|padding| padding.id).or((!is_padded).then_some(0)) else {
            return Err(Error::new(ErrorKind::Usage, "nothing says which token padding is")
                .at(&file)
                .hint("write its pad_token into tokenizer_config.json beside it, such as {\"pad_token\": \"[PAD]\"}"));
        };
        let arrays = arrays(&takes, &rows, padded_to, pad, (first, padded_on));
        let fill = arrays.iter().map(|(name, _, fill)| (name.clone(), *fill)).collect();
        let mut arrays: Vec<(String, ArrayD<f32>)> =
            arrays.into_iter().map(|(name, values, _)| (name, values)).collect();
        arrays.extend(classes.map(|classes| (LABELS.to_owned(), Array1::from(classes).into_dyn())));
        let report = TextsReport {
            tokenizer: file,
            columns: found.columns,
            max_length,
            cut,
            cut_on,
            empty: rows.iter().filter(|row| row.special.iter().all(|&special| special)).count(),
            padded_to,
            padded_on,
            padding,
            first_position: takes.positions.is_some().then_some(first),
            labels,
            own,
            unmasked,
        };
        let (model_classes, absent) = (settings.classes(), self.target.absent());
        let any_length = takes.fixed.is_none();
        let tokenised = Tokenised { report, model_classes, absent, scores, padding_side, fill, any_length };
        Ok((ArrayFile::held(&self.path, arrays), tokenised))
    }

    /// The side that padding is on, and what speaks against it.
    fn padding_side(&self, settings: &Settings, own: &Own, takes: &Takes) -> Result<(Side, PaddingSide)> {
        let (usual, from) = settings.side("padding_side", own.pads)?;
        let side = self.padding_side.unwrap_or_default();
        let is_unusual = self.padding_side.is_some() && (side, usual) != (Side::Right, Side::Right);
        let why = match (takes.mask.is_some(), takes.fixed) {
            (true, None) => None,
            (false, _) => Some("no input tells tokens from padding".to_owned()),
            (true, Some(tokens)) => Some(format!("it takes {tokens} tokens and no other number")),
        };
        if let Some(why) = why.filter(|_| is_unusual) {
            let what = format!("padding on the {} cannot be checked: {why}", side.name());
            return Err(Error::new(ErrorKind::Usage, what).hint("leave ⟦padding-side⟧ out"));
        }
        let left_by = (self.padding_side.is_none() && usual == Side::Left).then_some(from);
        Ok((side, PaddingSide { is_unusual, left_by }))
    }

    /// Checks that a sample has as many texts as there are columns.
    fn check_columns(&self) -> Result<()> {
        if self.columns.len() > 2 {
            return Err(Error::new(ErrorKind::Usage, "a sample is one text, or a pair of them")
                .at(&self.path)
                .hint("give one column or two: ⟦text-column⟧ A,B"));
        }
        if matches!(self.target, Target::Score { .. }) && self.columns.len() != 2 {
            return Err(Error::new(ErrorKind::Usage, "a score is that of two texts")
                .at(&self.path)
                .hint("give the columns of both: ⟦text-column⟧ A,B"));
        }
        Ok(())
    }
}

/// What padding is for a tokenizer and a model that belong together.
fn suited(takes: &Takes, settings: &Settings, tokenizer: &Tokenizer, file: &Path) -> Result<Option<PaddingReport>> {
    let wrong = |what: String, hint: &str| Err(Error::new(ErrorKind::Usage, what).at(file).hint(hint));
    if let Some(rows) = takes.vocabulary.filter(|&rows| tokenizer.largest() as usize >= rows) {
        let what = format!("it has a token {}, and the model embeddings of {rows}", tokenizer.largest());
        return wrong(what, "give the tokenizer that belongs to the model: ⟦tokenizer⟧ FILE");
    }
    let padding = settings.padding(|token| tokenizer.id(token), tokenizer.own().padding)?;
    // Another token for padding would be counted like any text, and move what is behind it.
    if let (Some(pad), Some(padding)) = (takes.pad, padding.as_ref().filter(|p| takes.pad != Some(p.id as usize))) {
        let what = format!("padding is {} ({}), and the model's places leave out {pad}", padding.id, padding.from);
        let hint = "give the tokenizer that belongs to the model, with its configurations: ⟦tokenizer⟧ FILE";
        return wrong(what, hint);
    }
    Ok(padding)
}

/// Makes each text of a pair a sample of its own, the second ones behind the first ones.
fn apart(found: &mut Found) {
    let alone = |text: String| Text { text, pair: None, target: None };
    let seconds: Vec<Text> = found.texts.iter_mut().filter_map(|text| text.pair.take()).map(alone).collect();
    found.texts.extend(seconds);
}

/// An array for each input, and one that says which tokens are special; what padding is in each.
fn arrays(
    takes: &Takes,
    rows: &[Row],
    tokens: usize,
    pad: u32,
    (first, side): (usize, Side),
) -> Vec<(String, ArrayD<f32>, f32)> {
    // Token numbers are far below 2^24, up to which float32 holds whole numbers.
    let array = |name: String, write: &(dyn Fn(&Row, &mut [f32]) + Sync), padding: usize| {
        let mut all = Array2::from_elem((rows.len(), tokens), padding as f32);
        let own = all.as_slice_mut().unwrap_or_default().par_chunks_mut(tokens.max(1));
        own.zip(rows).for_each(|(own, row)| {
            let real = row.ids.len().min(tokens);
            // In front of a text is padding on the left.
            let start = if side == Side::Left { tokens - real } else { 0 };
            write(row, &mut own[start..start + real]);
        });
        (name, all.into_dyn(), padding as f32)
    };
    let ids = |row: &Row, to: &mut [f32]| to.iter_mut().zip(&row.ids).for_each(|(to, &id)| *to = id as f32);
    let special = |row: &Row, to: &mut [f32]| to.iter_mut().zip(&row.special).for_each(|(to, &s)| *to = f32::from(s));
    let types = |row: &Row, to: &mut [f32]| to.iter_mut().zip(&row.types).for_each(|(to, &t)| *to = t as f32);
    let real = |_: &Row, to: &mut [f32]| to.fill(1.0);
    let places = |_: &Row, to: &mut [f32]| to.iter_mut().zip(first..).for_each(|(to, place)| *to = place as f32);
    let mut arrays = vec![array(takes.ids.clone(), &ids, pad as usize), array(SPECIAL.to_owned(), &special, 1)];
    arrays.extend(takes.mask.clone().map(|name| array(name, &real, 0)));
    arrays.extend(takes.types.clone().map(|name| array(name, &types, 0)));
    // The place of padding is the one before the first.
    arrays.extend(takes.positions.clone().map(|name| array(name, &places, first.saturating_sub(1))));
    arrays
}

#[cfg(test)]
#[cfg(feature = "text")]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::arrays::Arrays;
    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto};
    use crate::onnx::{DataType, tensor_info};

    const NAMES: [&str; 4] = ["input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"];

    fn folder(kind: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reports/tokenizers").join(kind)
    }

    /// A model of these inputs that looks nothing up.
    fn model(inputs: &[&str]) -> Model {
        let input = inputs.iter().map(|name| tensor_info(*name, DataType::Int64, &[None, None])).collect();
        Model::from_proto(ModelProto { graph: Some(GraphProto { input, ..Default::default() }), ..Default::default() })
    }

    fn odd(kind: &str) -> Texts {
        Texts { path: folder("odd.jsonl"), tokenizer: Some(folder(kind)), ..Texts::default() }
    }

    /// The rows of an array.
    fn rows(file: &ArrayFile, name: &str) -> Vec<Vec<u64>> {
        let array = file.read(name, DataType::Int64).unwrap();
        array.outer_iter().map(|row| row.iter().map(|&v| v as u64).collect()).collect()
    }

    fn golden(kind: &str) -> Value {
        let all: Value = serde_json::from_slice(&std::fs::read(folder("golden.json")).unwrap()).unwrap();
        all[kind].clone()
    }

    #[test]
    fn tokens_are_those_of_transformers() {
        let model = model(&NAMES[..3]);
        for kind in ["wordpiece", "bytes", "unigram"] {
            let (file, Tokenised { report, .. }) = odd(kind).arrays(Path::new("model.onnx"), &model).unwrap();
            for name in NAMES {
                assert_eq!(json!(rows(&file, name)), golden(kind)[name], "{kind}, {name}");
            }
            let length = report.max_length.as_ref().map(|length| (length.tokens, length.from));
            assert_eq!((length, report.padded_to), (Some((16, "tokenizer_config.json")), 16), "{kind}");
            assert_eq!(json!(report.cut), golden(kind)["cut"], "{kind}");
            assert!(report.cut >= 2 && report.empty >= 1, "{kind}: {report:?}");
        }
    }

    #[test]
    fn pairs_are_cut_as_transformers_cuts_them() {
        let model = model(&NAMES[..3]);
        let columns = ["first", "second"].map(str::to_owned).to_vec();
        for kind in ["wordpiece", "bytes", "unigram", "plain"] {
            for length in [13, 16] {
                let (columns, max_length) = (columns.clone(), Some(length));
                let pairs = Texts { path: folder("pairs.csv"), columns, max_length, ..odd(kind) };
                let (file, Tokenised { report, .. }) = pairs.arrays(Path::new("model.onnx"), &model).unwrap();
                let golden = &golden("pairs")[kind][length.to_string()];
                for name in NAMES {
                    assert_eq!(json!(rows(&file, name)), golden[name], "{kind}, {length}, {name}");
                }
                assert_eq!(json!(report.cut), golden["cut"], "{kind}, {length}");
            }
        }
    }

    /// A folder with a tokenizer of the fixtures, and what else its configuration says.
    fn configured(kind: &str, says: &[(&str, &str)]) -> tempfile::TempDir {
        let own = tempfile::tempdir().unwrap();
        std::fs::copy(folder(kind).join("tokenizer.json"), own.path().join("tokenizer.json")).unwrap();
        let config = std::fs::read(folder(kind).join("tokenizer_config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        says.iter().for_each(|(key, value)| config[*key] = json!(value));
        std::fs::write(own.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        own
    }

    #[test]
    fn texts_are_cut_on_the_side_that_their_tokenizer_says() {
        let model = model(&NAMES[..3]);
        let columns = ["first", "second"].map(str::to_owned).to_vec();
        for kind in ["wordpiece", "bytes", "unigram"] {
            let own = configured(kind, &[("truncation_side", "left")]);
            let odd = Texts { tokenizer: Some(own.path().to_path_buf()), ..odd(kind) };
            let pairs =
                Texts { path: folder("pairs.csv"), columns: columns.clone(), max_length: Some(13), ..odd.clone() };
            for (texts, which) in [(odd, "texts"), (pairs, "pairs")] {
                let (file, Tokenised { report, .. }) = texts.arrays(Path::new("model.onnx"), &model).unwrap();
                for name in NAMES {
                    assert_eq!(json!(rows(&file, name)), golden("left")[kind][which][name], "{kind}, {which}, {name}");
                }
                assert!(report.lines()[0].contains("are cut at their beginnings (truncation_side)"), "{report:?}");
            }
        }
    }

    #[test]
    fn padding_on_the_left_is_refused() {
        let own = configured("wordpiece", &[("padding_side", "left")]);
        let odd = Texts { tokenizer: Some(own.path().to_path_buf()), ..odd("wordpiece") };
        let error = odd.arrays(Path::new("model.onnx"), &model(&NAMES[..2])).unwrap_err();
        assert!(
            error.to_string().contains("its padding is on the left (padding_side, tokenizer_config.json)"),
            "{error}"
        );
        // A text alone has no padding, until it lies beside longer ones.
        let alone = Texts { limit: Some(1), ..odd };
        let (file, texts) = alone.arrays(Path::new("model.onnx"), &model(&NAMES[..2])).unwrap();
        let length = texts.report.padded_to;
        let arrays = Arrays::read(&file, &model(&NAMES[..2])).unwrap().of_texts(Some(texts));
        assert!(arrays.clone().padded(length).is_ok());
        assert!(arrays.padded(length + 1).unwrap_err().to_string().contains("its padding is on the left"));
    }

    #[test]
    fn padding_is_on_the_side_that_is_asked_for() {
        let names = ["input_ids", "attention_mask", "token_type_ids", "position_ids", "special_tokens_mask"];
        let model = model(&names[..4]);
        let on = |side, limit| {
            let texts = Texts { padding_side: Some(side), limit: Some(limit), ..odd("wordpiece") };
            let (file, texts) = texts.arrays(Path::new("model.onnx"), &model).unwrap();
            assert_eq!((texts.report.padded_on, texts.padding_side.is_unusual), (side, side == Side::Left));
            (file, texts)
        };
        let [(right, _), (left, texts)] = [Side::Right, Side::Left].map(|side| on(side, usize::MAX));
        let mask = rows(&right, "attention_mask");
        assert!(mask.iter().any(|mask| mask.contains(&0)));
        for name in names {
            for ((right, left), mask) in rows(&right, name).into_iter().zip(rows(&left, name)).zip(&mask) {
                let padding = mask.iter().filter(|&&real| real == 0).count();
                let mut moved = right.clone();
                moved.rotate_right(padding);
                assert_eq!(left, moved, "{name}");
            }
        }
        // The shortest text by itself and padded is what it is among the others.
        let arrays = Arrays::read(&left, &model).unwrap().of_texts(Some(texts));
        let [alone, padded] = arrays.to_check().unwrap().unwrap();
        assert_eq!(padded.shapes(), arrays.shapes());
        let own = alone.tokens().unwrap()[0];
        assert!(alone.shapes().iter().all(|(_, shape)| **shape == [own]));
        let shortest = arrays.tokens().unwrap().iter().position(|&tokens| tokens == own).unwrap();
        let (one, many) = (padded.select(&[0]), arrays.select(&[shortest]));
        assert!(one.arrays == many.arrays && one.real == many.real);
    }

    #[test]
    fn padding_that_cannot_be_checked_is_refused() {
        let left = Texts { padding_side: Some(Side::Left), ..odd("wordpiece") };
        let error = left.arrays(Path::new("model.onnx"), &model(&NAMES[..1])).unwrap_err();
        assert!(error.to_string().contains("padding on the left cannot be checked: no input tells tokens"), "{error}");
    }

    #[test]
    fn a_text_without_any_token_is_refused() {
        let error = odd("plain").arrays(Path::new("model.onnx"), &model(&NAMES[..2])).unwrap_err();
        assert!(error.to_string().contains("its text 2 is without a token"), "{error}");
        // A single token beyond those that there are room for is one that is cut, without special ones as with them.
        let few = |length| {
            let texts = Texts { limit: Some(1), max_length: Some(length), ..odd("plain") };
            texts.arrays(Path::new("model.onnx"), &model(&NAMES[..2])).unwrap()
        };
        let whole = rows(&few(16).0, NAMES[0])[0].len();
        assert_eq!([whole, whole - 1].map(|length| few(length).1.report.cut), [0, 1]);
    }

    #[test]
    fn a_cut_text_ends_as_every_text_does() {
        for kind in ["wordpiece", "bytes", "unigram"] {
            let short = Texts { max_length: Some(5), ..odd(kind) };
            let (file, Tokenised { report, .. }) = short.arrays(Path::new("model.onnx"), &model(&NAMES[..2])).unwrap();
            let (ids, mask) = (rows(&file, NAMES[0]), rows(&file, NAMES[1]));
            let last = |row: usize| ids[row][mask[row].iter().sum::<u64>() as usize - 1];
            // The second text is empty.
            assert!(ids.iter().all(|row| row.len() == 5) && report.cut > 5, "{kind}: {report:?}");
            assert!((0..ids.len()).all(|row| last(row) == last(1)), "{kind}: {ids:?}");
            let none = Texts { max_length: Some(1), ..odd(kind) };
            let error = none.arrays(Path::new("model.onnx"), &model(&NAMES[..2])).unwrap_err();
            assert!(error.to_string().contains("leave no place for a text"), "{error}");
        }
    }

    #[test]
    fn a_model_without_a_mask_is_given_texts_of_one_length() {
        let few = Texts { limit: Some(2), ..odd("unigram") };
        let (file, Tokenised { report, .. }) = few.arrays(Path::new("model.onnx"), &model(&NAMES[..1])).unwrap();
        assert_eq!(rows(&file, NAMES[0]).iter().map(Vec::len).collect::<Vec<_>>(), [16, 16]);
        assert!(report.lines().iter().any(|line| line.contains("no input tells tokens from padding")));
        let (_, Tokenised { report: masked, .. }) = few.arrays(Path::new("model.onnx"), &model(&NAMES[..2])).unwrap();
        assert!(masked.padded_to < 16 && !masked.lines().iter().any(|line| line.contains("no input tells")));
    }

    #[test]
    fn places_count_real_tokens() {
        let texts = Texts { limit: Some(2), ..odd("bytes") };
        let model = model(&["input_ids", "position_ids"]);
        let (file, Tokenised { report, .. }) = texts.arrays(Path::new("model.onnx"), &model).unwrap();
        assert_eq!(report.first_position, Some(0));
        let place = |(at, id): (usize, &u64)| if *id == 1 { 0 } else { at as u64 };
        let expected: Vec<Vec<u64>> =
            rows(&file, "input_ids").iter().map(|ids| ids.iter().enumerate().map(place).collect()).collect();
        assert_eq!(rows(&file, "position_ids"), expected);
    }
}
