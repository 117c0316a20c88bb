//! Optimisers as parts of the graph: from a parameter, its gradient and its state to their next values.
//!
//! What changes from step to step comes in as scalars, so that one graph serves the whole run.

use serde::{Deserialize, Serialize};

use crate::graph::Builder;

/// How parameters follow their gradients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Optimiser {
    /// AdamW with decoupled weight decay (Loshchilov and Hutter 2019), as torch.optim.AdamW computes it.
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        epsilon: f64,
    },
    /// Stochastic gradient descent with momentum, as torch.optim.SGD computes it; the weight decay is added to the
    /// gradient.
    Sgd {
        /// Share of the last update that is kept.
        momentum: f64,
    },
}

impl Default for Optimiser {
    fn default() -> Self {
        Optimiser::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

/// The input that holds the learning rate of a step.
pub const LEARNING_RATE: &str = "learning_rate";
/// 1 / (1 - beta1^t) for step t, counted from 1.
pub const CORRECTION1: &str = "first_moment_correction";
/// 1 / sqrt(1 - beta2^t) for step t, counted from 1.
pub const CORRECTION2: &str = "second_moment_correction";
/// Share of the moving average that is kept.
pub const EMA_DECAY: &str = "ema_decay";

/// The moving average of a parameter.
pub fn ema(parameter: &str) -> String {
    format!("ema/{parameter}")
}

/// The next value of a tensor of the state.
pub fn next(tensor: &str) -> String {
    format!("next/{tensor}")
}

/// One parameter to update.
pub(super) struct Parameter<'a> {
    /// Its name, which is that of its value.
    pub name: &'a str,
    /// The value that holds its gradient.
    pub gradient: &'a str,
    /// Weight decay, 0 for none.
    pub decay: f32,
    /// The learning rate is multiplied by this.
    pub rate: f32,
}

impl Optimiser {
    /// The tensors that are kept for a parameter beside its value, all of its shape and zero at the start.
    pub fn moments(&self, parameter: &str) -> Vec<String> {
        match self {
            Optimiser::AdamW { .. } => vec![format!("first_moment/{parameter}"), format!("second_moment/{parameter}")],
            Optimiser::Sgd { .. } => vec![format!("momentum/{parameter}")],
        }
    }

    /// Names of the scalars that the update takes.
    pub fn scalars(&self) -> Vec<&'static str> {
        match self {
            Optimiser::AdamW { .. } => vec![LEARNING_RATE, CORRECTION1, CORRECTION2],
            Optimiser::Sgd { .. } => vec![LEARNING_RATE],
        }
    }

    /// The values of the scalars at a step, counted from 1, in the order of [`Optimiser::scalars`]. Computed in f64, as
    /// torch does.
    pub fn scalar_values(&self, step: u64, learning_rate: f64) -> Vec<f32> {
        match self {
            Optimiser::AdamW { beta1, beta2, .. } => {
                let t = step as f64;
                vec![
                    learning_rate as f32,
                    (1.0 / (1.0 - beta1.powf(t))) as f32,
                    (1.0 / (1.0 - beta2.powf(t)).sqrt()) as f32,
                ]
            }
            Optimiser::Sgd { .. } => vec![learning_rate as f32],
        }
    }

