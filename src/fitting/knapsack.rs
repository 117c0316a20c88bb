//! Where to cut: the counts of heads and neurons with the least sum of predicted errors under a budget.
//!
//! A block's error at any count lies between those that were measured, along its own local error, which is known
//! everywhere: both in logarithms. The counts are found by a dynamic programme over the blocks (a knapsack with one
//! choice from every block), in which a layer may also be left out as a whole.

use crate::error::{Error, ErrorKind, Result};

/// Steps into which a budget is divided.
const STEPS: usize = 8192;

/// A choice for a block: what it costs, and the error that it makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Heads or neurons.
    pub count: usize,
    /// Dimensions of queries and keys, and of values, of a head; none where they stay.
    pub dims: Option<[usize; 2]>,
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

/// A layer: its blocks, one choice to be made from each, and the error where all of it is left out, which costs nothing
/// else.
#[derive(Clone, Debug, Default)]
pub struct LayerChoices {
    /// The choices of every block.
    pub blocks: Vec<Vec<Choice>>,
    /// The error without the layer; none where it cannot be left out.
    pub without: Option<f64>,
}

/// One choice from every block of every group, or none where a group is left out, so that the sum of costs stays within
/// `budget` and the sum of errors is least.
///
/// # Errors
/// [`ErrorKind::Usage`] where even the cheapest choices cost more.
pub fn allocate(groups: &[LayerChoices], budget: f64) -> Result<Vec<Option<Vec<Choice>>>> {
    let cheapest = |block: &Vec<Choice>| block.iter().copied().min_by(|a, b| a.cost.total_cmp(&b.cost));
    let cheap: Vec<Option<Vec<Choice>>> =
        groups.iter().map(|g| g.without.is_none().then(|| g.blocks.iter().filter_map(cheapest).collect())).collect();
    let least: f64 = cheap.iter().flatten().flatten().map(|c| c.cost).sum();
    if least > budget {
        let what = match budget > 0.0 {
            true => format!("the budget is below the least that can be reached, {:.1} % of it", 100.0 * least / budget),
            false => "what heads and FFNs do not count in is more than the budget already".into(),
        };
        return Err(
            Error::new(ErrorKind::Usage, what).hint("lower ⟦min-heads⟧ or ⟦min-ffn⟧, or allow more levers and layers")
        );
    }
    let step = budget.max(f64::MIN_POSITIVE) / STEPS as f64;
    // Costs are rounded, and the budget is lowered until the exact sum fits.
    let mut steps = STEPS;
    loop {
        if let Some(found) = programme(groups, step, steps) {
            let cost: f64 = found.iter().flatten().flatten().map(|c| c.cost).sum();
            if cost <= budget * (1.0 + 1e-12) {
                return Ok(found);
            }
        }
        if steps <= STEPS / 2 {
            return Ok(cheap);
        }
        steps -= 1;
    }
}

/// What was decided of a group at every number of steps.
struct Decided {
    /// Choices of each block.
    taken: Vec<Vec<u16>>,
    /// True where the group is left out.
    dropped: Vec<bool>,
}

fn programme(groups: &[LayerChoices], step: f64, steps: usize) -> Option<Vec<Option<Vec<Choice>>>> {
    let in_steps = |c: &Choice| (c.cost / step).round() as usize;
    let mut best = vec![0.0; steps + 1];
    let mut decided: Vec<Decided> = Vec::with_capacity(groups.len());
    for group in groups {
        let before = best.clone();
        let mut taken = Vec::with_capacity(group.blocks.len());
        for block in &group.blocks {
            let mut next = vec![f64::INFINITY; steps + 1];
            let mut choice = vec![u16::MAX; steps + 1];
            for (k, c) in block.iter().enumerate() {
                let cost = in_steps(c);
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
        let without = group.without.unwrap_or(f64::INFINITY);
        let dropped: Vec<bool> = before.iter().zip(&best).map(|(b, with)| b + without < *with).collect();
        for ((best, before), _) in best.iter_mut().zip(&before).zip(&dropped).filter(|(_, d)| **d) {
            *best = before + without;
        }
        decided.push(Decided { taken, dropped });
    }
    let mut at = steps;
    let mut found = Vec::with_capacity(groups.len());
    for (group, decided) in groups.iter().zip(&decided).rev() {
        if decided.dropped[at] {
            found.push(None);
            continue;
        }
        let mut choices = Vec::with_capacity(group.blocks.len());
        for (block, taken) in group.blocks.iter().zip(&decided.taken).rev() {
            let c = block.get(usize::from(taken[at]))?;
            at -= in_steps(c);
            choices.push(*c);
        }
        choices.reverse();
        found.push(Some(choices));
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
            .map(|(i, &error)| Choice { count: i + 1, dims: None, cost: unit * (i + 1) as f64, error })
            .collect()
    }

    #[test]
    fn the_programme_finds_what_trying_everything_finds() {
        let blocks =
            [block(&[5.0, 2.0, 0.5, 0.0], 3.0), block(&[1.0, 0.9, 0.2, 0.0], 2.0), block(&[9.0, 0.3, 0.1, 0.0], 5.0)];
        let groups = |without: [Option<f64>; 2]| {
            [
                LayerChoices { blocks: vec![blocks[0].clone(), blocks[1].clone()], without: without[0] },
                LayerChoices { blocks: vec![blocks[2].clone()], without: without[1] },
            ]
        };
        // All costs are whole numbers, so that the programme's rounding decides nothing.
        for without in [[None, None], [Some(1.5), None], [Some(0.1), Some(0.2)], [None, Some(2.0)]] {
            for budget in [11.5, 17.5, 21.5, 29.5, 40.5] {
                let found = allocate(&groups(without), budget).unwrap();
                let mut best = f64::INFINITY;
                let mut first: Vec<(f64, f64)> = without[0].iter().map(|e| (0.0, *e)).collect();
                for a in &blocks[0] {
                    first.extend(blocks[1].iter().map(|b| (a.cost + b.cost, a.error + b.error)));
                }
                let mut second: Vec<(f64, f64)> = without[1].iter().map(|e| (0.0, *e)).collect();
                second.extend(blocks[2].iter().map(|c| (c.cost, c.error)));
                for a in &first {
                    for b in second.iter().filter(|b| a.0 + b.0 <= budget) {
                        best = best.min(a.1 + b.1);
                    }
                }
                assert!(found.iter().flatten().flatten().map(|c| c.cost).sum::<f64>() <= budget);
                let error = |(g, w): (&Option<Vec<Choice>>, Option<f64>)| match g {
                    Some(choices) => choices.iter().map(|c| c.error).sum(),
                    None => w.unwrap(),
                };
                let sum: f64 = found.iter().zip(without).map(error).sum();
                assert!((sum - best).abs() < 1e-12, "{budget} {without:?}: {sum} {best}");
            }
        }
        assert!(allocate(&groups([None, None]), 9.0).is_err());
        assert!(allocate(&groups([Some(1.0), Some(1.0)]), 0.5).unwrap().iter().all(Option::is_none));
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
