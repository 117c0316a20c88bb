//! Factors: the named parts of which every dimension is made.
//!
//! A dimension is an ordered product of factors, outermost first, as einops writes `(three heads dim)`. A factor is a
//! node of a union-find forest: two factors can be made one, and one can be refined, into a product of (outer, inner)
//! or into a sum of segments (what an unequal Concat or Split makes: class token and patches, or a packed Q | K V).
//! Refinements are global: what a Reshape at the end of a graph reveals is known at the weights at once.

use smallvec::SmallVec;

/// A factor. Two factors are the same where their [roots](Factors::root) are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Factor(u32);

/// Segments of a concatenation of concatenations that are told apart. They double with every Concat of a value with
/// itself, and no network has as many.
const MAX_PIECES: usize = 4096;

/// A dimension: factors, outermost first. A dimension of size one has none.
pub type Dim = SmallVec<[Factor; 2]>;

/// Where a factor runs over pixels of the input image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spatial {
    /// The image axis.
    pub axis: ImageAxis,
    /// Pixels from one index to the next.
    pub stride: f64,
}

/// An axis of the input image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageAxis {
    /// From top to bottom.
    Height,
    /// From left to right.
    Width,
}

#[derive(Clone, Debug)]
enum Form {
    Atom,
    Same(Factor),
    Product(Factor, Factor),
    Sum(Vec<Dim>),
}

#[derive(Clone, Debug)]
struct Entry {
    size: usize,
    form: Form,
    spatial: Option<Spatial>,
}

/// Two dimensions of different size, or with borders that cannot agree, were to be the same.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// Sizes of the factors on the one side.
    pub left: Vec<usize>,
    /// Sizes of the factors on the other side.
    pub right: Vec<usize>,
}

/// All factors of one graph.
#[derive(Clone, Debug, Default)]
pub struct Factors {
    entries: Vec<Entry>,
}

impl Factors {
    /// A dimension of a new factor; of none where the size is one.
    pub fn fresh(&mut self, size: usize) -> Dim {
        if size == 1 { Dim::new() } else { Dim::from_slice(&[self.atom(size)]) }
    }

    /// A new factor, also of size one.
    pub fn atom(&mut self, size: usize) -> Factor {
        self.entry(size, Form::Atom)
    }

    /// The concatenation of dimensions as one new dimension.
    pub fn sum(&mut self, segments: Vec<Dim>) -> Dim {
        let size = segments.iter().fold(0usize, |n, s| n.saturating_add(self.size(s)));
        if segments.iter().fold(0usize, |n, s| n.saturating_add(self.pieces(s))) > MAX_PIECES {
            return self.fresh(size);
        }
        let tags: Vec<_> = segments.iter().filter(|s| !s.is_empty()).map(|s| self.spatial_of(s)).collect();
        let f = self.entry(size, Form::Sum(segments));
        // Pieces of one image axis, put together again in another order (a rolled window), are still that axis.
        if let Some(first) = tags.first().copied().flatten()
            && tags.iter().all(|t| *t == Some(first))
        {
            self.entries[f.0 as usize].spatial = Some(first);
        }
        Dim::from_slice(&[f])
    }

    fn entry(&mut self, size: usize, form: Form) -> Factor {
        self.entries.push(Entry { size, form, spatial: None });
        Factor(self.entries.len() as u32 - 1)
    }

    /// The representative of a factor.
    pub fn root(&self, mut f: Factor) -> Factor {
        while let Form::Same(up) = self.entries[f.0 as usize].form {
            f = up;
        }
        f
    }

    fn at(&self, f: Factor) -> &Entry {
        &self.entries[self.root(f).0 as usize]
    }

    /// Appends the finest known factors.
    fn push_leaves(&self, dim: &[Factor], out: &mut Dim) {
        for &f in dim {
            let f = self.root(f);
            match self.entries[f.0 as usize].form {
                Form::Product(outer, inner) => self.push_leaves(&[outer, inner], out),
                _ if self.entries[f.0 as usize].size != 1 => out.push(f),
                _ => {}
            }
        }
    }