    /// Adds the update of one parameter: the next values of the parameter and of its moments.
    pub(super) fn update(&self, b: &mut Builder, p: &Parameter) {
        let moments = self.moments(p.name);
        let rate = b.scaled(LEARNING_RATE, p.rate);
        match *self {
            Optimiser::AdamW { beta1, beta2, epsilon } => {
                let (m, v) = (&moments[0], &moments[1]);
                let (m1, v1) = (next(m), next(v));
                let (kept, new) = (b.scaled(m, beta1 as f32), b.scaled(p.gradient, (1.0 - beta1) as f32));
                b.op_as("Add", &[&kept, &new], vec![], &m1);
                let square = b.op("Mul", &[p.gradient, p.gradient]);
                let (kept, new) = (b.scaled(v, beta2 as f32), b.scaled(&square, (1.0 - beta2) as f32));
                b.op_as("Add", &[&kept, &new], vec![], &v1);
                let root = b.op("Sqrt", &[&v1]);
                let corrected = b.op("Mul", &[&root, CORRECTION2]);
                let epsilon = b.scalar(epsilon as f32);
                let below = b.op("Add", &[&corrected, &epsilon]);
                let step = b.op("Mul", &[&rate, CORRECTION1]);
                let above = b.op("Mul", &[&m1, &step]);
                let change = b.op("Div", &[&above, &below]);
                let decayed = if p.decay == 0.0 {
                    p.name.to_string()
                } else {
                    let (one, lost) = (b.scalar(1.0), b.scaled(&rate, p.decay));
                    let kept = b.op("Sub", &[&one, &lost]);
                    b.op("Mul", &[p.name, &kept])
                };
                b.op_as("Sub", &[&decayed, &change], vec![], &next(p.name));
            }
            Optimiser::Sgd { momentum } => {
                let gradient = if p.decay == 0.0 {
                    p.gradient.to_string()
                } else {
                    let decay = b.scaled(p.name, p.decay);
                    b.op("Add", &[p.gradient, &decay])
                };
                let kept = b.scaled(&moments[0], momentum as f32);
                let momentum = next(&moments[0]);
                b.op_as("Add", &[&kept, &gradient], vec![], &momentum);
                let change = b.op("Mul", &[&momentum, &rate]);
                b.op_as("Sub", &[p.name, &change], vec![], &next(p.name));
            }
        }
    }
}

/// Adds the update of a parameter's moving average.
pub(super) fn average(b: &mut Builder, parameter: &str) {
    let old = ema(parameter);
    let one = b.scalar(1.0);
    let share = b.op("Sub", &[&one, EMA_DECAY]);
    let (kept, new) = (b.op("Mul", &[&old, EMA_DECAY]), b.op("Mul", &[&next(parameter), &share]));
    b.op_as("Add", &[&kept, &new], vec![], &next(&old));
}

/// How the learning rate changes over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum RateCurve {
    /// From the warm-up to the minimum along half a cosine.
    #[default]
    Cosine,
    /// The same throughout.
    Constant,
    /// From the warm-up to the minimum along a line.
    Linear,
}

/// Learning rates of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// What follows the warm-up.
    pub shape: RateCurve,
    /// The highest learning rate.
    pub rate: f64,
    /// The last learning rate.
    pub minimum: f64,
    /// Steps in which the rate rises in a line from `rate / warmup` to `rate`.
    pub warmup: u64,
    /// Steps of the whole run.
    pub total: u64,
}

impl Schedule {
    /// The learning rate of a step, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.rate * (step + 1) as f64 / self.warmup as f64;
        }
        let span = self.total.saturating_sub(self.warmup).max(1) as f64;
        let progress = ((step - self.warmup) as f64 / span).min(1.0);
        let share = match self.shape {
            RateCurve::Constant => return self.rate,
            RateCurve::Cosine => 0.5 + 0.5 * (std::f64::consts::PI * progress).cos(),
            RateCurve::Linear => 1.0 - progress,
        };
        self.minimum + (self.rate - self.minimum) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_warms_up_and_falls() {
        let s = Schedule { shape: RateCurve::Cosine, rate: 1.0, minimum: 0.1, warmup: 4, total: 12 };
        assert_eq!([s.at(0), s.at(3), s.at(4)], [0.25, 1.0, 1.0]);
        assert!((s.at(8) - 0.55).abs() < 1e-12);
        assert!((s.at(12) - 0.1).abs() < 1e-12);
        assert!((s.at(99) - 0.1).abs() < 1e-12);
        let flat = Schedule { shape: RateCurve::Constant, warmup: 0, ..s.clone() };
        assert_eq!([flat.at(0), flat.at(11)], [1.0, 1.0]);
        let line = Schedule { shape: RateCurve::Linear, ..s };
        assert!((line.at(8) - 0.55).abs() < 1e-12);
    }

    #[test]
    fn corrections_are_those_of_adam() {
        let adam = Optimiser::default();
        let values = adam.scalar_values(1, 0.5);
        assert_eq!(values[0], 0.5);
        assert!((values[1] - 10.0).abs() < 1e-5);
        assert!((values[2] - 31.622776).abs() < 1e-4);
    }
}
