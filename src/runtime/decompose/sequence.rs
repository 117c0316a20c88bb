//! Operators that go along a sequence, step by step: cumulative products, causal convolutions, linear attention (ONNX
//! operator sets 26 and 27). Their length is known, so each step is nodes of its own.

use super::operators::Decomposer;
use crate::error::Result;
use crate::graph::{Attributes, int_attribute, ints_attribute, resolve_axis};

/// Every step on its own: more of them are not worth their nodes.
const MOST_STEPS: usize = 4096;

impl Decomposer<'_, '_> {
    /// CumProd: each step multiplies what came before.
    pub(super) fn cumulative_product(&mut self) -> Result<()> {
        let (x, axis) = (self.operand(0)?, self.operand(1)?);
        let shape = self.shape(&x)?;
        let known = self.typing.known.get(axis.as_str()).and_then(|axis| axis.ints().first().copied());
        let Some(axis) = known.and_then(|axis| resolve_axis(axis, shape.len())) else {
            return Err(self.refuse("a computed axis"));
        };
        let steps = self.steps(shape[axis])?;
        let flag = |work: &Self, name: &str| work.node.int(name).unwrap_or(0) != 0;
        let (exclusive, reverse) = (flag(self, "exclusive"), flag(self, "reverse"));
        let mut order: Vec<usize> = (0..steps).collect();
        if reverse {
            order.reverse();
        }
        let mut made = vec![String::new(); steps];
        let mut product: Option<String> = exclusive.then(|| {
            let mut one = shape.clone();
            one[axis] = 1;
            self.filled(&one, 1.0)
        });
        for (i, &step) in order.iter().enumerate() {
            if exclusive {
                made[step] = product.clone().unwrap_or_default();
                if i + 1 == steps {
                    break;
                }
            }
            let factor = self.step(&x, axis, step);
            let next = match product {
                Some(product) => self.op("Mul", &[&product, &factor], vec![]),
                None => factor,
            };
            if !exclusive {
                made[step] = next.clone();
            }
            product = Some(next);
        }
        self.join(0, &made, axis);
        Ok(())
    }

    /// CausalConvWithState: every channel by itself, over places up to its own.
    pub(super) fn causal_convolution(&mut self) -> Result<()> {
        let (x, weight) = (self.operand(0)?, self.operand(1)?);
        let (shape, kernel) = (self.shape(&x)?, self.shape(&weight)?[2]);
        let state = [shape[0], shape[1], kernel - 1];
        let past = match self.input(3).map(str::to_string) {
            Some(past) => past,
            None => self.filled(&state, 0.0),
        };
        let padded = match kernel {
            1 => x,
            _ => self.op("Concat", &[&past, &x], vec![int_attribute("axis", 2)]),
        };
        if self.node.output.get(1).is_some_and(|o| !o.is_empty()) {
            let length = shape[2] as i64;
            let bounds = [length, length + kernel as i64 - 1, 2].map(|bound| self.ints(&[bound]));
            self.end(1, "Slice", &[&padded, &bounds[0], &bounds[1], &bounds[2]], vec![]);
        }
        let mut inputs = vec![padded, weight];
        inputs.extend(self.input(2).map(str::to_string));
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let attributes =
            vec![int_attribute("group", shape[1] as i64), ints_attribute("kernel_shape", &[kernel as i64])];
        if !matches!(self.node.string("activation"), Some("silu" | "swish")) {
            self.end(0, "Conv", &inputs, attributes);
            return Ok(());
        }
        let convolved = self.op("Conv", &inputs, attributes);
        let gate = self.op("Sigmoid", &[&convolved], vec![]);
        self.end(0, "Mul", &[&convolved, &gate], vec![]);
        Ok(())
    }