    /// The finest known factors of a dimension, outermost first.
    pub fn leaves(&self, dim: &[Factor]) -> Dim {
        let mut out = Dim::new();
        self.push_leaves(dim, &mut out);
        out
    }

    /// The segments of a dimension and of what it is made of.
    fn pieces(&self, dim: &[Factor]) -> usize {
        let of = |&f: &Factor| match &self.at(f).form {
            Form::Product(outer, inner) => self.pieces(&[*outer, *inner]),
            Form::Sum(segments) => segments.iter().map(|s| self.pieces(s)).sum(),
            _ => 1,
        };
        dim.iter().map(of).sum::<usize>().max(1)
    }

    /// Elements along a dimension; no more than a `usize` holds.
    pub fn size(&self, dim: &[Factor]) -> usize {
        dim.iter().fold(1, |n, &f| n.saturating_mul(self.factor_size(f)))
    }

    /// Elements along a factor, from its parts where it has been refined.
    pub fn factor_size(&self, f: Factor) -> usize {
        let entry = self.at(f);
        match &entry.form {
            Form::Product(outer, inner) => self.factor_size(*outer).saturating_mul(self.factor_size(*inner)),
            Form::Sum(segments) => segments.iter().fold(0, |n, s| n.saturating_add(self.size(s))),
            _ => entry.size,
        }
    }

    /// Sizes of the finest factors, for messages.
    pub fn sizes(&self, dim: &[Factor]) -> Vec<usize> {
        self.leaves(dim).iter().map(|&f| self.factor_size(f)).collect()
    }

    /// Where along a dimension each index of a factor lies, in products and in segments of sums; nowhere if the
    /// dimension does not hold it.
    pub fn positions(&self, dim: &[Factor], factor: Factor) -> Vec<Vec<usize>> {
        let factor = self.root(factor);
        let mut out = vec![Vec::new(); self.factor_size(factor)];
        let leaves = self.leaves(dim);
        let (mut before, mut after) = (1, self.size(&leaves));
        for &f in &leaves {
            let n = self.factor_size(f);
            after /= n.max(1);
            let within: Vec<Vec<usize>> = if f == factor {
                (0..n).map(|i| vec![i]).collect()
            } else {
                let mut within = vec![Vec::new(); out.len()];
                let mut offset = 0;
                for s in self.segments(&[f]).into_iter().flatten() {
                    let found = self.positions(&s, factor);
                    within.iter_mut().zip(found).for_each(|(w, p)| w.extend(p.into_iter().map(|i| offset + i)));
                    offset += self.size(&s);
                }
                within
            };
            for (places, at) in out.iter_mut().zip(within) {
                let whole = |b: usize| at.iter().flat_map(move |i| (0..after).map(move |a| (b * n + i) * after + a));
                places.extend((0..before).flat_map(whole));
            }
            before *= n;
        }
        out
    }

    /// Gives a leaf another size (surgery).
    pub fn set_size(&mut self, f: Factor, size: usize) {
        let f = self.root(f);
        self.entries[f.0 as usize].size = size;
    }

    /// The segments of a dimension that is one sum, nested sums flattened; `None` for every other dimension.
    pub fn segments(&self, dim: &[Factor]) -> Option<Vec<Dim>> {
        let leaves = self.leaves(dim);
        let [f] = leaves[..] else { return None };
        let Form::Sum(segments) = &self.entries[f.0 as usize].form else { return None };
        Some(segments.iter().flat_map(|s| self.segments(s).unwrap_or_else(|| vec![s.clone()])).collect())
    }

    /// Where the factor runs over the image, if it is known to.
    pub fn spatial(&self, f: Factor) -> Option<Spatial> {
        self.at(f).spatial
    }

    /// Where a whole dimension runs over one image axis: its stride is that of its innermost factor.
    pub fn spatial_of(&self, dim: &[Factor]) -> Option<Spatial> {
        let leaves = self.leaves(dim);
        let last = self.spatial(*leaves.last()?)?;
        leaves.iter().all(|&f| self.spatial(f).is_some_and(|s| s.axis == last.axis)).then_some(last)
    }

