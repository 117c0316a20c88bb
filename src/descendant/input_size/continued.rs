//! Tables that a rule wrote down, for more tokens: they go on by it.

use ndarray::{ArrayD, ArrayView1, ArrayView2, IxDyn};

use super::rotary::Wave;

/// How far a table may be from its rule, relative to its largest element.
const TOLERANCE: f64 = 1e-6;
/// A wave goes through fewer numbers, whatever they are.
const FEWEST: usize = 6;

/// The table with so many tokens along its `axes`, of which it has fewer and is one or two; `None` where no rule is
/// seen. Along one axis it is a number, steps of one size, or sines and cosines. Along two it goes by the offset from
/// one token to the other: in the same steps, or as a mask that hides all tokens from one offset on.
pub(super) fn continued(table: &ArrayD<f64>, axes: &[usize], tokens: usize) -> Option<ArrayD<f64>> {
    let rest: Vec<usize> = (0..table.ndim()).filter(|a| !axes.contains(a)).collect();
    let order: Vec<usize> = rest.iter().chain(axes).copied().collect();
    let lengths: Vec<usize> = rest.iter().map(|&a| table.len_of(ndarray::Axis(a))).collect();
    let turned = table.view().permuted_axes(IxDyn(&order)).as_standard_layout().into_owned();
    let parts = lengths.iter().product::<usize>();
    let own = table.len_of(ndarray::Axis(*axes.first()?));
    let mut values = Vec::with_capacity(parts * tokens.pow(axes.len() as u32));
    match axes.len() {
        1 => {
            let lines = turned.into_shape_with_order((parts, own)).ok()?;
            for line in lines.rows() {
                let rule = Rule::of(line)?;
                values.extend((0..tokens).map(|i| line.get(i).copied().unwrap_or_else(|| rule.at(i as f64))));
            }
        }
        2 => {
            let matrices = turned.into_shape_with_order((parts, own, own)).ok()?;
            for matrix in matrices.outer_iter() {
                let offset = offsets(matrix)?;
                for i in 0..tokens {
                    values.extend((0..tokens).map(|j| offset(j as f64 - i as f64)));
                }
            }
        }
        _ => return None,
    }
    let shape: Vec<usize> = lengths.into_iter().chain(axes.iter().map(|_| tokens)).collect();
    let out = ArrayD::from_shape_vec(IxDyn(&shape), values).ok()?;
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(at, &axis)| back[axis] = at);
    Some(out.permuted_axes(IxDyn(&back)).as_standard_layout().into_owned())
}

/// What a line of numbers follows.
enum Rule {
    Steps { first: f64, step: f64 },
    Wave(Wave),
}

impl Rule {
    fn of(line: ArrayView1<f64>) -> Option<Rule> {
        let (first, second) = (*line.first()?, line.get(1).copied());
        if line.iter().all(|&v| v == first) {
            return Some(Rule::Steps { first, step: 0.0 });
        }
        let largest = line.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        // What is infinite has no steps.
        if !largest.is_finite() {
            return None;
        }
        let step = second? - first;
        let is_step = |(i, v): (usize, &f64)| (v - first - step * i as f64).abs() <= TOLERANCE * largest;
        if line.len() > 2 && line.iter().enumerate().all(is_step) {
            return Some(Rule::Steps { first, step });
        }
        let samples: Vec<f32> = line.iter().map(|&v| v as f32).collect();
        Wave::fit(&samples).filter(|_| samples.len() >= FEWEST).map(Rule::Wave)
    }

    fn at(&self, x: f64) -> f64 {
        match self {
            Rule::Steps { first, step: 0.0 } => *first,
            Rule::Steps { first, step } => first + step * x,
            Rule::Wave(wave) => wave.at(x),
        }
    }
}

