//! Another image size: the graph of a model for images of other height or width.
//!
//! The typing says which factors the new size changes: it is carried from the image through convolutions, slices, concatenations
//! and reshapes to every dimension. Where a dimension is split, the outer part takes the change (more patches of the same
//! size, more windows of the same size); a window that covers its whole grid goes on covering it. What was made for the old
//! grid is made again: position tables are resampled (antialiased bicubic, prefix tokens kept), relative position biases
//! interpolated, rotary tables computed from the frequencies that they show, masks of shifted windows repeated. What is none
//! of these is an error.

use std::collections::{HashMap, HashSet};

use ndarray::ArrayD;

use super::resample::{bicubic, relative};
use crate::anatomy::{WeightKind, WeightUse, weight_uses};
use crate::axes::arithmetic::{Known, slice_range};
use crate::axes::resize::{Mixture, Plan, resize};
use crate::axes::{Assumption, Dim, Factor, ImageAxis, Typing, channels_last, window_length};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, data_inputs, declare_dim, declared_dims, nearest_axis, resolve_axis};
use crate::metadata::{IMAGE_SIZE, PREPROCESS};
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{DataType, Model, data_type, is_float, node_label, tensor_from_i64, tensor_from_raw, to_f32};
use crate::ops::{self, Mark};

/// Gives a model another image size (height, width). A model that takes images of any size stays as it is, and only notes the
/// size in its metadata.
///
/// # Errors
/// [`ErrorKind::Usage`] for a size that no grid of patches or windows fits; [`ErrorKind::Unsupported`] where the graph holds a
/// table of the old size whose origin is not understood. Both name the node.
pub fn resize_image(model: &Model, size: [usize; 2]) -> Result<Model> {
    if size.iter().any(|&n| n == 0 || n > 1 << 16) {
        bail!(Usage, "an image of {} x {} pixels cannot be", size[0], size[1]);
    }
    let typing = Typing::new(model)?;
    let Some((shape, last)) = typing.image_input() else {
        return Err(Error::new(ErrorKind::Unsupported, "the model takes no images, so they have no size")
            .hint("leave --image-size out"));
    };
    let axes = if last { [1, 2] } else { [2, 3] };
    let mut out = model.clone();
    note_size(&mut out, size);
    let open = image_dims(model).is_some_and(|d| axes.iter().all(|&a| d[a].is_none()));
    if open {
        out.set_metadata(IMAGE_SIZE, format!("{}x{}", size[0], size[1]));
        let assumption = Assumption { image: size, ..Assumption::default() };
        if Typing::with(model, assumption).is_ok_and(|t| t.conflicts.is_empty()) {
            return Ok(out);
        }
    }
    if axes.map(|a| shape[a]) == size {
        return Ok(out);
    }
    let sizes = Sizes::carry(&typing, size).map_err(|e| near(&typing, size, e))?;
    let plan = Tables::new(&typing, sizes).plan()?;
    out.proto.graph = Some(resize(&typing, &plan)?);
    let name = data_inputs(model.graph()).into_iter().find(|v| declared_dims(v).is_some_and(|d| d.len() == 4));
    if let Some(name) = name.map(|v| v.name())
        && let Some(info) = out.graph_mut().input.iter_mut().find(|v| v.name() == name)
    {
        let declared = declared_dims(info).unwrap_or_default();
        for (i, a) in axes.into_iter().enumerate().filter(|(_, a)| declared[*a].is_some()) {
            declare_dim(info, a, size[i]);
        }
    }
    check(&out, size)?;
    Ok(out)
}

/// Steps of a patch that are tried on either side of a size that does not fit.
const REACH: usize = 32;

