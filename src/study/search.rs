//! Automatic hyperparameters: eps, the FFNs' eps and the width, chosen on held-out calibration images.
//!
//! Heads are clustered on some of the images, and every candidate is grown without training. The one is taken that
//! agrees best with the ancestor on the other images, among those that are small enough: without a bound on the size
//! nothing would ever be shared.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::calibrating::Calibrating;
use super::text::Text;
use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::density::measure;
use crate::descendant::{self, Heads};
use crate::error::{Error, ErrorKind, Result};
use crate::fitting::Values;
use crate::fitting::comparison::compare;
use crate::learngene::{Learngene, Rules, parameters};
use crate::onnx::Model;
use crate::runtime::Runtime;

/// Held-out images that candidates are judged on, at most.
const JUDGES: usize = 64;

/// What is tried.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EpsSearch {
    /// Candidates for eps, in pixels or `auto`.
    pub eps: Vec<Text>,
    /// Candidates for the FFNs' eps.
    pub ffn_eps: Vec<Text>,
    /// Candidates for the width.
    pub width: Vec<f64>,
    /// The learngene holds at most this share of the ancestor's parameters (I-Params).
    pub inherited: f64,
    /// The descendant has at most this share of the ancestor's parameters.
    pub parameters: f64,
}

impl EpsSearch {
    /// Checks what can be checked without images.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`].
    pub fn check(&self) -> Result<()> {
        if self.eps.is_empty() || self.ffn_eps.is_empty() || self.width.is_empty() {
            bail!(Usage, "a search needs candidates for eps, ffn-eps and width");
        }
        for text in self.eps.iter().chain(&self.ffn_eps) {
            text.0.parse::<crate::learngene::Eps>()?;
        }
        let share = |s: f64| s.is_finite() && s > 0.0;
        match share(self.inherited) && share(self.parameters) && self.width.iter().all(|w| share(*w)) {
            true => Ok(()),
            false => bail!(Usage, "shares and widths are above 0"),
        }
    }
}

/// A candidate and how it did.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Trial {
    /// The eps.
    pub eps: String,
    /// The FFNs' eps.
    pub ffn_eps: String,
    /// The width.
    pub width: f64,
    /// I-Params of the learngene.
    pub inherited: u64,
    /// Parameters of the descendant.
    pub parameters: u64,
    /// Correlation of its outputs with the ancestor's on held-out images; the mean over them.
    pub correlation: f64,
    /// True where it is small enough.
    pub fits: bool,
    /// True for the one that was taken.
    pub taken: bool,
}

/// Tries every combination. Returns the rules and the width of the best, and all trials.
///
/// # Errors
/// [`ErrorKind::Check`] where none is small enough; those of clustering, growing and the runtime.
pub(super) fn search(
    runtime: &Arc<Runtime>,
    model: &Model,
    samples: &Calibrating,
    rules: &Rules,
    shape: &descendant::GrowOptions,
    wanted: &EpsSearch,
) -> Result<(Rules, f64, Vec<Trial>)> {
    wanted.check()?;
    let (fixed, runtime) = (samples.fixed(model), runtime.single_threaded());
    let typing = Typing::new(&fixed)?;
    let anatomy = Anatomy::new(&typing)?;
    let count = samples.samples().len();
    let judges = (count / 4).clamp(1, JUDGES);
    let mask = samples.samples().mask();
    let views: Vec<Values> = (count - judges..count).map(|i| samples.view(i, model)).collect::<Result<_>>()?;
    let seen = samples.limit((count - judges).max(1));
    let densities = measure(&runtime, &fixed, &typing, &anatomy, seen.samples(), |_| {})?;
    let whole = parameters(model.graph());
    let within = |count: u64, share: f64| count as f64 <= share * whole as f64;
    let mut trials: Vec<Trial> = Vec::new();
    for eps in &wanted.eps {
        for ffn_eps in &wanted.ffn_eps {
            let rules = Rules { eps: Some(eps.0.parse()?), ffn_eps: Some(ffn_eps.0.parse()?), ..rules.clone() };
            let gene = Learngene::cluster(&typing, &anatomy, &densities, &rules)?;
            let condensed = gene.condense(model, &typing, &anatomy)?;
            let of_gene = Typing::new(&condensed)?;
            let inherited = gene.inherited(&condensed, &of_gene, &Anatomy::new(&of_gene)?, whole).i_params;
            for &width in &wanted.width {
                let shape = descendant::GrowOptions { heads: Heads::Width(width), classes: None, ..shape.clone() };
                let child = descendant::grow(&condensed, &gene, &shape)?;
                let sources: Vec<usize> = child.plan.layers.iter().map(|l| l.ancestor_layer).collect();
                let found = compare(&runtime, model, &child.model, &sources, &views, mask)?;
                // A new classifier answers nothing yet: then what leaves the last layer is compared.
                let last = found.layers.last().copied().flatten();
                let correlation = Some(found.outputs.correlation).filter(|c| c.is_finite()).or(last);
                let count = child.plan.parameters;
                trials.push(Trial {
                    eps: eps.0.clone(),
                    ffn_eps: ffn_eps.0.clone(),
                    width,
                    inherited,
                    parameters: count,
                    correlation: correlation.unwrap_or(-1.0),
                    fits: within(inherited, wanted.inherited) && within(count, wanted.parameters),
                    taken: false,
                });
            }
        }
    }
    // Of those that tie the first.
    let mut best: Option<usize> = None;
    for (i, t) in trials.iter().enumerate().filter(|(_, t)| t.fits) {
        if best.is_none_or(|b| t.correlation > trials[b].correlation + 1e-12) {
            best = Some(i);
        }
    }
    let Some(taken) = best.and_then(|b| trials.get_mut(b)) else {
        return Err(Error::new(ErrorKind::Check, "no candidate of the search is small enough")
            .at(&model.path)
            .hint("raise `inherited` or `parameters`, or try a larger eps and a larger width"));
    };
    taken.taken = true;
    let rules = Rules { eps: Some(taken.eps.parse()?), ffn_eps: Some(taken.ffn_eps.parse()?), ..rules.clone() };
    let width = taken.width;
    Ok((rules, width, trials))
}