/// What a matrix of tokens has by the offset of the second from the first.
fn offsets(matrix: ArrayView2<f64>) -> Option<impl Fn(f64) -> f64> {
    let last = matrix.nrows().checked_sub(1)?;
    let below = matrix.column(0).into_iter().skip(1).rev();
    let line: Vec<f64> = below.chain(matrix.row(0)).copied().collect();
    if matrix.indexed_iter().any(|((i, j), v)| line[last + j - i] != *v) {
        return None;
    }
    let steps = match Rule::of(ArrayView1::from(&line)) {
        Some(steps @ Rule::Steps { .. }) => Some(steps),
        _ => None,
    };
    if steps.is_none() && !is_window(&line) {
        return None;
    }
    let last = last as f64;
    Some(move |offset: f64| match &steps {
        Some(steps) => steps.at(offset + last),
        None => line[(offset.clamp(-last, last) + last) as usize],
    })
}

/// True for one number, with another in one run of places, neither of which ends at the last place but one: what may
/// be seen of a text, or of a part of it. Numbers that are several may change beyond the last (buckets of distances).
fn is_window(line: &[f64]) -> bool {
    let changes: Vec<usize> = (1..line.len()).filter(|&i| line[i] != line[i - 1]).collect();
    let is_inside = |&at: &usize| at > 1 && at + 1 < line.len();
    let is_back = |&at: &usize| line[at] == line[0];
    match &changes[..] {
        [only] => is_inside(only),
        [first, second] => [first, second].into_iter().all(is_inside) && is_back(second),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(shape: &[usize], of: impl Fn(&[usize]) -> f64) -> ArrayD<f64> {
        ArrayD::from_shape_fn(IxDyn(shape), |at| of(ndarray::Dimension::slice(&at)))
    }

    #[test]
    fn what_a_rule_wrote_goes_on_by_it() {
        let same = |axes: &[usize], shape: fn(usize) -> Vec<usize>, of: fn(&[usize]) -> f64| {
            let (short, long) = (array(&shape(8), of), array(&shape(13), of));
            let found = continued(&short, axes, 13).unwrap();
            assert_eq!(found.shape(), long.shape());
            found.iter().zip(&long).for_each(|(a, b)| assert!(a == b || (a - b).abs() < 1e-5, "{a}, not {b}"));
        };
        // Places, kinds of tokens, cosines of two frequencies.
        same(&[1], |n| vec![1, n], |at| at[1] as f64);
        same(&[0], |n| vec![n, 3], |at| at[1] as f64);
        same(&[1], |n| vec![1, n, 2], |at| (at[1] as f64 * [1.0, 0.3][at[2]]).cos());
        // What may be seen, with infinities; offsets; offsets that a head scales; windows.
        same(&[2, 3], |n| vec![1, 1, n, n], |at| if at[3] > at[2] { f64::NEG_INFINITY } else { 0.0 });
        same(&[0, 1], |n| vec![n, n], |at| at[1] as f64 - at[0] as f64);
        same(&[1, 2], |n| vec![2, n, n], |at| (at[2] as f64 - at[1] as f64) * [0.5, 0.25][at[0]]);
        same(&[0, 1], |n| vec![n, n], |at| f64::from(u8::from(at[0].abs_diff(at[1]) <= 2)));
    }

    #[test]
    fn what_follows_no_rule_is_none() {
        let learned = |at: &[usize]| ((at[0] * 7 + 3) % 11) as f64 / 11.0;
        assert!(continued(&array(&[8, 2], learned), &[0], 13).is_none());
        // Few numbers show no rule; neither do offsets that change up to the last.
        assert!(continued(&array(&[4], learned), &[0], 13).is_none());
        assert!(continued(&array(&[8, 8], |at| learned(&[at[0] + 8 - at[1]])), &[0, 1], 13).is_none());
        assert!(continued(&array(&[8, 8], |at| learned(&[at[0] * at[1]])), &[0, 1], 13).is_none());
        // Buckets of distances are as wide as they are far: the next one may begin with the next token.
        let bucket = |at: &[usize]| (1.0 + at[0].abs_diff(at[1]) as f64).log2().floor();
        assert!(continued(&array(&[8, 8], bucket), &[0, 1], 13).is_none());
    }
}