/// Names sizes in pixels that fit, the nearest below and above one that does not.
fn near(typing: &Typing, size: [usize; 2], error: Error) -> Error {
    let Some(hint) = error.hint_text().filter(|_| error.kind() == ErrorKind::Usage).map(str::to_string) else {
        return error;
    };
    let own = typing.image_size();
    let strides = typing.graph.node.iter().filter(|n| n.op_type() == "Conv").filter_map(|n| n.ints("strides"));
    let patch = strides.filter_map(|s| s.first().copied()).find(|&s| s > 1).unwrap_or(1) as usize;
    // Heights and widths fit by themselves: each is tried beside the model's own width and height.
    let fits = |axis: usize, n: usize| {
        let mut size = own;
        size[axis] = n;
        n > 0 && Sizes::carry(typing, size).is_ok()
    };
    let sides = |axis: usize| -> [Option<usize>; 2] {
        let n = size[axis];
        if fits(axis, n) {
            return [Some(n); 2];
        }
        let below = (0..REACH).map(|i| (n / patch).saturating_sub(i) * patch);
        let above = (1..=REACH).map(|i| (n / patch + i) * patch);
        [below.filter(|&m| m < n).find(|&m| fits(axis, m)), above.into_iter().find(|&m| fits(axis, m))]
    };
    let (heights, widths) = (sides(0), sides(1));
    let mut found: Vec<String> = Vec::new();
    for (height, width) in heights.into_iter().zip(widths) {
        let (Some(h), Some(w)) = (height, width) else { continue };
        let whole = Sizes::carry(typing, [h, w]).and_then(|sizes| Tables::new(typing, sizes).plan());
        let text = if h == w { h.to_string() } else { format!("{h}x{w}") };
        if whole.is_ok() && !found.contains(&text) {
            found.push(text);
        }
    }
    match found.is_empty() {
        true => error,
        false => error.rehint(format!("{hint}, such as {} pixels", found.join(" or "))),
    }
}

/// The child must type without contradictions.
fn check(child: &Model, size: [usize; 2]) -> Result<()> {
    let with = Assumption { image: size, ..Assumption::default() };
    let typed = Typing::with(child, with).and_then(|t| t.sound());
    typed.map_err(|e| {
        Error::new(
            ErrorKind::Unsupported,
            format!("the graph cannot be given images of {} x {}: {e}", size[0], size[1]),
        )
        .hint("export the model for this size, or with a dynamic image size")
    })
}

fn image_dims(model: &Model) -> Option<Vec<Option<usize>>> {
    data_inputs(model.graph()).into_iter().filter_map(declared_dims).find(|d| d.len() == 4)
}

/// Preprocessing that the model carries follows the size.
fn note_size(model: &mut Model, size: [usize; 2]) {
    let Some(Ok(mut stored)) = model.metadata(PREPROCESS).map(serde_json::from_str::<serde_json::Value>) else {
        return;
    };
    if let Some(entry) = stored.get_mut("size") {
        *entry = serde_json::json!(size);
        model.set_metadata(PREPROCESS, stored.to_string());
    }
}

/// The factors that a new image size changes, with their new sizes.
struct Sizes<'t, 'm> {
    typing: &'t Typing<'m>,
    new: HashMap<Factor, usize>,
    cuts: Vec<(usize, usize, usize, usize)>,
}

impl<'t, 'm> Sizes<'t, 'm> {
    /// Carries the size of the image through the graph.
    fn carry(typing: &'t Typing<'m>, size: [usize; 2]) -> Result<Self> {
        let mut sizes = Sizes { typing, new: HashMap::new(), cuts: Vec::new() };
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
        // A dimension may be linked to one that a later node makes: walk until nothing changes.
        for _ in 0..8 {
            let before = sizes.new.len();
            sizes.cuts.clear();
            for (k, node) in typing.graph.node.iter().enumerate() {
                let known = node.output.first().is_some_and(|o| typing.known.contains_key(o.as_str()));
                if !known && node.op_type() != "Constant" {
                    sizes.node(k, node).map_err(|e| e.in_node(node_label(node)))?;
                }
            }
            if sizes.new.len() == before {
                return Ok(sizes);
            }
        }
        bail!(Unsupported, "the new image size does not settle in this graph")
    }

    fn leaf(&self, f: Factor) -> usize {
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
    fn size(&self, dim: &[Factor]) -> usize {
        self.typing.factors.leaves(dim).iter().map(|&f| self.leaf(f)).product()
    }

    fn changed(&self, dim: &[Factor]) -> bool {
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
            .hint("give an image size whose grid of patches divides into the model's windows and stages"))
    }

    fn dims(&self, node: &NodeProto, j: usize) -> Option<Vec<Dim>> {
        let name = node.input.get(j)?;
        self.typing.dims.get(name.as_str()).cloned()
    }

