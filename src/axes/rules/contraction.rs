//! Typing of products: what they sum over is the same in both operands.

use super::vocabulary::Rule;
use crate::axes::factors::Dim;
use crate::axes::typing::Contraction;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Attributes;

/// An Einsum equation with an arrow and a letter for every axis that an ellipsis stands for, for inputs of these ranks;
/// `None` where they do not fit. Without an arrow, the output has the ellipsis and the letters that stand there once,
/// in the order of the alphabet (Einsum, operator set 12).
pub fn explicit_einsum(equation: &str, ranks: &[usize]) -> Option<String> {
    let equation = equation.replace(' ', "");
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (equation.as_str(), None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    let letters = |term: &str| term.replace("...", "").chars().count();
    if terms.len() != ranks.len() {
        return None;
    }
    let hidden = |term: &str, rank: usize| rank.checked_sub(letters(term)).filter(|&n| n == 0 || term.contains("..."));
    let counts: Vec<usize> = terms.iter().zip(ranks).map(|(t, &rank)| hidden(t, rank)).collect::<Option<_>>()?;
    let most = counts.iter().copied().max().unwrap_or(0);
    let free: Vec<char> = ('A'..='Z').chain('a'..='z').filter(|&c| !equation.contains(c)).take(most).collect();
    if free.len() < most {
        return None;
    }
    // Axes under an ellipsis are aligned at their ends.
    let spell = |term: &str, count: usize| term.replace("...", &free[most - count..].iter().collect::<String>());
    let spelled: Vec<String> = terms.iter().zip(&counts).map(|(t, &count)| spell(t, count)).collect();
    let right = match right {
        Some(right) => spell(right, most),
        None => {
            let mut once: Vec<char> = left.chars().filter(|c| c.is_alphabetic()).collect();
            once.sort_unstable();
            let once = once.iter().filter(|c| left.matches(**c).count() == 1);
            free.iter().chain(once).collect()
        }
    };
    let sound = spelled.iter().chain([&right]).all(|t| t.chars().all(|c| c.is_ascii_alphabetic()));
    sound.then(|| format!("{}->{right}", spelled.join(",")))
}

impl Rule<'_, '_> {
    pub(super) fn matmul(&mut self) -> Result<Vec<Dim>> {
        let (mut a, mut b) = (self.input(0)?, self.input(1)?);
        for flag in ["transBatchA", "transBatchB"] {
            if self.node.int(flag).unwrap_or(0) != 0 {
                return Err(Error::new(ErrorKind::Unsupported, format!("`{flag}` has no typing rule")));
            }
        }
        if self.node.int("transA").unwrap_or(0) != 0 && a.len() > 1 {
            let n = a.len();
            a.swap(n - 1, n - 2);
        }
        if self.node.int("transB").unwrap_or(0) != 0 && b.len() > 1 {
            let n = b.len();
            b.swap(n - 1, n - 2);
        }
        let (vector_a, vector_b) = (a.len() == 1, b.len() == 1);
        if a.is_empty() || b.is_empty() {
            return Err(self.fail("an operand is a scalar"));
        }
        if vector_a {
            a.insert(0, Dim::new());
        }
        if vector_b {
            b.push(Dim::new());
        }
        let (m, n) = (a.len(), b.len());
        self.unify(&a[m - 1], &b[n - 2]);
        let mut out = self.broadcast(&[a[..m - 2].to_vec(), b[..n - 2].to_vec()]);
        if !vector_a {
            out.push(a[m - 2].clone());
        }
        if !vector_b {
            out.push(b[n - 1].clone());
        }
        if matches!(self.node.op_type(), "Gemm" | "Linear")
            && let Some(Some(c)) = self.inputs.get(2).cloned()
        {
            self.broadcast(&[out.clone(), c]);
        }
        self.contraction(a[m - 1].clone(), vec![a[m - 1].clone(), b[n - 2].clone()], &out);
        Ok(out)
    }

    pub(super) fn einsum(&mut self) -> Result<Vec<Dim>> {
        let equation = self.node.string("equation").unwrap_or("");
        let operands: Vec<Vec<Dim>> = (0..self.node.input.len()).map(|j| self.input(j)).collect::<Result<_>>()?;
        let ranks: Vec<usize> = operands.iter().map(Vec::len).collect();
        let Some(explicit) = explicit_einsum(equation, &ranks) else {
            return Err(self.fail(&format!("the equation `{equation}` does not fit inputs of {ranks:?} dimensions")));
        };
        let (left, right) = explicit.split_once("->").unwrap_or((&explicit, ""));
        let mut letters: Vec<(char, Dim)> = Vec::new();
        let mut terms = Vec::new();
        for (c, d) in left.split(',').zip(operands).flat_map(|(term, dims)| term.chars().zip(dims)) {
            if !right.contains(c) {
                terms.push(d.clone());
            }
            match letters.iter().position(|(l, _)| *l == c) {
                None => letters.push((c, d)),
                Some(p) if letters[p].1.is_empty() => letters[p].1 = d,
                Some(p) if !d.is_empty() => {
                    let known = letters[p].1.clone();
                    self.unify(&known, &d);
                }
                Some(_) => {}
            }
        }
        let mut out = Vec::new();
        for c in right.chars() {
            match letters.iter().find(|(l, _)| *l == c) {
                Some((_, d)) => out.push(d.clone()),
                None => return Err(self.fail(&format!("`{c}` stands on the right of `{equation}` only"))),
            }
        }
        let summed = letters.iter().filter(|(c, _)| !right.contains(*c)).flat_map(|(_, d)| d.iter().copied()).collect();
        self.contraction(summed, terms, &out);
        Ok(out)
    }

    pub(super) fn conv(&mut self) -> Result<Vec<Dim>> {
        let (x, w) = (self.input(0)?, self.input(1)?);
        if x.len() < 3 || w.len() != x.len() {
            return Err(self.fail("input and weight differ in rank"));
        }
        let transposed = self.node.op_type() == "ConvTranspose";
        let groups = self.node.int("group").unwrap_or(1).max(1) as usize;
        let (mut channels_in, mut channels_out) =
            if transposed { (w[0].clone(), w[1].clone()) } else { (w[1].clone(), w[0].clone()) };
        if groups > 1 {
            // Grouped: the group factor is the outer part of both channel axes.
            let group = self.typing.factors.fresh(groups);
            if transposed {
                channels_out = group.iter().chain(&channels_out).copied().collect();
            } else {
                channels_in = group.iter().chain(&channels_in).copied().collect();
                let total = self.size(&channels_out);
                if !total.is_multiple_of(groups) {
                    return Err(self.fail(&format!("{total} output channels do not divide into {groups} groups")));
                }
                let mut channels = group.clone();
                channels.extend(self.typing.factors.fresh(total / groups));
                self.unify(&channels_out, &channels);
                channels_out = channels;
            }
            self.typing.groups.insert(self.k, group);
        }
        self.unify(&x[1], &channels_in);
        if let Some(Some(bias)) = self.inputs.get(2).cloned()
            && let Some(b) = bias.first()
        {
            self.unify(&channels_out, b);
        }
        let kernel: Vec<usize> = w[2..].iter().map(|d| self.size(d)).collect();
        let mut out = vec![x[0].clone(), channels_out];
        out.extend(self.windows(&x, &kernel, transposed)?);
        // MACs of a convolution: output elements x channels of a group x kernel (of the input, where transposed).
        let factors = &self.typing.factors;
        let places = if transposed { &x } else { &out };
        let macs = places.iter().chain(&w[1..]).fold(1u64, |n, d| n.saturating_mul(factors.size(d) as u64));
        let terms = vec![x[1].clone(), w[usize::from(!transposed)].clone()];
        self.typing.contractions.push(Contraction { node: self.k, summed: x[1].clone(), terms, macs });
        Ok(out)
    }

    /// CausalConvWithState: [batch, channels, places], every channel by itself; the last places go on as a state.
    pub(super) fn causal_conv(&mut self) -> Result<Vec<Vec<Dim>>> {
        let (x, w) = (self.input(0)?, self.input(1)?);
        let ([batch, channels, places], [of_weight, one, kernel]) = (&x[..], &w[..]) else {
            return Err(self.fail("input and weight want three dimensions"));
        };
        let length = self.size(kernel);
        if self.size(one) != 1 || length == 0 {
            return Err(self.fail("its weight is not that of single channels"));
        }
        self.unify(channels, of_weight);
        if let Some(Some(bias)) = self.inputs.get(2).cloned()
            && let [b] = &bias[..]
        {
            self.unify(channels, b);
        }
        let mut state = vec![batch.clone(), channels.clone()];
        state.extend(self.fresh(&[length - 1]));
        if let Some(Some(past)) = self.inputs.get(3).cloned() {
            if past.len() != 3 {
                return Err(self.fail("its state wants three dimensions"));
            }
            past.iter().zip(&state).for_each(|(a, b)| self.unify(a, b));
        }
        self.contraction(kernel.clone(), vec![kernel.clone()], &[batch.clone(), channels.clone(), places.clone()]);
        Ok(vec![x, state])
    }
}

#[cfg(test)]
mod tests {
    use super::explicit_einsum;

    #[test]
    fn einsum_equations_are_spelled_out() {
        let explicit = |equation: &str, ranks: &[usize]| explicit_einsum(equation, ranks);
        assert_eq!(explicit("...qd, ...kd -> ...qk", &[4, 4]).unwrap(), "ABqd,ABkd->ABqk");
        assert_eq!(explicit("...c,cd->...d", &[3, 2]).unwrap(), "ABc,cd->ABd");
        assert_eq!(explicit("...ij,...jk->...ik", &[4, 3]).unwrap(), "ABij,Bjk->ABik");
        assert_eq!(explicit("bij,bjk", &[3, 3]).unwrap(), "bij,bjk->ik");
        assert_eq!(explicit("i...,i", &[3, 1]).unwrap(), "iAB,i->AB");
        assert_eq!(explicit("ij,jk->ik", &[3, 2]), None);
        assert_eq!(explicit("ij->i", &[2, 2]), None);
        assert_eq!(explicit("i.j->i", &[3]), None);
    }
}
