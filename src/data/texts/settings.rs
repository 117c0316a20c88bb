//! What lies beside a tokenizer: how many tokens a text has at most, and which one is padding.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::beside::{folders, json};
use super::inputs::{Places, Takes};
use super::tokens::Side;
use crate::error::{Error, ErrorKind, Result};

/// Far more bytes than any of these configurations has.
const MOST: u64 = 1 << 24;
const HINT: &str = "mend the file, or move it away";
/// What a tokenizer's file is called.
const TOKENIZER: &str = "tokenizer.json";
/// What it says of its tokens and lengths is in these.
const OF_TOKENS: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];
/// transformers writes 1e30 where it knows no length.
const UNKNOWN: f64 = 1e9;

/// How many tokens a text has at most, for JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LengthReport {
    /// Special tokens included.
    pub tokens: usize,
    /// Who says so: a flag, a file, or what of the model.
    pub from: &'static str,
}

/// The token that padding is, for JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PaddingReport {
    /// Its id.
    pub id: u32,
    /// Its name, where a file names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Which file says so.
    pub from: &'static str,
}

/// The tokenizer that lies beside a model.
pub(super) fn tokenizer_beside(model: &Path) -> Option<PathBuf> {
    folders(model).into_iter().map(|folder| folder.join(TOKENIZER)).find(|path| path.is_file())
}

/// The tokenizer that was named, or lies beside the model.
///
/// # Errors
/// [`ErrorKind::Usage`] where there is none; the message says where it was looked for.
pub(super) fn find(model: &Path, named: Option<&Path>) -> Result<PathBuf> {
    const HOW: &str = "name it with ⟦tokenizer⟧ FILE; transformers writes one by `tokenizer.save_pretrained(FOLDER)`";
    if let Some(named) = named {
        let path = if named.is_dir() { named.join(TOKENIZER) } else { named.to_path_buf() };
        let missing = || Error::new(ErrorKind::Usage, "there is no tokenizer").at(&path).hint(HOW);
        return if path.is_file() { Ok(path) } else { Err(missing()) };
    }
    let looked = || -> Vec<String> {
        folders(model).iter().map(|folder| format!("`{}`", folder.join(TOKENIZER).display())).collect()
    };
    tokenizer_beside(model).ok_or_else(|| {
        let what = format!("no tokenizer lies beside the model: there is no {}", looked().join(" and no "));
        Error::new(ErrorKind::Usage, what).at(model).hint(HOW)
    })
}

/// The configurations of a tokenizer: those in its folder, and those beside the model that it has none of.
#[derive(Debug)]
pub(super) struct Settings {
    /// By name, those that there are.
    files: Vec<(&'static str, PathBuf, Value)>,
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] for a malformed one, [`ErrorKind::Io`] for one that cannot be read.
    pub fn read(model: &Path, tokenizer: &Path) -> Result<Settings> {
        let places: Vec<PathBuf> = folders(tokenizer).into_iter().take(1).chain(folders(model)).collect();
        let mut files = Vec::new();
        for name in ["sentence_bert_config.json", "config.json"].into_iter().chain(OF_TOKENS) {
            for path in places.iter().map(|folder| folder.join(name)) {
                if let Some(value) = json(&path, MOST, HINT)? {
                    files.push((name, path, value));
                    break;
                }
            }
        }
        Ok(Settings { files })
    }

    fn value(&self, file: &str, key: &str) -> Option<(&'static str, &Path, &Value)> {
        let (name, path, found) = self.files.iter().find(|(name, ..)| *name == file)?;
        found.get(key).filter(|value| !value.is_null()).map(|value| (*name, path.as_path(), value))
    }

    /// The names of the model's classes (`id2label`), where its configuration has one for each number from 0.
    pub fn classes(&self) -> Option<Vec<String>> {
        let names = self.value("config.json", "id2label")?.2.as_object()?;
        (0..names.len()).map(|number| names.get(&number.to_string())?.as_str().map(str::to_owned)).collect()
    }

