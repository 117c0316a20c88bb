//! Where tokens lie on the grid of patches.

use std::collections::HashMap;

use super::resample::bicubic;
use crate::axes::resize::LinearCombination;

/// Where the tokens of an axis lie on the grid, at the old size and at the new one: the row and column of each, or its
/// rank among the prefix tokens.
pub(super) struct TokenGrid {
    pub old: Vec<Place>,
    pub new: Vec<Place>,
    pub old_grid: [usize; 2],
    pub new_grid: [usize; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Prefix(usize),
    Patch(usize, usize),
}

impl TokenGrid {
    /// New tokens as sums of old ones: prefix tokens stay, patches are interpolated.
    pub fn resample(&self) -> LinearCombination {
        let place: HashMap<Place, usize> = self.old.iter().enumerate().map(|(i, &p)| (p, i)).collect();
        let [rows, columns] = [0, 1].map(|i| bicubic(self.old_grid[i], self.new_grid[i]));
        let terms = |p: &Place| match *p {
            Place::Prefix(_) => vec![(place[p], 1.0)],
            Place::Patch(r, q) => rows[r]
                .iter()
                .flat_map(|&(i, v)| columns[q].iter().map(move |&(j, w)| (i, j, v * w)))
                .map(|(i, j, w)| (place[&Place::Patch(i, j)], w))
                .collect(),
        };
        self.new.iter().map(terms).collect()
    }
}

impl Place {
    pub fn prefix(self) -> Option<usize> {
        match self {
            Place::Prefix(i) => Some(i),
            Place::Patch(..) => None,
        }
    }
}
