//! Axes and places that count from the end where they are negative.

/// The axis of a value of `rank` dimensions that a number stands for, or the place along an axis of as many elements; `None` where there
/// is none.
pub fn resolve_axis(axis: i64, rank: usize) -> Option<usize> {
    let from_start = if axis < 0 { axis.checked_add_unsigned(rank as u64)? } else { axis };
    usize::try_from(from_start).ok().filter(|&axis| axis < rank)
}

#[cfg(test)]
mod tests {
    use super::resolve_axis;

    #[test]
    fn negative_axes_count_from_the_end() {
        assert_eq!([-3, -1, 0, 2].map(|axis| resolve_axis(axis, 3)), [Some(0), Some(2), Some(0), Some(2)]);
        assert_eq!([-4, 3, i64::MIN, i64::MAX].map(|axis| resolve_axis(axis, 3)), [None; 4]);
        assert_eq!(resolve_axis(0, 0), None);
    }
}