    /// A number of tokens.
    fn number(&self, file: &str, key: &str) -> Result<Option<LengthReport>> {
        let Some((from, path, value)) = self.value(file, key) else { return Ok(None) };
        match value.as_f64() {
            Some(n) if n >= UNKNOWN => Ok(None),
            Some(n) if n >= 1.0 && n.fract() == 0.0 => Ok(Some(LengthReport { tokens: n as usize, from })),
            _ => Err(Error::new(ErrorKind::Format, format!("its `{key}` {value} is no number of tokens"))
                .at(path)
                .hint("mend it, or give ⟦max-length⟧")),
        }
    }

    /// How many tokens a text has at most, by whoever says so first: the flag, sentence-transformers, transformers, the
    /// model; and never more than the model has places for, or its child is to have tokens.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a flag that asks for more than these.
    pub fn length(
        &self,
        asked: Option<usize>,
        of_child: Option<usize>,
        takes: &Takes,
        first: usize,
    ) -> Result<Option<LengthReport>> {
        let table = takes.places.map(|places| places.rows.saturating_sub(first));
        let table = table.map(|tokens| LengthReport { tokens, from: "position table" });
        let axis = takes.fixed.map(|tokens| LengthReport { tokens, from: "declared axis" });
        let child = of_child.map(|tokens| LengthReport { tokens, from: "⟦tokens⟧" });
        let holds = table.into_iter().chain(axis).chain(child).min_by_key(|length| length.tokens);
        if let (Some(asked), Some(holds)) = (asked, holds.as_ref().filter(|h| asked.is_some_and(|a| a > h.tokens))) {
            let what = format!("⟦max-length⟧ {asked} is more than the model takes: {} ({})", holds.tokens, holds.from);
            return Err(Error::new(ErrorKind::Usage, what).hint(format!("give at most {}", holds.tokens)));
        }
        if let Some(tokens) = asked {
            return Ok(Some(LengthReport { tokens, from: "⟦max-length⟧" }));
        }
        let said = match self.number("sentence_bert_config.json", "max_seq_length")? {
            None => self.number("tokenizer_config.json", "model_max_length")?,
            said => said,
        };
        Ok(match (said, holds) {
            (Some(said), Some(holds)) if holds.tokens < said.tokens => Some(holds),
            (said, holds) => said.or(holds),
        })
    }

    /// The side on which texts are cut (`truncation_side`) or padded (`padding_side`), by the configuration, else as
    /// the tokenizer's `own` file says; and which file says so.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] for what is no side.
    pub fn side(&self, key: &str, own: Option<Side>) -> Result<(Side, &'static str)> {
        match self.value(OF_TOKENS[0], key) {
            None => Ok((own.unwrap_or_default(), TOKENIZER)),
            Some((from, path, value)) => match Side::deserialize(value) {
                Ok(side) => Ok((side, from)),
                Err(_) => Err(Error::new(ErrorKind::Format, format!("its `{key}` {value} is neither left nor right"))
                    .at(path)
                    .hint(HINT)),
            },
        }
    }

    /// The number of the first token's place: in tables that hold it, that of the padding token is before it.
    ///
    /// # Errors
    /// Those of the length in its file.
    pub fn first_place(&self, takes: &Takes, padding: Option<&PaddingReport>) -> Result<usize> {
        let behind = padding.map_or(0, |padding| padding.id as usize + 1);
        let length = self.number("tokenizer_config.json", "model_max_length")?;
        let says_behind = |rows| length.is_some_and(|length| length.tokens + behind == rows);
        Ok(match takes.places {
            Some(Places { counted: true, .. }) => behind,
            Some(Places { rows, .. }) if takes.positions.is_some() && says_behind(rows) => behind,
            _ => 0,
        })
    }