    /// Says that a dimension that was just made runs over the image.
    pub fn set_spatial(&mut self, dim: &[Factor], spatial: Option<Spatial>) {
        if let [f] = self.leaves(dim)[..] {
            self.entries[f.0 as usize].spatial = spatial;
        }
    }

    /// Refines a leaf into (outer, inner). The size must be divisible.
    pub fn split(&mut self, f: Factor, outer: usize) -> Dim {
        let f = self.root(f);
        let size = self.factor_size(f);
        let inner = size / outer.max(1);
        debug_assert_eq!(outer * inner, size);
        let (o, i) = match self.split_segments(f, inner) {
            Some(parts) => parts,
            None => (self.atom(outer), self.atom(inner)),
        };
        if let Some(s) = self.spatial(f) {
            self.entries[i.0 as usize].spatial.get_or_insert(s);
            self.entries[o.0 as usize].spatial.get_or_insert(Spatial { stride: s.stride * inner as f64, ..s });
        }
        self.entries[f.0 as usize].form = Form::Product(o, i);
        self.leaves(&[f])
    }

    /// A sum whose segments all end in the same inner part is the product of a sum and that part.
    fn split_segments(&mut self, f: Factor, inner: usize) -> Option<(Factor, Factor)> {
        let segments = self.segments(&[f])?;
        if segments.iter().any(|s| !self.size(s).is_multiple_of(inner)) {
            return None;
        }
        let part = self.atom(inner);
        let mut outers = Vec::new();
        for s in &segments {
            let tail = self.inner(s, inner)?;
            let count = self.leaves(s).len() - self.leaves(&tail).len();
            self.unify(&[part], &tail).ok()?;
            let head = self.leaves(s)[..count].iter().copied().collect();
            outers.push(head);
        }
        let outer = self.sum(outers);
        Some((outer[0], part))
    }

    /// Makes two dimensions the same, from the outermost factor inwards, and splits factors where borders differ.
    pub fn unify(&mut self, left: &[Factor], right: &[Factor]) -> Result<(), Mismatch> {
        let (mut a, mut b) = (self.leaves(left), self.leaves(right));
        let mismatch = |this: &Self, a: &[Factor], b: &[Factor]| Mismatch { left: this.sizes(a), right: this.sizes(b) };
        if self.size(&a) != self.size(&b) {
            return Err(mismatch(self, &a, &b));
        }
        // Worked from the front; reversed so that the front is the cheap end.
        a.reverse();
        b.reverse();
        while let (Some(&x), Some(&y)) = (a.last(), b.last()) {
            // An earlier step may have split or merged them.
            if self.expand_last(&mut a) | self.expand_last(&mut b) {
                continue;
            }
            let (x, y) = (self.root(x), self.root(y));
            let (m, n) = (self.factor_size(x), self.factor_size(y));
            if x == y || m == n {
                a.pop();
                b.pop();
                if x != y {
                    self.link(x, y);
                }
                continue;
            }
            let g = gcd(m, n);
            if g == 1 {
                if self.skip_same_axis(&mut a, &mut b) {
                    continue;
                }
                a.reverse();
                b.reverse();
                return Err(mismatch(self, &a, &b));
            }
            if m != g {
                self.split(x, g);
            }
            if n != g {
                self.split(y, g);
            }
        }
        Ok(())
    }

    /// Leaves out the first parts of two reversed lists where both are the same stretch of one image axis, cut in two
    /// ways that have no border in common: 56 rows as 8 windows of 7 and as a grid of 7 by 8 (MaxViT). They stay
    /// factors of their own.
    fn skip_same_axis(&self, a: &mut Dim, b: &mut Dim) -> bool {
        let stretch = |list: &[Factor], count: usize| self.stretch(list[list.len() - count..].iter().rev());
        let (mut i, mut j) = (1, 1);
        while i <= a.len() && j <= b.len() {
            let (m, n) = (self.size(&a[a.len() - i..]), self.size(&b[b.len() - j..]));
            if m < n {
                i += 1;
            } else if n < m {
                j += 1;
            } else {
                let both = stretch(a, i).is_some() && stretch(a, i) == stretch(b, j);
                if both {
                    a.truncate(a.len() - i);
                    b.truncate(b.len() - j);
                }
                return both;
            }
        }
        false
    }

