//! `offshoot eval --score-column`: how the similarities that a model finds between the texts of pairs follow scores.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::source::opened_on;
use super::{int8_note, named, plain};
use crate::anatomy::{Pooling, sequence_axis, token_axis};
use crate::axes::Typing;
use crate::cli::common::{DataFlags, RunFlags, SampleFiles};
use crate::cli::output;
use crate::data::{Arrays, Samples};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::schema;
use crate::metrics::{cosine, spearman};
use crate::onnx::Model;
use crate::runtime::Runtime;

/// What is scored, and on what.
pub struct Asked<'c> {
    /// The encoder.
    pub model: &'c Path,
    /// The texts.
    pub data: &'c DataFlags,
    /// The column of scores.
    pub column: &'c str,
    /// Texts in a batch.
    pub batch_size: Option<u32>,
    /// The least correlation that passes.
    pub at_least: Option<f64>,
    /// Whether JSON is printed.
    pub json: bool,
    /// How the model is opened and run.
    pub run: &'c RunFlags,
}

/// The output that is an embedding.
pub struct Embedding {
    /// Its place among all.
    place: usize,
    /// Its name.
    pub output: String,
}

/// Embeds both texts of every pair, and compares the cosines of the embeddings with the scores.
pub fn run(c: &Asked) -> Result<()> {
    let Some(SampleFiles::Texts(mut texts)) = c.data.given(c.data.path(), false) else {
        return Err(Error::new(ErrorKind::Usage, "scores stand beside texts").hint("give --texts FILE"));
    };
    texts.limit = c.run.transform.limit();
    let opened = opened_on(c.model, &c.run.open, &c.run.runtime, &c.run.transform, SampleFiles::Texts(texts))?;
    let Some(arrays) = opened.arrays else { bail!(Internal, "the texts were not read") };
    let report = arrays.report(&opened.model);
    report.lines().iter().for_each(|line| output::note(line));
    let fixed = arrays.fixed(&opened.model);
    let embedding = named(c.model, Embedding::find(&fixed, &arrays))?;
    let name = &embedding.output;
    let runtime = Runtime::start(&c.run.runtime.options())?;
    let int8 = int8_note(c.model, &opened.model, runtime.kind);
    int8.iter().for_each(|note| output::note(note));
    let begun = Instant::now();
    let rows = named(c.model, embedding.of_all(&runtime, &fixed, &arrays, c.batch_size))?;
    let scores = arrays.scores();
    let pairs = rows.iter().zip(rows.iter().skip(scores.len()));
    let cosines: Vec<f64> = pairs.map(|(a, b)| cosine(a, b)).collect();
    let Some(found) = spearman(&cosines, scores) else {
        let what = format!("the cosines of `{name}` are no numbers, or all of them the same");
        return Err(Error::new(ErrorKind::Check, what).at(c.model));
    };
    let rate = scores.len() as f64 / begun.elapsed().as_secs_f64();
    if c.json {
        output::print_json(&json!({
            "schema": schema::EVAL,
            "model": c.model,
            "data": c.data.path(),
            "pairs": scores.len(),
            "score_column": c.column,
            "spearman": found,
            "embedding": name,
            "pooling": c.run.open.pooling.map(Pooling::name),
            "pairs_per_second": rate,
            "input": report,
            "notes": int8.iter().collect::<Vec<_>>(),
            "runtime": runtime.kind,
        }))?;
    } else {
        let pairs = format!("pairs {}, {rate:.0} a second, {}", scores.len(), runtime.describe());
        output::print(&format!("{pairs}\nSpearman of cosine and `{}`  {found:.4}\n", c.column))?;
    }
    plain::check(c.model, &opened.model, &c.run.runtime)?;
    match c.at_least {
        Some(least) if found < least => {
            let what = format!("the Spearman correlation {found:.4} is below {least}");
            Err(Error::new(ErrorKind::Check, what).at(c.model))
        }
        _ => Ok(()),
    }
}

impl Embedding {
    /// The one output that has a vector a text, of a model as long as the arrays; says which it is.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where there are several or none.
    pub fn find(model: &Model, arrays: &Arrays) -> Result<Embedding> {
        let typing = Typing::new(model)?;
        let tokens = arrays.token_input().and_then(|input| sequence_axis(&typing, input));
        let is_vector =
            |name: &str| rank(&typing, name) == Some(2) && (tokens.is_none() || token_axis(&typing, name) != tokens);
        let outputs: Vec<&str> = model.graph().output.iter().map(|o| o.name()).collect();
        let found: Vec<usize> = (0..outputs.len()).filter(|&at| is_vector(outputs[at])).collect();
        match found[..] {
            [place] => {
                let output = outputs[place].to_owned();
                output::note(&format!("the embedding of a text is the output `{output}`"));
                Ok(Embedding { place, output })
            }
            [] => {
                let what = format!("no output is one vector a text: {}", outputs.join(", "));
                Err(Error::new(ErrorKind::Usage, what).hint(
                    "--pooling says how states of tokens become one: mean, class-token or last, as the model was \
                     trained",
                ))
            }
            _ => {
                let names: Vec<&str> = found.iter().map(|&at| outputs[at]).collect();
                Err(Error::new(
                    ErrorKind::Usage,
                    format!("several outputs are one vector a text: {}", names.join(", ")),
                )
                .hint("name the embedding with --of NAME, or pool the states of tokens with --pooling"))
            }
        }
    }

    /// That of every text.
    fn of_all(
        &self,
        runtime: &Arc<Runtime>,
        model: &Model,
        arrays: &Arrays,
        batch_size: Option<u32>,
    ) -> Result<Vec<Vec<f64>>> {
        let image = Typing::new(model)?.image_size();
        let mut session = match batch_size {
            Some(batch) => runtime.load(model, batch as usize, image)?,
            None => runtime.load_for(arrays.len(), model, image)?,
        };
        let bar = output::progress(arrays.len(), "eval");
        let mut rows = Vec::with_capacity(arrays.len());
        for inputs in arrays.batches_of(session.batch) {
            let inputs = inputs?;
            let outputs = session.run_on(&inputs.views())?;
            let Some(output) = outputs.get(self.place) else { bail!(Internal, "`{}` was not computed", self.output) };
            rows.extend(output.outer_iter().map(|row| row.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>()));
            bar.inc(inputs.len() as u64);
        }
        bar.finish_and_clear();
        Ok(rows)
    }
}

/// The number of an output's axes.
fn rank(typing: &Typing, output: &str) -> Option<usize> {
    typing.dims.get(output).map(Vec::len)
}