    /// The token that padding is. The tokenizer's `own` padding comes behind what is said of the model, and the end of
    /// text, which models without a padding token are padded with, last.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] where the vocabulary, in which `id` looks, does not have it.
    pub fn padding(
        &self,
        id: impl Fn(&str) -> Option<u32>,
        own: Option<(u32, String)>,
    ) -> Result<Option<PaddingReport>> {
        let named = |key: &str| {
            let found = OF_TOKENS.iter().find_map(|file| self.value(file, key));
            let Some((from, path, value)) = found else { return Ok(None) };
            let token = value.as_str().or_else(|| value.get("content").and_then(Value::as_str)).unwrap_or_default();
            match id(token) {
                Some(id) => Ok(Some(PaddingReport { id, token: Some(token.to_owned()), from })),
                None => Err(Error::new(ErrorKind::Format, format!("its `{key}` {value} is not in the vocabulary"))
                    .at(path)
                    .hint("the tokenizer is to be that of the model, with the configurations that came with it")),
            }
        };
        if let Some(padding) = named("pad_token")? {
            return Ok(Some(padding));
        }
        let of_model = self.value("config.json", "pad_token_id").and_then(|(from, _, value)| {
            Some(PaddingReport { id: u32::try_from(value.as_u64()?).ok()?, token: None, from })
        });
        let own = own.map(|(id, token)| PaddingReport { id, token: Some(token), from: TOKENIZER });
        match of_model.or(own) {
            None => named("eos_token"),
            found => Ok(found),
        }
    }
}

/// What speaks against the side that padding is on.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::data) struct PaddingSide {
    /// True where it was asked for and is not what models are padded on, or not what the tokenizer says.
    pub is_unusual: bool,
    /// Who has padding on the left, where nobody asked for a side.
    pub left_by: Option<&'static str>,
}