    /// Where factors, outermost first, run over one image axis without a gap: the place of the innermost.
    fn stretch<'a>(&self, factors: impl Iterator<Item = &'a Factor>) -> Option<Spatial> {
        let factors: Vec<Factor> = factors.copied().collect();
        let places: Vec<Spatial> = factors.iter().map(|&f| self.spatial(f)).collect::<Option<_>>()?;
        let gapless = (1..places.len()).all(|i| {
            let step = places[i].stride * self.factor_size(factors[i]) as f64;
            places[i - 1] == Spatial { stride: step, ..places[i] }
        });
        places.last().copied().filter(|_| gapless)
    }

    /// Replaces the last factor of a reversed list by its leaves, where it has been refined.
    fn expand_last(&self, list: &mut Dim) -> bool {
        let Some(&f) = list.last() else { return false };
        let leaves = self.leaves(&[f]);
        if leaves[..] == [self.root(f)] {
            return false;
        }
        list.pop();
        list.extend(leaves.into_iter().rev());
        true
    }

    /// Makes two leaves of equal size one. The root keeps what either knows.
    fn link(&mut self, x: Factor, y: Factor) {
        let (segments_x, segments_y) = (self.segments(&[x]), self.segments(&[y]));
        let (root, other) = if segments_x.is_none() && segments_y.is_some() { (y, x) } else { (x, y) };
        let spatial = self.spatial(root).or(self.spatial(other));
        self.entries[root.0 as usize].spatial = spatial;
        self.entries[other.0 as usize].form = Form::Same(root);
        if let (Some(a), Some(b)) = (segments_x, segments_y) {
            let sizes = |this: &Self, s: &[Dim]| s.iter().map(|d| this.size(d)).collect::<Vec<_>>();
            if sizes(self, &a) == sizes(self, &b) {
                for (s, t) in a.iter().zip(&b) {
                    // Segments that cannot agree stay apart; the sums are the same all the same.
                    let _ = self.unify(s, t);
                }
            }
        }
    }

    /// The innermost part of size n; `None` where no border can be made there.
    pub fn inner(&mut self, dim: &[Factor], n: usize) -> Option<Dim> {
        let mut leaves = self.leaves(dim);
        let mut got = Dim::new();
        let mut size = 1;
        while size < n {
            let f = leaves.pop()?;
            let (need, have) = (n / size, self.factor_size(f));
            if need.is_multiple_of(have) && n.is_multiple_of(size * have) {
                got.insert(0, f);
                size *= have;
            } else if n.is_multiple_of(size) && have.is_multiple_of(need) {
                leaves.extend(self.split(f, have / need));
            } else {
                return None;
            }
        }
        Some(got)
    }

    /// The outermost part of size n; `None` where no border can be made there.
    pub fn outer(&mut self, dim: &[Factor], n: usize) -> Option<Dim> {
        let mut leaves: Vec<Factor> = self.leaves(dim).into_iter().rev().collect();
        let mut got = Dim::new();
        let mut size = 1;
        while size < n {
            let f = leaves.pop()?;
            let (need, have) = (n / size, self.factor_size(f));
            if need.is_multiple_of(have) && n.is_multiple_of(size * have) {
                got.push(f);
                size *= have;
            } else if n.is_multiple_of(size) && have.is_multiple_of(need) {
                leaves.extend(self.split(f, need).into_iter().rev());
            } else {
                return None;
            }
        }
        Some(got)
    }

    /// A part of a dimension: `length` elements from `start`. Equal parts share their factor (a packed Q K V); other
    /// parts are segments of a sum. Returns the dimensions before the part, and the part.
    pub fn slice(&mut self, dim: &[Factor], start: usize, length: usize) -> (Option<Vec<Dim>>, Dim) {
        let total = self.size(dim);
        if length == total {
            return (Some(Vec::new()), dim.iter().copied().collect());
        }
        if let Some(found) = self.segment(dim, start, length) {
            return (Some(found.0), found.1);
        }
        if length > 0
            && total.is_multiple_of(length)
            && start.is_multiple_of(length)
            && let Some(unit) = self.inner(dim, length)
        {
            return (Some(vec![unit.clone(); start / length]), unit);
        }
        let leaves = self.leaves(dim);
        if leaves.len() > 1 {
            let unit: Dim = leaves[1..].iter().copied().collect();
            let size = self.size(&unit);
            if start.is_multiple_of(size) && length.is_multiple_of(size) && length > 0 {
                let mut part = self.fresh(length / size);
                part.extend(unit.iter().copied());
                return (Some(vec![unit; start / size]), part);
            }
        } else if let [f] = leaves[..]
            && matches!(self.entries[f.0 as usize].form, Form::Atom)
            && length > 0
        {
            let spatial = self.spatial(f);
            let lengths = [start, length, total - start - length];
            let segments: Vec<Dim> = lengths.into_iter().filter(|&n| n > 0).map(|n| self.fresh(n)).collect();
            for s in &segments {
                self.set_spatial(s, spatial);
            }
            self.entries[f.0 as usize].form = Form::Sum(segments);
            if let Some(found) = self.segment(dim, start, length) {
                return (Some(found.0), found.1);
            }
        }
        let spatial = self.spatial_of(dim);
        let part = self.fresh(length);
        self.set_spatial(&part, spatial);
        (None, part)
    }

    /// Cuts a dimension that is one atom after `length` elements and returns the part before the cut.
    pub fn cut_atom(&mut self, dim: &[Factor], length: usize) -> Dim {
        let size = self.size(dim);
        if let [f] = self.leaves(dim)[..]
            && matches!(self.entries[f.0 as usize].form, Form::Atom)
            && 0 < length
            && length < size
        {
            let parts = vec![self.fresh(length), self.fresh(size - length)];
            let spatial = self.spatial(f);
            for p in &parts {
                self.set_spatial(p, spatial);
            }
            self.entries[f.0 as usize].form = Form::Sum(parts.clone());
            return parts[0].clone();
        }
        self.slice(dim, 0, length).1
    }

    /// The segments of a sum from `start` on that make `length`; a segment that is an atom is cut where it has to be.
    fn segment(&mut self, dim: &[Factor], start: usize, length: usize) -> Option<(Vec<Dim>, Dim)> {
        for border in [start, start + length] {
            let mut at = 0;
            for s in self.segments(dim)? {
                let n = self.size(&s);
                if at < border && border < at + n {
                    let [f] = self.leaves(&s)[..] else { return None };
                    if !matches!(self.entries[f.0 as usize].form, Form::Atom) {
                        return None;
                    }
                    let parts = vec![self.fresh(border - at), self.fresh(at + n - border)];
                    let spatial = self.spatial(f);
                    for p in &parts {
                        self.set_spatial(p, spatial);
                    }
                    self.entries[f.0 as usize].form = Form::Sum(parts);
                }
                at += n;
            }
        }
        let (mut at, mut before, mut taken) = (0, Vec::new(), Vec::new());
        for s in self.segments(dim)? {
            let n = self.size(&s);
            if at < start {
                before.push(s);
            } else if at < start + length {
                taken.push(s);
            }
            at += n;
        }
        let part = if taken.len() == 1 { taken.remove(0) } else { self.sum(taken) };
        Some((before, part))
    }

    /// Dimensions after a Reshape: factors keep their order. A dimension whose borders cut a factor indivisibly gets a
    /// fresh one. The products of `dims` and `target` must be equal and positive.
    pub fn reshaped(&mut self, dims: &[Dim], target: &[usize]) -> Vec<Dim> {
        let all: Dim = dims.iter().flatten().copied().collect();
        let mut rest: Vec<Factor> = self.leaves(&all).into_iter().rev().collect();
        let mut out = Vec::with_capacity(target.len());
        let mut i = 0;
        while i < target.len() {
            let want = target[i];
            let (mut got, mut size) = (Dim::new(), 1);
            while size < want {
                let Some(&f) = rest.last() else { break };
                let have = self.factor_size(f);
                if want.is_multiple_of(size * have) {
                    got.push(f);
                    rest.pop();
                    size *= have;
                } else if want.is_multiple_of(size) && have.is_multiple_of(want / size) {
                    rest.pop();
                    rest.extend(self.split(f, want / size).into_iter().rev());
                } else {
                    break;
                }
            }
            if size == want {
                out.push(got);
                i += 1;
                continue;
            }
            // Not aligned: skip to where the products agree again. A stretch of an image axis stays one.
            let (mut inside, mut outside, mut j) = (size, want, i + 1);
            while inside != outside {
                if outside < inside && j < target.len() {
                    outside *= target[j];
                    j += 1;
                } else if let Some(f) = rest.pop() {
                    inside *= self.factor_size(f);
                    got.push(f);
                } else {
                    break;
                }
            }
            let place = self.stretch(got.iter()).filter(|_| inside == outside);
            let mut within = inside;
            for &n in &target[i..j] {
                let dim = self.fresh(n);
                within /= n.max(1);
                self.set_spatial(&dim, place.map(|s| Spatial { stride: s.stride * within as f64, ..s }));
                out.push(dim);
            }
            i = j;
        }
        out
    }

    /// True where both are the same factor.
    pub fn same(&self, a: Factor, b: Factor) -> bool {
        self.root(a) == self.root(b)
    }

    /// True where a leaf of `a` is a leaf of `b`, segments of sums included.
    pub fn meet(&self, a: &[Factor], b: &[Factor]) -> bool {
        let (a, b) = (self.all_leaves(a), self.all_leaves(b));
        a.iter().any(|f| b.contains(f))
    }

    /// Leaves, and the leaves of the segments of those that are sums.
    pub fn all_leaves(&self, dim: &[Factor]) -> Vec<Factor> {
        let mut out = Vec::new();
        for f in self.leaves(dim) {
            out.push(f);
            if let Some(segments) = self.segments(&[f]) {
                for s in segments {
                    out.extend(self.all_leaves(&s));
                }
            }
        }
        out
    }
}

