//! Axes, places and borders that are counted from the end where they are negative.

/// The axis of `rank` ones that a number stands for, or the place among as many; `None` where it lies outside.
pub fn resolve_axis(axis: i64, rank: usize) -> Option<usize> {
    usize::try_from(from_start(axis, rank)).ok().filter(|&axis| axis < rank)
}

/// The axis that a number stands for, or the nearest that there is.
pub fn nearest_axis(axis: i64, rank: usize) -> usize {
    nearest_border(axis, rank).min(rank.saturating_sub(1))
}

/// The border before an axis, or behind the last, that a number stands for, or the nearest that there is.
pub fn nearest_border(axis: i64, rank: usize) -> usize {
    usize::try_from(from_start(axis, rank)).map_or(0, |axis| axis.min(rank))
}

fn from_start(axis: i64, rank: usize) -> i64 {
    if axis < 0 { axis.saturating_add_unsigned(rank as u64) } else { axis }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTSIDE: [i64; 4] = [-4, 3, i64::MIN, i64::MAX];

    #[test]
    fn negative_axes_count_from_the_end() {
        assert_eq!([-3, -1, 0, 2].map(|axis| resolve_axis(axis, 3)), [Some(0), Some(2), Some(0), Some(2)]);
        assert_eq!(OUTSIDE.map(|axis| resolve_axis(axis, 3)), [None; 4]);
        assert_eq!(resolve_axis(0, 0), None);
    }

    #[test]
    fn what_lies_outside_has_a_nearest() {
        assert_eq!([-3, -1, 0, 2].map(|axis| nearest_axis(axis, 3)), [0, 2, 0, 2]);
        assert_eq!(OUTSIDE.map(|axis| nearest_axis(axis, 3)), [0, 2, 0, 2]);
        assert_eq!(OUTSIDE.map(|axis| nearest_border(axis, 3)), [0, 3, 0, 3]);
        assert_eq!([nearest_axis(0, 0), nearest_border(1, 0)], [0, 0]);
    }
}
