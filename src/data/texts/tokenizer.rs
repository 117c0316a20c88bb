//! A tokenizer of Hugging Face, which the crate `tokenizers` reads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tokenizers::utils::padding::{PaddingDirection, PaddingStrategy};
use tokenizers::{Encoding, PostProcessor, TruncationDirection, TruncationParams, truncate_encodings};

use super::super::beside::bytes;
use super::read::Text;
use super::tokens::{Own, Row, Side, TokenRows};
use crate::error::{Error, ErrorKind, Result};

/// Far more bytes than a vocabulary has.
const MOST: u64 = 1 << 29;
const HINT: &str = "give the tokenizer.json that belongs to the model, as transformers saves it";

/// A tokenizer.
pub(super) struct Tokenizer {
    path: PathBuf,
    tokenizer: tokenizers::Tokenizer,
    own: Own,
}

impl Tokenizer {
    /// Reads its file.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] for what is none, [`ErrorKind::Io`] for what cannot be read.
    pub fn open(path: &Path) -> Result<Tokenizer> {
        let fault = |what: String| Error::new(ErrorKind::Format, what).at(path).hint(HINT);
        let bytes = bytes(path, MOST, HINT)?.ok_or_else(|| fault("no such file".into()))?;
        let read = guarded(|| tokenizers::Tokenizer::from_bytes(bytes));
        let mut tokenizer = read.map_err(|e| fault(format!("not a readable tokenizer: {e}")))?;
        let padding = tokenizer.get_padding();
        let own = Own {
            length: tokenizer.get_truncation().map(|t| t.max_length),
            cuts: tokenizer.get_truncation().map(|t| match t.direction {
                TruncationDirection::Left => Side::Left,
                TruncationDirection::Right => Side::Right,
            }),
            padding: padding.map(|p| (p.pad_id, p.pad_token.clone())),
            fixed: padding.and_then(|p| match p.strategy {
                PaddingStrategy::Fixed(length) => Some(length),
                PaddingStrategy::BatchLongest => None,
            }),
            pads: padding.map(|p| match p.direction {
                PaddingDirection::Left => Side::Left,
                PaddingDirection::Right => Side::Right,
            }),
        };
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map(drop).map_err(|e| fault(e.to_string()))?;
        Ok(Tokenizer { path: path.to_path_buf(), tokenizer, own })
    }

    /// What its file says of lengths.
    pub fn own(&self) -> Own {
        self.own.clone()
    }

    /// The number of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The largest number of a token.
    pub fn largest(&self) -> u32 {
        self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// The tokens of texts, at most `length` of each: a text that is longer is cut on that `side`, and has its special
    /// tokens around what is left.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where special tokens alone are as many; [`ErrorKind::Format`] where the tokenizer fails.
    pub fn tokens(&self, texts: &[Text], length: Option<usize>, side: Side) -> Result<TokenRows> {
        let is_pair = texts.first().is_some_and(|text| text.pair.is_some());
        let special = self.tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(is_pair));
        if let Some(length) = length.filter(|&length| length <= special) {
            let what = format!("{length} tokens leave no place for a text: {special} are special");
            return Err(Error::new(ErrorKind::Usage, what).at(&self.path).hint("give a larger ⟦max-length⟧"));
        }
        let most = length.map(|length| length - special);
        let rows = texts.par_iter().map(|text| guarded(|| self.row(text, most, side)));
        let rows: Vec<(Row, bool)> = rows
            .collect::<tokenizers::Result<_>>()
            .map_err(|e| Error::new(ErrorKind::Format, format!("it fails on a text: {e}")).at(&self.path).hint(HINT))?;
        let cut = rows.iter().filter(|(_, cut)| *cut).count();
        Ok(TokenRows { rows: rows.into_iter().map(|(row, _)| row).collect(), cut })
    }

    /// The tokens of a text, at most `most` of its own, and whether it had more.
    ///
    /// A pair is cut by the rule of Python's tokenizers 0.23.3, `longest_first`: where both texts are longer than half
    /// of the tokens, each has half, and an odd one is of the text that is the longer one as a whole, of the second
    /// one where they are equally long. The crate 0.23.2 stops reading a text at the limit, after which long ones are
    /// all equally long (`findings/tokenizers_pairs.sh`): so texts are encoded whole here, and cut afterwards.
    fn row(&self, text: &Text, most: Option<usize>, side: Side) -> tokenizers::Result<(Row, bool)> {
        let encode = |text: &str| self.tokenizer.encode_fast(text, false);
        let mut first = encode(&text.text)?;
        let mut second = text.pair.as_deref().map(encode).transpose()?;
        if let Some(second) = &mut second {
            second.set_type_ids(vec![1; second.len()]);
        }
        let all = first.len() + second.as_ref().map_or(0, Encoding::len);
        let most = most.filter(|&most| all > most);
        if let Some(max_length) = most {
            let direction = match side {
                Side::Left => TruncationDirection::Left,
                Side::Right => TruncationDirection::Right,
            };
            let cut = TruncationParams { max_length, direction, ..TruncationParams::default() };
            (first, second) = truncate_encodings(first, second, &cut)?;
            // What was cut off would have special tokens, too, each piece of the one with each of the other.
            [Some(&mut first), second.as_mut()].into_iter().flatten().for_each(|text| drop(text.take_overflowing()));
        }
        Ok((row(&self.tokenizer.post_process(first, second, true)?), most.is_some()))
    }
}

fn row(encoding: &Encoding) -> Row {
    Row {
        ids: encoding.get_ids().to_vec(),
        types: encoding.get_type_ids().to_vec(),
        special: encoding.get_special_tokens_mask().iter().map(|&s| s == 1).collect(),
    }
}

/// What `make` returns, or an error where the library panics: it takes files at their word.
fn guarded<T>(make: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    // Nothing that a panic may leave half done is used after it.
    catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_| Err("the file is damaged".into()))
}