    /// LinearAttention: a state of keys times values that each token fades, corrects, adds to and reads.
    pub(super) fn linear_attention(&mut self) -> Result<()> {
        let [q, k, v] = [self.operand(0)?, self.operand(1)?, self.operand(2)?];
        let count = |work: &Self, name: &str| work.node.int(name).unwrap_or(1).max(1) as usize;
        let (heads, key_heads) = (count(self, "q_num_heads"), count(self, "kv_num_heads"));
        let shape = self.shape(&q)?;
        let (steps, width) = (self.steps(shape[1])?, shape[2] / heads);
        let rule = self.node.string("update_rule").unwrap_or("gated_delta");
        let (fades, corrects) = (rule.starts_with("gated"), rule.ends_with("delta"));
        let q = self.separate(&q, heads);
        // Every query head has a state of its own; those that share keys have equal ones.
        let spread = |work: &mut Self, x: &str, of: usize| {
            let apart = work.separate(x, of);
            if of == 1 || of == heads { apart } else { work.repeat(&apart, [of, heads, steps]) }
        };
        let k = spread(self, &k, key_heads);
        let v = spread(self, &v, key_heads);
        let columns =
            |work: &mut Self, x: &str| work.op("Transpose", &[x], vec![ints_attribute("perm", &[0, 1, 3, 2])]);
        let keys = columns(self, &k);
        let fading = match fades {
            true => {
                let decay = self.operand(4)?;
                let decay = spread(self, &decay, key_heads);
                let share = self.op("Exp", &[&decay], vec![]);
                Some(columns(self, &share))
            }
            false => None,
        };
        let rates = match corrects {
            true => {
                let beta = self.operand(5)?;
                let of = self.shape(&beta)?[2];
                Some(spread(self, &beta, of))
            }
            false => None,
        };
        let mut state = match self.input(3).map(str::to_string) {
            Some(past) if key_heads == heads => Some(past),
            Some(past) => Some(self.repeat(&past, [key_heads, heads, width])),
            None => None,
        };
        let mut read = Vec::with_capacity(steps);
        for t in 0..steps {
            if let (Some(old), Some(fading)) = (&state, &fading) {
                let share = self.step(fading, 3, t);
                state = Some(self.op("Mul", &[old, &share], vec![]));
            }
            let mut value = self.step(&v, 2, t);
            if let Some(rates) = &rates {
                if let Some(old) = &state {
                    let key = self.step(&k, 2, t);
                    let held = self.op("MatMul", &[&key, old], vec![]);
                    value = self.op("Sub", &[&value, &held], vec![]);
                }
                let rate = self.step(rates, 2, t);
                value = self.op("Mul", &[&value, &rate], vec![]);
            }
            let key = self.step(&keys, 3, t);
            let written = self.op("MatMul", &[&key, &value], vec![]);
            let new = match &state {
                Some(old) => self.op("Add", &[old, &written], vec![]),
                None => written,
            };
            let query = self.step(&q, 2, t);
            read.push(self.op("MatMul", &[&query, &new], vec![]));
            state = Some(new);
        }
        if let Some(state) = state.filter(|_| self.node.output.get(1).is_some_and(|o| !o.is_empty())) {
            let bounds = [0, heads as i64, 1, (heads / key_heads) as i64].map(|bound| self.ints(&[bound]));
            self.end(1, "Slice", &[&state, &bounds[0], &bounds[1], &bounds[2], &bounds[3]], vec![]);
        }
        let parts: Vec<&str> = read.iter().map(String::as_str).collect();
        let joined = self.op("Concat", &parts, vec![int_attribute("axis", 2)]);
        let scale = self.node.float("scale").filter(|s| *s != 0.0).unwrap_or(1.0 / (width as f32).sqrt());
        let scale = self.scalar(scale);
        let scaled = self.op("Mul", &[&joined, &scale], vec![]);
        self.merge(&scaled);
        Ok(())
    }

    pub(super) fn steps(&self, steps: usize) -> Result<usize> {
        match steps {
            1..=MOST_STEPS => Ok(steps),
            _ => Err(self.refuse(&format!("{steps} steps"))),
        }
    }

    /// One place along an axis, which stays.
    pub(super) fn step(&mut self, x: &str, axis: usize, place: usize) -> String {
        self.slice(x, axis as i64, [place as i64, place as i64 + 1, 1])
    }

    pub(super) fn join(&mut self, output: usize, parts: &[String], axis: usize) {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.end(output, "Concat", &parts, vec![int_attribute("axis", axis as i64)]);
    }
}
