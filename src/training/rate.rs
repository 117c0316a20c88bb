//! The learning rate where none is given: found by trial before the first update.
//!
//! A model that was fitted or trained well lies in a narrow valley of the loss. AdamW's first updates move every weight
//! by about the learning rate, however small its gradient is, and a rate that suits a fresh model throws such a one out
//! of the valley, from where it does not come back on few images. One update tells: on the very images that it was made
//! for, the loss rises.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// What a rate that is too high is divided by. Coarse, since every trial costs two steps.
const DIVISOR: f64 = 4.0;
/// Divisions after which a rate is taken as it is.
const DIVISIONS: usize = 5;

/// An update that was tried and taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its learning rate.
    pub rate: f64,
    /// The loss of its batches before it.
    pub before: f64,
    /// The loss of the same batches after it; `None` where that is no finite number.
    pub after: Option<f64>,
}

impl Attempt {
    /// Whether the update did what it is for.
    fn lowers(&self) -> bool {
        self.after.is_some_and(|after| after <= self.before)
    }
}

/// The highest learning rate of a run, and how it was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearningRate {
    /// The rate.
    pub rate: f64,
    /// What was tried, in this order; nothing where the rate was given.
    pub attempts: Vec<Attempt>,
}

impl LearningRate {
    /// The rate that is tried first.
    pub const DEFAULT: f64 = 5e-4;

    /// A rate that needs no trial.
    pub fn given(rate: f64) -> Self {
        LearningRate { rate, attempts: Vec::new() }
    }

    /// The default, divided by four until one update no longer raises the loss of its own batches.
    ///
    /// # Errors
    /// Those of `attempt`.
    pub(super) fn find(mut attempt: impl FnMut(f64) -> Result<Attempt>) -> Result<Self> {
        let mut found = LearningRate::given(Self::DEFAULT);
        loop {
            let tried = attempt(found.rate)?;
            let ends = tried.lowers() || found.attempts.len() == DIVISIONS;
            found.attempts.push(tried);
            if ends {
                return Ok(found);
            }
            found.rate /= DIVISOR;
        }
    }
}

impl fmt::Display for LearningRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:e}", self.rate)?;
        let Some(first) = self.attempts.first() else { return Ok(()) };
        let [before, after] = [Some(first.before), first.after].map(Loss);
        write!(f, ": one update at {:e} takes the loss of its batch from {before} to {after}", first.rate)?;
        match &self.attempts[1..] {
            [.., last] => write!(f, ", one at {:e} to {}", last.rate, Loss(last.after)),
            [] => Ok(()),
        }
    }
}

/// A loss for people to read.
struct Loss(Option<f64>);

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => write!(f, "infinity"),
            Some(small) if small.abs() < 1e-3 => write!(f, "{small:.2e}"),
            Some(loss) => write!(f, "{loss:.4}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loss whose second derivative along the update is `curvature`, and whose first is -1.
    fn found(curvature: f64) -> LearningRate {
        LearningRate::find(|rate| {
            Ok(Attempt { rate, before: 1.0, after: Some(1.0 - rate + 0.5 * curvature * rate * rate) })
        })
        .unwrap()
    }

    #[test]
    fn a_wide_valley_takes_the_default() {
        let wide = found(1.0);
        assert_eq!((wide.rate, wide.attempts.len()), (LearningRate::DEFAULT, 1));
        assert_eq!(wide.to_string(), "5e-4: one update at 5e-4 takes the loss of its batch from 1.0000 to 0.9995");
        assert_eq!(LearningRate::given(1e-3).to_string(), "1e-3");
    }

    #[test]
    fn the_narrower_the_valley_the_lower_the_rate() {
        // The loss falls up to a rate of 2 / curvature.
        for curvature in [1e4, 1e5, 1e6] {
            let narrow = found(curvature);
            assert!(narrow.rate <= 2.0 / curvature && narrow.rate > 0.4 / curvature, "{narrow:?}");
            assert_eq!(narrow.attempts[0].rate, LearningRate::DEFAULT);
        }
        // Whatever is tried: a loss of zero can only rise.
        let least = LearningRate::find(|rate| Ok(Attempt { rate, before: 0.0, after: None })).unwrap();
        assert_eq!((least.rate, least.attempts.len()), (LearningRate::DEFAULT / 1024.0, 6));
    }
}
