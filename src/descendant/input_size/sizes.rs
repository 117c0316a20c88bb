//! What a new size of an input changes: the sizes of factors, carried through the graph.

use std::collections::HashMap;

use crate::axes::arithmetic::{ConstValue, slice_range};
use crate::axes::{Dim, Factor, Typing, channels_last, window_length};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, data_inputs, declared_dims, resolve_axis};
use crate::onnx::node_label;
use crate::onnx::proto::NodeProto;
use crate::ops::{self, Mark};

/// What has a new size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resized {
    Image,
    Tokens,
}

impl Resized {
    fn hint(self) -> &'static str {
        match self {
            Resized::Image => "give an image size whose grid of patches divides into the model's windows and stages",
            Resized::Tokens => "give a number of tokens that the model's windows divide",
        }
    }
}

/// The factors that a new size of an input changes, with their new sizes.
pub(super) struct ResizedFactors<'t, 'm> {
    typing: &'t Typing<'m>,
    /// What has the new size.
    of: Resized,
    pub new: HashMap<Factor, usize>,
    pub cuts: Vec<(usize, usize, usize, usize)>,
}

impl<'t, 'm> ResizedFactors<'t, 'm> {
    /// Carries the size of the image through the graph.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a size that patches and windows do not divide into; it names the node.
    pub fn of_image(typing: &'t Typing<'m>, size: [usize; 2]) -> Result<Self> {
        let mut sizes = ResizedFactors { typing, of: Resized::Image, new: HashMap::new(), cuts: Vec::new() };
        for info in data_inputs(typing.graph) {
            let (Some(dims), Some(declared)) = (typing.dims.get(info.name()), declared_dims(info)) else { continue };
            if dims.len() != 4 {
                continue;
            }
            let first = if channels_last(&declared) { 1 } else { 2 };
            for (i, &n) in size.iter().enumerate() {
                sizes.assign(&dims[first + i], n)?;
            }
            break;
        }
        sizes.carried()
    }

    /// Carries a number of tokens through the graph.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a number that the model's windows do not divide; it names the node.
    pub fn of_tokens(typing: &'t Typing<'m>, axis: Factor, tokens: usize) -> Result<Self> {
        let mut sizes = ResizedFactors { typing, of: Resized::Tokens, new: HashMap::new(), cuts: Vec::new() };
        sizes.assign(&[axis], tokens)?;
        sizes.carried()
    }

    fn carried(mut self) -> Result<Self> {
        let typing = self.typing;
        // A dimension may be linked to one that a later node makes: walk until nothing changes.
        for _ in 0..8 {
            let before = self.new.len();
            self.cuts.clear();
            for (k, node) in typing.graph.node.iter().enumerate() {
                let known = node.output.first().is_some_and(|o| typing.known.contains_key(o.as_str()));
                if !known && node.op_type() != "Constant" {
                    self.node(k, node).map_err(|e| e.in_node(node_label(node)))?;
                }
            }
            if self.new.len() == before {
                return Ok(self);
            }
        }
        bail!(Unsupported, "the new size does not settle in this graph")
    }

    pub fn leaf(&self, f: Factor) -> usize {
        match self.typing.factors.segments(&[f]) {
            Some(segments) => segments.iter().map(|s| self.size(s)).sum(),
            None => self
                .new
                .get(&self.typing.factors.root(f))
                .copied()
                .unwrap_or_else(|| self.typing.factors.factor_size(f)),
        }
    }

    /// Elements along a dimension at the new size.
    pub fn size(&self, dim: &[Factor]) -> usize {
        self.typing.factors.leaves(dim).iter().map(|&f| self.leaf(f)).product()
    }

    pub fn changed(&self, dim: &[Factor]) -> bool {
        self.typing.factors.all_leaves(dim).iter().any(|f| self.new.contains_key(f))
    }