/// What is wrong with padding on the right where a tokenizer has it on the left.
pub(in crate::data) fn on_the_left(from: &str, file: &Path) -> Error {
    let what = format!("texts are padded on the right, and its padding is on the left (padding_side, {from})");
    Error::new(ErrorKind::Usage, what).at(file).hint(
        "what a model reads from the last place would be padding: give ⟦padding-side⟧, which is taken where a text \
         says the same with padding and alone",
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn settings(files: &[(&str, Value)]) -> Settings {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in files {
            fs::write(folder.path().join(name), value.to_string()).unwrap();
        }
        let path = folder.path().join("model.onnx");
        Settings::read(&path, &folder.path().join(TOKENIZER)).unwrap()
    }

    fn takes(rows: usize, counted: bool, fixed: Option<usize>) -> Takes {
        Takes { places: Some(Places { rows, counted }), fixed, ..Takes::default() }
    }

    #[test]
    fn the_length_is_what_is_said_first_and_fits() {
        let sentence = ("sentence_bert_config.json", json!({"max_seq_length": 256}));
        let config = |length: Value| ("tokenizer_config.json", json!({"model_max_length": length}));
        let all = settings(&[sentence, config(json!(512))]);
        let of = |s: &Settings, asked: Option<usize>, takes: &Takes| {
            s.length(asked, None, takes, 0).map(|length| length.map(|length| (length.tokens, length.from)))
        };
        let (bert, none) = (takes(512, false, None), Takes::default());
        assert_eq!(of(&all, Some(300), &bert).unwrap(), Some((300, "⟦max-length⟧")));
        assert_eq!(of(&all, None, &bert).unwrap(), Some((256, "sentence_bert_config.json")));
        assert_eq!(of(&settings(&[config(json!(77))]), None, &bert).unwrap(), Some((77, "tokenizer_config.json")));
        // What transformers writes where it knows none, and a table that is shorter.
        let unknown = settings(&[config(json!(1e30)), ("sentence_bert_config.json", json!({"max_seq_length": null}))]);
        assert_eq!(of(&unknown, None, &bert).unwrap(), Some((512, "position table")));
        assert_eq!(of(&unknown, None, &none).unwrap(), None);
        assert_eq!(of(&all, None, &takes(64, false, None)).unwrap(), Some((64, "position table")));
        assert_eq!(of(&all, None, &takes(64, false, Some(32))).unwrap(), Some((32, "declared axis")));
        let error = of(&all, Some(513), &bert).unwrap_err();
        assert!(error.to_string().contains("`max_length` 513 is more than the model takes: 512"), "{error}");
        // What a child is to have is as good as an axis.
        let of_child = |asked, tokens| all.length(asked, Some(tokens), &bert, 0);
        let found = [(None, 48), (Some(40), 48), (None, 300)].map(|(asked, tokens)| of_child(asked, tokens).unwrap());
        let found = found.map(|length| length.map(|length| (length.tokens, length.from)));
        let expected = [(48, "⟦tokens⟧"), (40, "⟦max-length⟧"), (256, "sentence_bert_config.json")];
        assert_eq!(found, expected.map(Some));
        let error = of_child(Some(64), 48).unwrap_err();
        assert!(error.to_string().contains("`max_length` 64 is more than the model takes: 48 (`tokens`)"), "{error}");
        assert!(of(&settings(&[config(json!("long"))]), None, &bert).unwrap_err().to_string().contains("no number"));
    }

    #[test]
    fn classes_have_the_names_of_the_configuration() {
        let of = |value: Value| settings(&[("config.json", json!({"id2label": value}))]).classes();
        assert_eq!(of(json!({"1": "b", "0": "a"})).unwrap(), ["a", "b"]);
        assert_eq!([of(json!({"1": "b"})), of(json!({"0": 1})), of(json!("a")), of(Value::Null)], [const { None }; 4]);
    }

    #[test]
    fn sides_are_those_of_the_configuration() {
        let of = |value: Value, own| settings(&[("tokenizer_config.json", value)]).side("truncation_side", own);
        let left = Some(Side::Left);
        assert_eq!(of(json!({"truncation_side": "left"}), None).unwrap(), (Side::Left, "tokenizer_config.json"));
        assert_eq!(of(json!({"truncation_side": "right"}), left).unwrap().0, Side::Right);
        assert_eq!(of(json!({}), left).unwrap(), (Side::Left, TOKENIZER));
        assert_eq!(of(json!({"truncation_side": null}), None).unwrap().0, Side::Right);
        let error = of(json!({"truncation_side": "up"}), None).unwrap_err();
        assert!(error.to_string().contains("`truncation_side` \"up\" is neither left nor right"), "{error}");
    }

    #[test]
    fn places_count_behind_the_padding_where_the_table_says_so() {
        let pad = PaddingReport { id: 1, token: None, from: "" };
        let first = |s: &Settings, takes: &Takes| s.first_place(takes, Some(&pad)).unwrap();
        let long = settings(&[("tokenizer_config.json", json!({"model_max_length": 512}))]);
        assert_eq!(first(&long, &takes(514, true, None)), 2);
        assert_eq!(first(&long, &takes(514, false, None)), 0);
        let fed = |rows| Takes { positions: Some("position_ids".into()), ..takes(rows, false, None) };
        assert_eq!([first(&long, &fed(514)), first(&long, &fed(512)), first(&settings(&[]), &fed(514))], [2, 0, 0]);
    }

    #[test]
    fn padding_is_never_guessed() {
        let ids = |token: &str| ["<s>", "<pad>", "</s>"].iter().position(|t| *t == token).map(|id| id as u32);
        let of = |files: &[(&str, Value)], own: Option<(u32, String)>| settings(files).padding(ids, own);
        let id = |files: &[(&str, Value)]| of(files, None).unwrap().map(|padding| (padding.id, padding.from));
        let config = |value| ("tokenizer_config.json", value);
        let model = ("config.json", json!({"pad_token_id": 0}));
        let named = config(json!({"pad_token": {"content": "<pad>"}, "eos_token": "</s>"}));
        assert_eq!(id(&[named, model.clone()]), Some((1, "tokenizer_config.json")));
        let map = ("special_tokens_map.json", json!({"pad_token": "<pad>"}));
        assert_eq!(id(&[map, config(json!({"pad_token": null}))]), Some((1, "special_tokens_map.json")));
        let ended = config(json!({"eos_token": "</s>"}));
        assert_eq!(id(&[ended.clone(), model]), Some((0, "config.json")));
        assert_eq!(id(std::slice::from_ref(&ended)), Some((2, "tokenizer_config.json")));
        assert_eq!(of(&[ended], Some((7, "x".into()))).unwrap().map(|p| (p.id, p.from)), Some((7, TOKENIZER)));
        assert_eq!(id(&[]), None);
        let error = of(&[config(json!({"pad_token": "[PAD]"}))], None).unwrap_err();
        assert!(error.to_string().contains("`pad_token` \"[PAD]\" is not in the vocabulary"), "{error}");
    }
}
