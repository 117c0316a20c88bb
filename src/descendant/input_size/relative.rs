//! Tables of relative positions.

use std::collections::HashMap;

use super::resample::relative;
use super::tokens::{Place, TokenGrid};
use crate::axes::resize::LinearCombination;

/// Which entry of a table stands for which pair of tokens: one for each offset between patches, one for each pair of a
/// prefix token and a prefix token or any patch.
pub(super) struct Pairs {
    /// Entries by offset, rows outermost, from the most negative.
    offsets: Vec<usize>,
    others: HashMap<(Option<usize>, Option<usize>), usize>,
}

impl Pairs {
    /// Reads the entries of all pairs; `None` where one offset has several.
    pub fn read(queries: &TokenGrid, keys: &TokenGrid, entry: impl Fn(usize, usize) -> usize) -> Option<Pairs> {
        if queries.old_grid != keys.old_grid || queries.new_grid != keys.new_grid {
            return None;
        }
        let [h, w] = queries.old_grid;
        let mut offsets = vec![None; (2 * h - 1) * (2 * w - 1)];
        let mut others = HashMap::new();
        for (i, &q) in queries.old.iter().enumerate() {
            for (j, &k) in keys.old.iter().enumerate() {
                let found = entry(i, j);
                let known = match (q, k) {
                    (Place::Patch(..), Place::Patch(..)) => *offsets[offset(q, k, [h, w])].get_or_insert(found),
                    _ => *others.entry((q.prefix(), k.prefix())).or_insert(found),
                };
                if known != found {
                    return None;
                }
            }
        }
        Some(Pairs { offsets: offsets.into_iter().collect::<Option<_>>()?, others })
    }

    /// The new table's entries as sums of old ones, and the index of every new pair into it.
    pub fn resized(&self, queries: &TokenGrid, keys: &TokenGrid) -> (LinearCombination, Vec<i64>) {
        let ([h, w], [new_h, new_w]) = (queries.old_grid, queries.new_grid);
        let (rows, columns) = (relative(h, new_h), relative(w, new_w));
        let mut mixture: LinearCombination = Vec::with_capacity(rows.len() * columns.len());
        for row in &rows {
            for column in &columns {
                let terms =
                    row.iter().flat_map(|&(i, v)| column.iter().map(move |&(j, x)| (i * (2 * w - 1) + j, v * x)));
                mixture.push(terms.map(|(o, x)| (self.offsets[o], x)).collect());
            }
        }
        let mut kept: Vec<_> = self.others.iter().collect();
        kept.sort_unstable_by_key(|(pair, entry)| (**entry, **pair));
        let first = mixture.len();
        let at: HashMap<_, _> = kept.iter().enumerate().map(|(i, (pair, _))| (**pair, first + i)).collect();
        mixture.extend(kept.iter().map(|(_, entry)| vec![(**entry, 1.0)]));
        let mut index = Vec::with_capacity(queries.new.len() * keys.new.len());
        for &q in &queries.new {
            for &k in &keys.new {
                let entry = match (q, k) {
                    (Place::Patch(..), Place::Patch(..)) => offset(q, k, [new_h, new_w]),
                    _ => at.get(&(q.prefix(), k.prefix())).copied().unwrap_or_default(),
                };
                index.push(entry as i64);
            }
        }
        (mixture, index)
    }
}

/// The number of an offset between two patches of a grid.
fn offset(q: Place, k: Place, [h, w]: [usize; 2]) -> usize {
    match (q, k) {
        (Place::Patch(r, c), Place::Patch(s, d)) => (r + h - 1 - s) * (2 * w - 1) + c + w - 1 - d,
        _ => 0,
    }
}