    /// Says how many elements a dimension has: its outermost factor that is free takes the change.
    fn assign(&mut self, dim: &[Factor], want: usize) -> Result<()> {
        let have = self.size(dim);
        if have == want {
            return Ok(());
        }
        let batch = self.typing.batch.map(|f| self.typing.factors.root(f));
        let mut leaves = self.typing.factors.leaves(dim).into_iter();
        if let Some(f) = leaves.find(|f| !self.new.contains_key(f) && Some(*f) != batch)
            && let rest = have / self.leaf(f).max(1)
            && want >= rest
            && want.is_multiple_of(rest.max(1))
        {
            let (own, to) = (self.leaf(f), want / rest.max(1));
            let Some(segments) = self.typing.factors.segments(&[f]) else {
                self.new.insert(f, to);
                return Ok(());
            };
            // Pieces of an axis that is put together in another order: the longest takes the change.
            let longest = segments.into_iter().filter(|s| !self.changed(s)).max_by_key(|s| self.size(s));
            if let Some(longest) = longest
                && let Some(piece) = (self.size(&longest) + to).checked_sub(own)
                && piece > 0
            {
                return self.assign(&longest, piece);
            }
        }
        let parts: Vec<usize> = self.typing.factors.leaves(dim).iter().map(|&f| self.leaf(f)).collect();
        Err(Error::new(ErrorKind::Usage, format!("{want} elements cannot be made of parts of {parts:?}"))
            .hint(self.of.hint()))
    }

    fn dims(&self, node: &NodeProto, j: usize) -> Option<Vec<Dim>> {
        let name = node.input.get(j)?;
        self.typing.dims.get(name.as_str()).cloned()
    }

    fn ints(&self, node: &NodeProto, name: &str, j: usize) -> Option<Vec<i64>> {
        let given = || self.typing.known.get(node.input.get(j)?.as_str()).map(ConstValue::ints);
        node.ints(name).map(<[i64]>::to_vec).or_else(given)
    }

    /// Sizes that a node makes of its inputs' new sizes, where it makes dimensions of its own.
    fn node(&mut self, k: usize, node: &NodeProto) -> Result<()> {
        let Some(y) = node.output.first().and_then(|o| self.typing.dims.get(o.as_str())).cloned() else {
            return Ok(());
        };
        let Some(x) = self.dims(node, 0) else { return Ok(()) };
        let axis = |a: i64| resolve_axis(a, x.len());
        match node.op_type() {
            _ if ops::of(node).is(Mark::Window) => self.windows(node, &x, &y),
            "Reshape" | "Flatten" => self.regroup(&x, &y),
            "Concat" => {
                let Some(a) = node.int("axis").and_then(axis) else { return Ok(()) };
                let mut total = 0;
                for j in 0..node.input.len() {
                    let piece = match self.dims(node, j) {
                        Some(dims) => self.size(&dims[a]),
                        None => self.operand(k, j).map_or(0, |dims| self.size(&dims[a])),
                    };
                    total += piece;
                }
                self.assign(&y[a], total)
            }
            "Split" => {
                let Some(a) = axis(node.int("axis").unwrap_or(0)) else { return Ok(()) };
                let (old, new) = (self.typing.factors.size(&x[a]), self.size(&x[a]));
                for o in &node.output {
                    let Some(part) = self.typing.dims.get(o.as_str()).map(|d| d[a].clone()) else { continue };
                    let n = self.typing.factors.size(&part);
                    if n * node.output.len() == old && new.is_multiple_of(node.output.len()) {
                        self.assign(&part, new / node.output.len())?;
                    }
                }
                Ok(())
            }
            "Slice" => self.slice(k, node, &x, &y),
            "Gather" => self.offsets(node, &x),
            "Pad" => self.padded(node, &x, &y),
            // A table that is resampled in the graph keeps its size; what it becomes follows from where it goes.
            "Resize" | "Upsample" | "DepthToSpace" | "SpaceToDepth" => self.each(&x, &y, |old_x, old_y, new| {
                (new != old_x).then(|| (new * old_y).checked_div(old_x).unwrap_or(new))
            }),
            _ => Ok(()),
        }
    }