    fn ints(&self, node: &NodeProto, name: &str, j: usize) -> Option<Vec<i64>> {
        let given = || self.typing.known.get(node.input.get(j)?.as_str()).map(Known::ints);
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

    fn operand(&self, k: usize, j: usize) -> Option<&'t Vec<Dim>> {
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

    /// A table of offsets between the places of one axis, whose places are computed: a row for each offset that there is.
    fn offsets(&mut self, node: &NodeProto, x: &[Dim]) -> Result<()> {
        let along = resolve_axis(node.int("axis").unwrap_or(0), x.len());
        let known = node.input.get(1).is_some_and(|x| self.typing.known.contains_key(x.as_str()));
        let places = self.dims(node, 1);
        let (Some(rows), Some([queries, keys]), true) = (along.and_then(|a| x.get(a)), places.as_deref(), known) else {
            return Ok(());
        };
        let longest = |size: &dyn Fn(&[Factor]) -> usize| 2 * size(queries).max(size(keys)).max(1) - 1;
        let (old, new) = (longest(&|d| self.typing.factors.size(d)), longest(&|d| self.size(d)));
        match old != new && self.typing.factors.size(rows) == old {
            true => self.assign(rows, new),
            false => Ok(()),
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
                .hint(format!("give an image size that is a multiple of {}", stride as usize)));
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
    fn border(&self, dim: &Dim, at: usize) -> usize {
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

/// Where the tokens of an axis lie on the grid, at the old size and at the new one: the row and column of each, or its rank
/// among the prefix tokens.
struct Tokens {
    old: Vec<Place>,
    new: Vec<Place>,
    old_grid: [usize; 2],
    new_grid: [usize; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Prefix(usize),
    Patch(usize, usize),
}

fn unknown(name: &str, shape: &[i64]) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("`{name}` {shape:?} was made for the old image size, in a way that is not understood"),
    )
    .hint("export the model for the new size, or with a dynamic image size")
}

/// Plans what becomes of every table that was made for the old size.
struct Tables<'t, 'm> {
    typing: &'t Typing<'m>,
    sizes: Sizes<'t, 'm>,
    kinds: Vec<WeightUse>,
    plan: Plan,
    done: HashSet<(usize, usize)>,
}

impl<'t, 'm> Tables<'t, 'm> {
    fn new(typing: &'t Typing<'m>, sizes: Sizes<'t, 'm>) -> Self {
        Tables { typing, sizes, kinds: weight_uses(typing), plan: Plan::default(), done: HashSet::new() }
    }

    fn plan(mut self) -> Result<Plan> {
        let mut changed: Vec<(Factor, usize)> = self.sizes.new.iter().map(|(&f, &n)| (f, n)).collect();
        changed.sort_unstable();
        for (f, n) in changed {
            let old = self.typing.factors.factor_size(f);
            // The last index stays the last and the first stands for all others: what masks of shifted windows need.
            self.plan.gather(
                &self.typing.factors,
                f,
                (0..n).map(|i| if i + 1 == n { old - 1 } else { 0 }).collect(),
            )?;
        }
        for (k, axis, first, last) in std::mem::take(&mut self.sizes.cuts) {
            self.plan.cut(k, axis, first, last);
        }
        let graph = self.typing.graph;
        for (k, node) in graph.node.iter().enumerate().filter(|(_, n)| n.op_type() == "Gather") {
            self.lookup(k, node).map_err(|e| e.in_node(node_label(node)))?;
        }
        for u in 0..self.typing.uses.len() {
            let of_use = &self.typing.uses[u];
            let changed: Vec<usize> = (0..of_use.dims.len()).filter(|&a| self.sizes.changed(&of_use.dims[a])).collect();
            if !changed.is_empty() && !self.done.contains(&(of_use.node, of_use.input)) {
                self.table(u, &changed).map_err(|e| e.in_node(node_label(&graph.node[of_use.node])))?;
            }
        }
        Ok(self.plan)
    }

    /// One use of a weight that carries a grid.
    fn table(&mut self, u: usize, changed: &[usize]) -> Result<()> {
        let of_use = &self.typing.uses[u];
        let tensor = self.typing.weights[of_use.name.as_str()];
        let unknown = || unknown(&of_use.name, &tensor.dims);
        if !is_float(tensor) {
            let Some(known) = Known::read(tensor) else { return Err(unknown()) };
            return if self.repeats(u, &known.data) { Ok(()) } else { Err(unknown()) };
        }
        let data = to_f32(tensor)?;
        let shape = tensor.shape();
        match self.kinds[u].kind {
            WeightKind::Position | WeightKind::Token => {
                for &a in changed {
                    let tokens = self.tokens(&of_use.dims[a]).ok_or_else(unknown)?;
                    self.plan.mix(u, a, tokens.resample());
                }
                Ok(())
            }
            WeightKind::HeadTable => {
                let [a, b] = changed[..] else { return Err(unknown()) };
                let elements = self.relative(&data, &shape, [a, b], u).ok_or_else(unknown)?;
                self.plan.replace(u, elements);
                Ok(())
            }
            WeightKind::Constant => {
                let values = ArrayD::from_shape_vec(shape.clone(), data.iter().map(|&v| f64::from(v)).collect())
                    .map_err(|_| unknown())?;
                if self.repeats(u, &values) {
                    return Ok(());
                }
                let [a] = changed[..] else { return Err(unknown()) };
                let elements = self.rotary(&data, &shape, a, u).ok_or_else(unknown)?;
                self.plan.replace(u, elements);
                Ok(())
            }
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                format!("the weight `{}` {:?} is trained for one size of the grid", of_use.name, tensor.dims),
            )
            .hint("such a model has one image size: leave --image-size out")),
        }
    }

    /// Whether a tensor has, along every factor that changes, one value for all indices but the last.
    fn repeats(&self, u: usize, values: &ArrayD<f64>) -> bool {
        let dims = &self.typing.uses[u].dims;
        let factors = &self.typing.factors;
        (0..dims.len()).filter(|&a| self.sizes.changed(&dims[a])).all(|a| {
            let leaves = factors.leaves(&dims[a]);
            // Changes inside a sum would need the borders of its segments; only a constant needs none.
            let sum = leaves.iter().any(|&f| factors.segments(&[f]).is_some());
            let lists: Vec<usize> = leaves.iter().map(|&f| factors.factor_size(f)).collect();
            let source = |i: usize| {
                if sum {
                    return 0;
                }
                let (mut rest, mut at, mut scale) = (i, 0, 1);
                for (&n, &f) in lists.iter().zip(&leaves).rev() {
                    let digit = rest % n;
                    rest /= n;
                    let digit = if self.sizes.new.contains_key(&f) && digit + 1 != n { 0 } else { digit };
                    at += digit * scale;
                    scale *= n;
                }
                at
            };
            (0..values.shape()[a]).all(|i| {
                let axis = ndarray::Axis(a);
                source(i) == i || values.index_axis(axis, i) == values.index_axis(axis, source(i))
            })
        })
    }

    /// The tokens of a dimension; `None` where it is not known how they lie on the image.
    fn tokens(&self, dim: &Dim) -> Option<Tokens> {
        let axis = |leaves: &[Factor]| {
            leaves.iter().map(|&f| self.typing.factors.spatial(f).map(|s| s.axis)).collect::<Option<Vec<ImageAxis>>>()
        };
        self.tokens_by(dim, axis)
    }

    /// [`Tables::tokens`], where two factors that are not known to run over the image are taken for rows and columns: for tables
    /// that show whether they are.
    fn tokens_or_rows(&self, dim: &Dim) -> Option<Tokens> {
        self.tokens(dim).or_else(|| {
            self.tokens_by(dim, |leaves| (leaves.len() == 2).then(|| vec![ImageAxis::Height, ImageAxis::Width]))
        })
    }

    fn tokens_by(&self, dim: &Dim, axes_of: impl Fn(&[Factor]) -> Option<Vec<ImageAxis>>) -> Option<Tokens> {
        let factors = &self.typing.factors;
        let segments = factors.segments(dim).unwrap_or_else(|| vec![dim.clone()]);
        let mut tokens = Tokens { old: Vec::new(), new: Vec::new(), old_grid: [1, 1], new_grid: [1, 1] };
        let mut prefix = 0;
        for segment in &segments {
            if !self.sizes.changed(segment) {
                for list in [&mut tokens.old, &mut tokens.new] {
                    list.extend((prefix..prefix + factors.size(segment)).map(Place::Prefix));
                }
                prefix += factors.size(segment);
                continue;
            }
            let leaves = factors.leaves(segment);
            let axes = axes_of(&leaves)?;
            if tokens.old_grid != [1, 1] {
                return None;
            }
            let old: Vec<usize> = leaves.iter().map(|&f| factors.factor_size(f)).collect();
            let new: Vec<usize> = leaves.iter().map(|&f| self.sizes.leaf(f)).collect();
            for (list, sizes, grid) in
                [(&mut tokens.old, &old, &mut tokens.old_grid), (&mut tokens.new, &new, &mut tokens.new_grid)]
            {
                let extent = |axis| sizes.iter().zip(&axes).filter(|(_, a)| **a == axis).map(|(n, _)| n).product();
                *grid = [extent(ImageAxis::Height), extent(ImageAxis::Width)];
                for i in 0..sizes.iter().product() {
                    let (mut rest, mut place, mut scale) = (i, [0, 0], [1, 1]);
                    for (&n, axis) in sizes.iter().zip(&axes).rev() {
                        let at = usize::from(*axis == ImageAxis::Width);
                        place[at] += rest % n * scale[at];
                        scale[at] *= n;
                        rest /= n;
                    }
                    list.push(Place::Patch(place[0], place[1]));
                }
            }
        }
        (tokens.old_grid != [1, 1]).then_some(tokens)
    }

    /// A table that is looked up by a constant index: positions by a token's place, relative positions by two of them.
    fn lookup(&mut self, k: usize, node: &NodeProto) -> Result<()> {
        let (Some(table), Some(index)) = (node.input.first(), node.input.get(1)) else { return Ok(()) };
        let dims = match self.sizes.operand(k, 1) {
            Some(dims) => dims.clone(),
            None => self.typing.dims.get(index.as_str()).cloned().unwrap_or_default(),
        };
        let values = self.typing.known.get(index.as_str()).cloned();
        let values = values.or_else(|| Known::read(self.typing.weights.get(index.as_str())?));
        let (true, Some(values)) = (dims.iter().any(|d| self.sizes.changed(d)), values) else { return Ok(()) };
        let of_table = self.typing.uses.iter().position(|u| u.node == k && u.input == 0);
        let unknown = || unknown(index, &values.data.shape().iter().map(|&n| n as i64).collect::<Vec<_>>());
        let Some(u) = of_table.filter(|_| self.typing.weights.get(table.as_str()).is_some_and(|t| is_float(t))) else {
            // What is resampled before it is looked up has to have as many rows as the new places want.
            let is_made =
                !self.typing.known.contains_key(table.as_str()) && self.typing.dims.contains_key(table.as_str());
            let follows = self.typing.dims.get(table.as_str()).is_some_and(|d| d.iter().any(|d| self.sizes.changed(d)));
            return match is_made && !follows && self.typing.fixed().contains(table.as_str()) {
                true => Err(unknown()),
                false => Ok(()),
            };
        };
        let along = nearest_axis(node.int("axis").unwrap_or(0), self.typing.uses[u].dims.len());
        let rows = self.typing.factors.size(&self.typing.uses[u].dims[along]);
        let entries = values.ints().into_iter().map(|v| resolve_axis(v, rows));
        let entries: Vec<usize> = entries.collect::<Option<_>>().ok_or_else(unknown)?;
        let lists = self.token_axes(&dims).ok_or_else(unknown)?;
        let (mixture, index_values) = match &lists[..] {
            [tokens] => {
                let mixture: Mixture = tokens.resample();
                let named = |terms: &Vec<(usize, f32)>| terms.iter().map(|&(i, w)| (entries[i], w)).collect();
                (mixture.iter().map(named).collect::<Mixture>(), (0..tokens.new.len() as i64).collect::<Vec<i64>>())
            }
            [queries, keys] => {
                let pairs = Pairs::read(queries, keys, |i, j| entries[i * keys.old.len() + j]).ok_or_else(unknown)?;
                pairs.resized(queries, keys)
            }
            _ => return Err(unknown()),
        };
        let table_rows = self.typing.factors.leaves(&self.typing.uses[u].dims[along]);
        let [rows] = table_rows[..] else { return Err(unknown()) };
        let shape: Vec<usize> = dims.iter().map(|d| self.sizes.size(d)).collect();
        let data = tensor_from_i64(index.clone(), &shape, &index_values);
        let kind = self.typing.weights.get(index.as_str()).and_then(|t| data_type(t)).unwrap_or(DataType::Int64);
        self.plan.operand(k, 1, if kind == DataType::Int32 { narrow(&data, &index_values) } else { data });
        self.plan.gather(&self.typing.factors, rows, vec![0; mixture.len()])?;
        self.plan.mix(u, along, mixture);
        self.done.extend([(k, 0), (k, 1)]);
        Ok(())
    }

    /// The token axes that the dimensions of an index table run over, which may lie in one dimension.
    fn token_axes(&self, dims: &[Dim]) -> Option<Vec<Tokens>> {
        let factors = &self.typing.factors;
        let all: Vec<Factor> = dims.iter().flat_map(|d| factors.leaves(d)).collect();
        let mut lists = Vec::new();
        let mut i = 0;
        while i < all.len() {
            let one = factors.segments(&[all[i]]).is_some();
            let height = factors.spatial(all[i]).map(|s| s.axis);
            let mut end = i + 1;
            if !one {
                // Rows and columns of one grid, outermost first: it ends before the next rows.
                let axis = |f: Factor| factors.spatial(f).map(|s| s.axis);
                let mut columns = height == Some(ImageAxis::Width);
                while end < all.len()
                    && axis(all[end]).is_some()
                    && !(columns && axis(all[end]) == Some(ImageAxis::Height))
                {
                    columns |= axis(all[end]) == Some(ImageAxis::Width);
                    end += 1;
                }
            }
            lists.push(self.tokens(&all[i..end].iter().copied().collect())?);
            i = end;
        }
        Some(lists)
    }

    /// A relative position bias that was computed for pairs of tokens, for the new tokens.
    fn relative(&self, data: &[f32], shape: &[usize], [a, b]: [usize; 2], u: usize) -> Option<Vec<f32>> {
        let dims = &self.typing.uses[u].dims;
        let (queries, keys) = (self.tokens_or_rows(&dims[a])?, self.tokens_or_rows(&dims[b])?);
        let values = ArrayD::from_shape_vec(shape.to_vec(), data.to_vec()).ok()?;
        let mut new_shape = shape.to_vec();
        (new_shape[a], new_shape[b]) = (queries.new.len(), keys.new.len());
        let mut out = ArrayD::<f32>::zeros(new_shape);
        // Every head has a matrix of its own; queries come first in each.
        let rest: Vec<usize> = (0..shape.len()).filter(|&i| i != a && i != b).collect();
        let count: usize = rest.iter().map(|&i| shape[i]).product();
        for n in 0..count {
            let (mut old, mut new, mut left) = (values.view(), out.view_mut(), n);
            for &i in rest.iter().rev() {
                old.slice_axis_inplace(ndarray::Axis(i), (left % shape[i]..left % shape[i] + 1).into());
                new.slice_axis_inplace(ndarray::Axis(i), (left % shape[i]..left % shape[i] + 1).into());
                left /= shape[i];
            }
            let at = |i: usize, j: usize| {
                let mut index = vec![0; shape.len()];
                (index[a], index[b]) = (i, j);
                index
            };
            // Entries are named by the first pair that has them.
            let width = keys.old.len();
            let mut first: HashMap<u32, usize> = HashMap::new();
            let mut entries = Vec::with_capacity(queries.old.len() * width);
            for i in 0..queries.old.len() {
                for j in 0..width {
                    let bits = old[&at(i, j)[..]].to_bits();
                    entries.push(*first.entry(bits).or_insert(i * width + j));
                }
            }
            let pairs = Pairs::read(&queries, &keys, |i, j| entries[i * width + j])?;
            let (mixture, index) = pairs.resized(&queries, &keys);
            let value = |pair: usize| old[&at(pair / width, pair % width)[..]];
            let table: Vec<f32> = mixture.iter().map(|row| row.iter().map(|&(p, w)| w * value(p)).sum()).collect();
            for (pair, entry) in index.into_iter().enumerate() {
                new[&at(pair / keys.new.len(), pair % keys.new.len())[..]] = table[entry as usize];
            }
        }
        Some(out.into_iter().collect())
    }

    /// A table of sines and cosines of positions times frequencies, for the new grid: the frequencies are read off the table,
    /// and the positions span what they spanned.
    fn rotary(&self, data: &[f32], shape: &[usize], a: usize, u: usize) -> Option<Vec<f32>> {
        let tokens = self.tokens(&self.typing.uses[u].dims[a])?;
        let before: usize = shape[..a].iter().product();
        let after: usize = shape[a + 1..].iter().product();
        let place: HashMap<Place, usize> = tokens.old.iter().enumerate().map(|(i, &p)| (p, i)).collect();
        let [rows, columns] = tokens.old_grid;
        let mut waves = Vec::with_capacity(before * after);
        for channel in 0..before * after {
            let (b, c) = (channel / after, channel % after);
            let at = |r: usize, q: usize| Some(data[(b * shape[a] + place.get(&Place::Patch(r, q))?) * after + c]);
            let down: Vec<f32> = (0..rows).map(|r| at(r, 0)).collect::<Option<_>>()?;
            let across: Vec<f32> = (0..columns).map(|q| at(0, q)).collect::<Option<_>>()?;
            let constant = |line: &[f32]| line.iter().all(|v| (v - line[0]).abs() < 1e-6);
            let (axis, line) = if constant(&across) { (0, down) } else { (1, across) };
            let wave = Wave::fit(&line)?;
            // Every other line must say the same.
            for r in 0..rows {
                for q in 0..columns {
                    if (wave.at([r, q][axis] as f64) - f64::from(at(r, q)?)).abs() > WAVE_TOLERANCE {
                        return None;
                    }
                }
            }
            waves.push((axis, wave));
        }
        let fastest = waves.iter().max_by(|x, y| x.1.step.abs().total_cmp(&y.1.step.abs()))?;
        let from_zero = (2.0 * fastest.1.phase).sin().abs() < 1e-3;
        let ratio: [f64; 2] = std::array::from_fn(|i| tokens.old_grid[i] as f64 / tokens.new_grid[i] as f64);
        let mut out = Vec::with_capacity(before * tokens.new.len() * after);
        for b in 0..before {
            for token in &tokens.new {
                for c in 0..after {
                    let (axis, wave) = &waves[b * after + c];
                    out.push(match *token {
                        Place::Prefix(_) => {
                            data[(b * shape[a] + tokens.old.iter().position(|p| p == token)?) * after + c]
                        }
                        Place::Patch(r, q) => {
                            let x = [r, q][*axis] as f64;
                            let x = if from_zero { x * ratio[*axis] } else { (x + 0.5) * ratio[*axis] - 0.5 };
                            wave.at(x) as f32
                        }
                    });
                }
            }
        }
        Some(out)
    }
}

/// An index as 32-bit integers.
fn narrow(tensor: &TensorProto, values: &[i64]) -> TensorProto {
    let bytes: Vec<u8> = values.iter().flat_map(|&v| (v as i32).to_le_bytes()).collect();
    let dims = tensor.shape();
    tensor_from_raw(tensor.name(), DataType::Int32, &dims, bytes.into())
}

impl Tokens {
    /// New tokens as sums of old ones: prefix tokens stay, patches are interpolated.
    fn resample(&self) -> Mixture {
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

/// Which entry of a table stands for which pair of tokens: one for each offset between patches, one for each pair of a prefix
/// token and a prefix token or any patch.
struct Pairs {
    /// Entries by offset, rows outermost, from the most negative.
    offsets: Vec<usize>,
    others: HashMap<(Option<usize>, Option<usize>), usize>,
}

impl Pairs {
    /// Reads the entries of all pairs; `None` where one offset has several.
    fn read(queries: &Tokens, keys: &Tokens, entry: impl Fn(usize, usize) -> usize) -> Option<Pairs> {
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
    fn resized(&self, queries: &Tokens, keys: &Tokens) -> (Mixture, Vec<i64>) {
        let ([h, w], [new_h, new_w]) = (queries.old_grid, queries.new_grid);
        let (rows, columns) = (relative(h, new_h), relative(w, new_w));
        let mut mixture: Mixture = Vec::with_capacity(rows.len() * columns.len());
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

impl Place {
    fn prefix(self) -> Option<usize> {
        match self {
            Place::Prefix(i) => Some(i),
            Place::Patch(..) => None,
        }
    }
}

/// The number of an offset between two patches of a grid.
fn offset(q: Place, k: Place, [h, w]: [usize; 2]) -> usize {
    match (q, k) {
        (Place::Patch(r, c), Place::Patch(s, d)) => (r + h - 1 - s) * (2 * w - 1) + c + w - 1 - d,
        _ => 0,
    }
}

/// How far a table may be from the sinusoid that it is taken for.
const WAVE_TOLERANCE: f64 = 1e-5;

/// sin(phase + step x).
#[derive(Clone, Copy, Debug)]
struct Wave {
    phase: f64,
    step: f64,
}

impl Wave {
    fn at(&self, x: f64) -> f64 {
        (self.phase + self.step * x).sin()
    }

    /// The slowest wave of amplitude one through equally spaced samples.
    fn fit(samples: &[f32]) -> Option<Wave> {
        let y: Vec<f64> = samples.iter().map(|&v| f64::from(v)).collect();
        if y.iter().any(|v| v.abs() > 1.0 + WAVE_TOLERANCE) {
            return None;
        }
        // y[x - 1] + y[x + 1] = 2 cos(step) y[x], which gives a start.
        let inner = || (1..y.len().saturating_sub(1)).map(|i| (y[i], y[i - 1] + y[i + 1]));
        let power: f64 = inner().map(|(v, _)| v * v).sum();
        let cosine = inner().map(|(v, s)| v * s).sum::<f64>() / (2.0 * power);
        let step = if cosine.is_finite() { cosine.clamp(-1.0, 1.0).acos() } else { 0.0 };
        let start = y.first()?.clamp(-1.0, 1.0).asin();
        let phases = [start, std::f64::consts::PI - start];
        let starts = phases.into_iter().flat_map(|phase| [step, -step].map(|step| Wave { phase, step }));
        let fitted = starts.map(|w| w.refined(&y)).min_by(|a, b| a.1.total_cmp(&b.1))?;
        (fitted.1 < WAVE_TOLERANCE).then_some(fitted.0)
    }

    /// Gauss-Newton steps towards the samples, and the largest distance that is left.
    fn refined(mut self, y: &[f64]) -> (Wave, f64) {
        for _ in 0..20 {
            // Normal equations of (phase, step).
            let (mut a, mut b, mut c, mut p, mut q) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for (i, &v) in y.iter().enumerate() {
                let (x, slope) = (i as f64, (self.phase + self.step * i as f64).cos());
                let error = v - self.at(x);
                a += slope * slope;
                b += slope * slope * x;
                c += slope * slope * x * x;
                p += slope * error;
                q += slope * error * x;
            }
            let determinant = a * c - b * b;
            if determinant.abs() < 1e-18 {
                break;
            }
            self.phase += (c * p - b * q) / determinant;
            self.step += (a * q - b * p) / determinant;
        }
        let worst = y.iter().enumerate().map(|(i, &v)| (v - self.at(i as f64)).abs()).fold(0.0, f64::max);
        (self, if worst.is_nan() { f64::INFINITY } else { worst })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_are_read_off_their_samples() {
        for (phase, step, n) in
            [(0.0, 1.0, 14), (0.0, 1e-4, 14), (0.3, 0.4, 4), (std::f64::consts::FRAC_PI_2, 0.01, 16)]
        {
            let wave = Wave { phase, step };
            let samples: Vec<f32> = (0..n).map(|i| wave.at(i as f64) as f32).collect();
            let found = Wave::fit(&samples).unwrap();
            for i in 0..4 * n {
                let x = i as f64 / 4.0;
                assert!((found.at(x) - wave.at(x)).abs() < 1e-6, "{wave:?} {found:?}");
            }
        }
        assert!(Wave::fit(&[0.0, 0.9, -0.3, 0.2, 0.7]).is_none());
        assert!(Wave::fit(&[0.0, 1.5]).is_none());
    }
}