/// The greatest common divisor.
pub(super) fn gcd(mut a: usize, mut b: usize) -> usize {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unify_splits_where_borders_differ() {
        let mut f = Factors::default();
        let packed = f.fresh(12);
        let (heads, dim) = (f.fresh(3), f.fresh(4));
        let pair: Dim = heads.iter().chain(&dim).copied().collect();
        f.unify(&packed, &pair).unwrap();
        assert_eq!(f.leaves(&packed), f.leaves(&pair));
        let other = f.fresh(7);
        assert!(f.unify(&packed, &other).is_err());
    }

    #[test]
    fn equal_slices_share_a_factor_and_unequal_ones_are_segments() {
        let mut f = Factors::default();
        let packed = f.fresh(12);
        let (_, q) = f.slice(&packed, 0, 4);
        let (before, k) = f.slice(&packed, 4, 4);
        assert_eq!(f.leaves(&q), f.leaves(&k));
        assert_eq!(before.unwrap().len(), 1);

        let tokens = f.fresh(197);
        let (_, class) = f.slice(&tokens, 0, 1);
        let (before, patches) = f.slice(&tokens, 1, 196);
        assert_eq!(f.size(&class), 1);
        assert_eq!(f.size(&patches), 196);
        assert_eq!(before.unwrap().iter().map(|d| f.size(d)).sum::<usize>(), 1);
        let (_, again) = f.slice(&tokens, 1, 196);
        assert_eq!(f.leaves(&patches), f.leaves(&again));
    }

    #[test]
    fn a_factor_is_found_in_products_and_in_segments() {
        let mut f = Factors::default();
        let (heads, dim, neurons) = (f.fresh(2), f.fresh(3), f.fresh(5));
        let pair: Dim = heads.iter().chain(&dim).copied().collect();
        assert_eq!(f.positions(&pair, heads[0]), [[0, 1, 2], [3, 4, 5]]);
        assert_eq!(f.positions(&pair, dim[0]), [[0, 3], [1, 4], [2, 5]]);
        let packed = f.sum(vec![neurons.clone(), pair.clone(), pair]);
        assert_eq!(f.positions(&packed, heads[0]), [[5, 6, 7, 11, 12, 13], [8, 9, 10, 14, 15, 16]]);
        assert_eq!(f.positions(&packed, neurons[0])[4], [4]);
        let other = f.fresh(2);
        assert_eq!(f.positions(&packed, other[0]), [[0; 0], [0; 0]]);
    }

    #[test]
    fn a_resized_segment_resizes_the_sum() {
        let mut f = Factors::default();
        let packed = f.fresh(16);
        let (_, q) = f.slice(&packed, 0, 8);
        let query = f.fresh(16);
        let (_, kv) = f.slice(&query, 4, 12);
        f.set_size(kv[0], 6);
        assert_eq!(f.size(&query), 10);
        assert_eq!(f.size(&q), 8);
    }

    #[test]
    fn reshape_keeps_order_and_falls_back_to_fresh_factors() {
        let mut f = Factors::default();
        let (a, b) = (f.fresh(6), f.fresh(4));
        let out = f.reshaped(&[a.clone(), b.clone()], &[2, 3, 4]);
        assert_eq!(f.leaves(&a)[..], [out[0][0], out[1][0]]);
        assert_eq!(f.leaves(&out[2]), f.leaves(&b));
        let (a, b) = (f.fresh(3), f.fresh(4));
        let out = f.reshaped(&[a, b], &[4, 3]);
        assert_eq!((f.size(&out[0]), f.size(&out[1])), (4, 3));
    }

    #[test]
    fn one_image_axis_may_be_cut_in_two_ways() {
        let mut f = Factors::default();
        let height = f.fresh(56);
        f.set_spatial(&height, Some(Spatial { axis: ImageAxis::Height, stride: 4.0 }));
        let windows = f.reshaped(std::slice::from_ref(&height), &[8, 7]);
        assert_eq!(f.leaves(&height)[..], [windows[0][0], windows[1][0]]);
        let grid = f.reshaped(std::slice::from_ref(&height), &[7, 8]);
        assert_eq!(f.spatial_of(&grid[0]).unwrap().stride, 32.0);
        assert_eq!(f.spatial_of(&grid[1]).unwrap().stride, 4.0);
        let back: Dim = grid.concat().into_iter().collect();
        f.unify(&height, &back).unwrap();
        assert_eq!((f.sizes(&height), f.sizes(&back)), (vec![8, 7], vec![7, 8]));

        // Channels, another axis, and other strides cannot agree.
        let strange = |f: &mut Factors, place: Option<Spatial>| {
            let parts = [f.fresh(7), f.fresh(8)];
            f.set_spatial(&parts[1], place);
            f.set_spatial(&parts[0], place.map(|s| Spatial { stride: s.stride * 8.0, ..s }));
            let dim: Dim = parts.concat().into_iter().collect();
            f.unify(&height, &dim)
        };
        assert!(strange(&mut f, None).is_err());
        assert!(strange(&mut f, Some(Spatial { axis: ImageAxis::Width, stride: 4.0 })).is_err());
        assert!(strange(&mut f, Some(Spatial { axis: ImageAxis::Height, stride: 2.0 })).is_err());
        assert!(strange(&mut f, Some(Spatial { axis: ImageAxis::Height, stride: 4.0 })).is_ok());
    }

    #[test]
    fn splitting_an_image_axis_gives_patches_and_pixels() {
        let mut f = Factors::default();
        let height = f.fresh(224);
        f.set_spatial(&height, Some(Spatial { axis: ImageAxis::Height, stride: 1.0 }));
        let parts = f.split(height[0], 14);
        assert_eq!(f.spatial(parts[0]).unwrap().stride, 16.0);
        assert_eq!(f.spatial(parts[1]).unwrap().stride, 1.0);
    }
}