    pub fn operand(&self, k: usize, j: usize) -> Option<&'t Vec<Dim>> {
        self.typing.uses.iter().find(|u| u.node == k && u.input == j).map(|u| &u.dims)
    }

    /// Axis by axis, from the old lengths and the new length of the input.
    fn each(&mut self, x: &[Dim], y: &[Dim], to: impl Fn(usize, usize, usize) -> Option<usize>) -> Result<()> {
        for (a, b) in x.iter().zip(y) {
            let (old_x, old_y) = (self.typing.factors.size(a), self.typing.factors.size(b));
            if let Some(n) = to(old_x, old_y, self.size(a))
                && self.size(a) != old_x
            {
                self.assign(b, n)?;
            }
        }
        Ok(())
    }

    /// A table of offsets between the places of one axis, whose places are computed: a row for each offset that there
    /// is.
    fn offsets(&mut self, node: &NodeProto, x: &[Dim]) -> Result<()> {
        let along = resolve_axis(node.int("axis").unwrap_or(0), x.len());
        let known = node.input.get(1).is_some_and(|x| self.typing.known.contains_key(x.as_str()));
        let places = self.dims(node, 1);
        let (Some(rows), Some([queries, keys]), true) = (along.and_then(|a| x.get(a)), places.as_deref(), known) else {
            return Ok(());
        };
        let longest = |size: &dyn Fn(&[Factor]) -> usize| 2 * size(queries).max(size(keys)).max(1) - 1;
        let (old, new) = (longest(&|d| self.typing.factors.size(d)), longest(&|d| self.size(d)));
        match (old != new && self.typing.factors.size(rows) == old, self.of) {
            (true, Resized::Image) => self.assign(rows, new),
            (true, Resized::Tokens) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("a table of {old} offsets between tokens was made for one number of them"),
            )
            .hint("export the model for as many tokens as are wanted")),
            (false, _) => Ok(()),
        }
    }

    /// A border as wide as it was, or, where it completed the last window, as wide as the new grid needs.
    fn padded(&mut self, node: &NodeProto, x: &[Dim], y: &[Dim]) -> Result<()> {
        let slides = |n: &NodeProto| ops::of(n).is(Mark::Window) && n.op_type() != "ConvTranspose";
        let uses = |n: &&NodeProto| n.input.first() == node.output.first();
        let for_windows = !self.typing.graph.node.iter().filter(uses).any(slides);
        for (a, b) in x.iter().zip(y) {
            let (old_x, old_y, new) = (self.typing.factors.size(a), self.typing.factors.size(b), self.size(a));
            if new == old_x {
                continue;
            }
            let leaves = self.typing.factors.leaves(b);
            let inner: usize = leaves.iter().skip(1).map(|&f| self.leaf(f)).product();
            let window = if leaves.len() > 1 { inner } else { old_y };
            let completes = for_windows && old_y > old_x && old_y.is_multiple_of(window) && old_y - old_x < window;
            let n = if completes { new.next_multiple_of(window) } else { (new + old_y).saturating_sub(old_x) };
            self.assign(b, n)?;
        }
        Ok(())
    }

    fn windows(&mut self, node: &NodeProto, x: &[Dim], y: &[Dim]) -> Result<()> {
        let transposed = node.op_type() == "ConvTranspose";
        let kernel: Vec<usize> = match node.ints("kernel_shape") {
            Some(list) => list.iter().map(|&n| n.max(1) as usize).collect(),
            None => match node.input.get(1).and_then(|w| self.typing.shape(w)) {
                Some(shape) if shape.len() > 2 => shape[2..].to_vec(),
                _ => return Ok(()),
            },
        };
        for (i, &length) in kernel.iter().enumerate() {
            let (Some(a), Some(b)) = (x.get(i + 2), y.get(i + 2)) else { continue };
            let (old, new) = (self.typing.factors.size(a), self.size(a));
            if old == new || (length == old && self.typing.factors.size(b) == 1) {
                continue;
            }
            let at = |n: usize| window_length(node, kernel.len(), i, length, n as i64, transposed);
            let ((was, _), (now, stride)) = (at(old), at(new));
            // Patches that covered the old image to its border cover the new one.
            let covers = |n: usize| n.is_multiple_of(stride as usize);
            if length as i64 == stride && covers(old) && !covers(new) {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("{new} elements are no multiple of the patch of {stride}"),
                )
                .hint(match self.of {
                    Resized::Image => format!("give an image size that is a multiple of {}", stride as usize),
                    Resized::Tokens => self.of.hint().to_string(),
                }));
            }
            if was >= 1 && now >= 1 {
                self.assign(b, now as usize)?;
            }
        }
        Ok(())
    }

    /// A Reshape keeps the number of elements in every run of dimensions that it regroups.
    fn regroup(&mut self, x: &[Dim], y: &[Dim]) -> Result<()> {
        let old = |d: &Dim| self.typing.factors.size(d);
        let (mut i, mut j, mut runs) = (0, 0, Vec::new());
        while i < x.len() && j < y.len() {
            let (start_i, start_j) = (i, j);
            let (mut p, mut q) = (old(&x[i]), old(&y[j]));
            (i, j) = (i + 1, j + 1);
            while p != q {
                if p < q && i < x.len() {
                    p *= old(&x[i]);
                    i += 1;
                } else if j < y.len() {
                    q *= old(&y[j]);
                    j += 1;
                } else {
                    return Ok(());
                }
            }
            runs.push((start_i..i, start_j..j));
        }
        for (from, to) in runs {
            let total: usize = x[from].iter().map(|d| self.size(d)).product();
            let dim: Dim = y[to].iter().flatten().copied().collect();
            self.assign(&dim, total)?;
        }
        Ok(())
    }

    fn slice(&mut self, k: usize, node: &NodeProto, x: &[Dim], y: &[Dim]) -> Result<()> {
        let (Some(starts), Some(ends)) = (self.ints(node, "starts", 1), self.ints(node, "ends", 2)) else {
            return Ok(());
        };
        let axes = self.ints(node, "axes", 3).unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = self.ints(node, "steps", 4).unwrap_or_else(|| vec![1; starts.len()]);
        for (((&start, &end), &a), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
            let Some(a) = resolve_axis(a, x.len()) else { continue };
            let (old, new) = (self.typing.factors.size(&x[a]), self.size(&x[a]));
            let Some((first, count)) = slice_range(old, start, end, step) else { continue };
            if old == new || count == old {
                continue;
            }
            if step != 1 {
                let end = if first + count * step.unsigned_abs() as usize >= old { i64::MAX } else { end };
                if let Some((_, now)) = slice_range(new, start, end, step) {
                    self.assign(&y[a], now)?;
                }
                continue;
            }
            // What is cut to the length of something else, a border of windows taken off again, is as long as that.
            let (first, last) = match first == 0 && self.changed(&y[a]) {
                true => (0, self.size(&y[a])),
                false => (self.border(&x[a], first), self.border(&x[a], first + count)),
            };
            self.cuts.push((k, a, first, last));
            self.assign(&y[a], last.saturating_sub(first))?;
        }
        Ok(())
    }

    /// Where a border lies at the new size: between the same segments, or as far from the nearer end as it was.
    pub fn border(&self, dim: &Dim, at: usize) -> usize {
        let (old, new) = (self.typing.factors.size(dim), self.size(dim));
        if let Some(segments) = self.typing.factors.segments(dim) {
            let (mut before, mut after) = (0, 0);
            for s in &segments {
                if before == at {
                    return after;
                }
                before += self.typing.factors.size(s);
                after += self.size(s);
            }
        }
        if at * 2 <= old { at } else { (new + at).saturating_sub(old) }
    }
}
