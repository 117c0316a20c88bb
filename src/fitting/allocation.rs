//! Where to cut: the counts of heads and neurons with the least sum of predicted errors under a budget.
//!
//! A block's error at any count lies between those that were measured, along its own local error, which is known everywhere: both in
//! logarithms. The counts are found by a dynamic programme over the blocks (a knapsack with one choice from every block).

use crate::error::{Error, ErrorKind, Result};

/// Steps into which a budget is divided.
const STEPS: usize = 8192;

/// A choice for a block: what it costs, and the error that it makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Heads or neurons.
    pub count: usize,
    /// Parameters, operations, bytes or time.
    pub cost: f64,
    /// Predicted error.
    pub error: f64,
}

/// The error at every count from 0 to all, from that at some counts and the local error at all of them.
pub fn curve(local: &[f64], measured: &[(usize, f64)]) -> Vec<f64> {
    let units = local.len() - 1;
    let floor = local.iter().copied().filter(|e| *e > 0.0).fold(f64::INFINITY, f64::min).min(1e300) * 1e-3;
    let log = |e: f64| e.max(floor).max(f64::MIN_POSITIVE).ln();
    let mut known: Vec<(usize, f64)> = measured.iter().copied().filter(|m| m.1.is_finite()).collect();
    known.sort_by_key(|m| m.0);
    // Fewer units are never better.
    for i in (0..known.len().saturating_sub(1)).rev() {
        known[i].1 = known[i].1.max(known[i + 1].1);
    }
    let ratio = |m: &(usize, f64)| m.1.max(f64::MIN_POSITIVE).ln() - log(local[m.0]);
    let mut errors: Vec<f64> = (0..=units)
        .map(|count| {
            if count == units {
                return 0.0;
            }
            let above = known.iter().find(|m| m.0 >= count);
            let below = known.iter().rev().find(|m| m.0 <= count);
            let factor = match (below, above) {
                (Some(a), Some(b)) if a.0 != b.0 => {
                    let (x, y) = (log(local[a.0]), log(local[b.0]));
                    let t = if x == y { 0.5 } else { (log(local[count]) - x) / (y - x) };
                    ratio(a) + t.clamp(0.0, 1.0) * (ratio(b) - ratio(a))
                }
                (Some(m), _) | (_, Some(m)) => ratio(m),
                (None, None) => 0.0,
            };
            (factor + log(local[count])).exp()
        })
        .collect();
    for k in (0..units).rev() {
        errors[k] = errors[k].max(errors[k + 1]);
    }
    errors
}

/// One choice from every block so that the sum of costs stays within `budget` and the sum of errors is least.
///
/// # Errors
/// [`ErrorKind::Usage`] where even the cheapest choices cost more.
pub fn allocate(blocks: &[Vec<Choice>], budget: f64) -> Result<Vec<Choice>> {
    let least: f64 = blocks.iter().map(|b| b.iter().map(|c| c.cost).fold(f64::INFINITY, f64::min)).sum();
    if least > budget {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "the budget is below the least that can be reached, {:.1} % of it",
                100.0 * least / budget.max(f64::MIN_POSITIVE)
            ),
        )
        .hint("lower --min-heads or --min-ffn, or allow more levers and layers"));
    }
    let step = budget.max(f64::MIN_POSITIVE) / STEPS as f64;
    // Costs are rounded, and the budget is lowered until the exact sum fits.
    let mut steps = STEPS;
    loop {
        if let Some(found) = programme(blocks, step, steps) {
            let cost: f64 = found.iter().map(|c| c.cost).sum();
            if cost <= budget * (1.0 + 1e-12) {
                return Ok(found);
            }
        }
        if steps <= STEPS / 2 {
            return Ok(blocks
                .iter()
                .filter_map(|b| b.iter().copied().min_by(|a, b| a.cost.total_cmp(&b.cost)))
                .collect());
        }
        steps -= 1;
    }
}

fn programme(blocks: &[Vec<Choice>], step: f64, steps: usize) -> Option<Vec<Choice>> {
    let mut best = vec![0.0; steps + 1];
    let mut taken: Vec<Vec<u16>> = Vec::with_capacity(blocks.len());
    for block in blocks {
        let costs: Vec<usize> = block.iter().map(|c| (c.cost / step).round() as usize).collect();
        let mut next = vec![f64::INFINITY; steps + 1];
        let mut choice = vec![u16::MAX; steps + 1];
        for (k, (c, &cost)) in block.iter().zip(&costs).enumerate() {
            for at in cost..=steps {
                let error = best[at - cost] + c.error;
                if error < next[at] {
                    (next[at], choice[at]) = (error, k as u16);
                }
            }
        }
        best = next;
        taken.push(choice);
    }
    let mut at = steps;
    let mut found = Vec::with_capacity(blocks.len());
    for (block, taken) in blocks.iter().zip(&taken).rev() {
        let c = block.get(usize::from(taken[at]))?;
        at -= (c.cost / step).round() as usize;
        found.push(*c);
    }
    found.reverse();
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(errors: &[f64], unit: f64) -> Vec<Choice> {
        errors
            .iter()
            .enumerate()
            .map(|(i, &error)| Choice { count: i + 1, cost: unit * (i + 1) as f64, error })
            .collect()
    }

    #[test]
    fn the_programme_finds_what_trying_everything_finds() {
        let blocks =
            [block(&[5.0, 2.0, 0.5, 0.0], 3.0), block(&[1.0, 0.9, 0.2, 0.0], 2.0), block(&[9.0, 0.3, 0.1, 0.0], 5.0)];
        for budget in [11.0, 17.0, 21.0, 29.0, 40.0] {
            let found = allocate(&blocks, budget).unwrap();
            let mut best = f64::INFINITY;
            for a in &blocks[0] {
                for b in &blocks[1] {
                    for c in blocks[2].iter().filter(|c| a.cost + b.cost + c.cost <= budget) {
                        best = best.min(a.error + b.error + c.error);
                    }
                }
            }
            assert!(found.iter().map(|c| c.cost).sum::<f64>() <= budget);
            assert!((found.iter().map(|c| c.error).sum::<f64>() - best).abs() < 1e-12, "{budget}");
        }
        assert!(allocate(&blocks, 9.0).is_err());
    }

    #[test]
    fn curves_pass_through_what_was_measured() {
        let local = [16.0, 8.0, 4.0, 2.0, 1.0, 0.0];
        let curve = curve(&local, &[(1, 0.8), (3, 0.1)]);
        assert!((curve[1] - 0.8).abs() < 1e-9 && (curve[3] - 0.1).abs() < 1e-9);
        // In between: on a line in logarithms.
        assert!((curve[2] - (0.8f64 * 0.1).sqrt()).abs() < 1e-9);
        // Outside: along the local error.
        assert!((curve[4] - 0.05).abs() < 1e-9 && (curve[0] - 1.6).abs() < 1e-9);
        assert_eq!(curve[5], 0.0);
        assert!(curve.windows(2).all(|e| e[0] >= e[1]));
    }
}
