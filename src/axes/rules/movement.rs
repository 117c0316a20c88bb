//! Typing of operators that move elements: factors are regrouped, permuted, cut and joined.

use super::vocabulary::Rule;
use crate::axes::arithmetic::{elements, resolve_shape, slice_range, split_lengths};
use crate::axes::factors::{Dim, Spatial};
use crate::axes::typing::AxisSlice;
use crate::error::Result;
use crate::graph::{Attributes, nearest_border};

impl Rule<'_, '_> {
    pub(super) fn reshape(&mut self) -> Result<Vec<Dim>> {
        let (x, shape) = (self.input(0)?, self.shape(0)?);
        let target = self.list("shape", 1)?.ok_or_else(|| self.fail("it has no target shape"))?;
        let allow_zero = self.node.int("allowzero").unwrap_or(0) != 0;
        if let Some(sizes) = self.typing.opened_target(self.k, &x, &target, allow_zero) {
            return Ok(self.typing.factors.reshaped(&x, &sizes));
        }
        let target = resolve_shape(&shape, &target, allow_zero)
            .ok_or_else(|| self.fail(&format!("dimensions {shape:?} cannot become {target:?}")))?;
        if shape.contains(&0) {
            return Ok(self.empty(&x, &target));
        }
        Ok(self.typing.factors.reshaped(&x, &target))
    }

    /// The axes of a value that holds nothing (rows that a known mask picks none of): at both ends those of which there
    /// are as many as before.
    fn empty(&mut self, x: &[Dim], target: &[usize]) -> Vec<Dim> {
        let same = |(d, n): &(&Dim, &usize)| self.typing.factors.size(d) == **n;
        let front = x.iter().zip(target).take_while(same).count();
        let back = x[front..].iter().rev().zip(target[front..].iter().rev()).take_while(same).count();
        let mut dims = x[..front].to_vec();
        for &n in &target[front..target.len() - back] {
            dims.push(self.typing.factors.fresh(n));
        }
        dims.extend_from_slice(&x[x.len() - back..]);
        dims
    }

    pub(super) fn flatten(&mut self) -> Result<Vec<Dim>> {
        let (x, shape) = (self.input(0)?, self.shape(0)?);
        let a = nearest_border(self.node.int("axis").unwrap_or(1), x.len());
        let target = [elements(&shape[..a]), elements(&shape[a..])];
        if shape.contains(&0) {
            return Ok(self.empty(&x, &target));
        }
        Ok(self.typing.factors.reshaped(&x, &target))
    }

    pub(super) fn squeeze(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        let axes: Vec<usize> = match self.list("axes", 1)? {
            Some(list) => list.iter().map(|&a| self.axis(a, x.len())).collect::<Result<_>>()?,
            None => (0..x.len()).filter(|&i| self.size(&x[i]) == 1).collect(),
        };
        Ok(x.into_iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d).collect())
    }

    pub(super) fn unsqueeze(&mut self) -> Result<Vec<Dim>> {
        let mut x = self.input(0)?;
        let list = self.list("axes", 1)?.ok_or_else(|| self.fail("it has no axes"))?;
        let rank = x.len() + list.len();
        let mut axes: Vec<usize> = list.iter().map(|&a| self.axis(a, rank)).collect::<Result<_>>()?;
        axes.sort_unstable();
        for a in axes {
            if a > x.len() {
                return Err(self.fail("its axes repeat"));
            }
            x.insert(a, Dim::new());
        }
        Ok(x)
    }

    pub(super) fn transpose(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        match self.node.ints("perm").filter(|p| !p.is_empty()) {
            Some(perm) if perm.len() == x.len() => {
                perm.iter().map(|&a| self.axis(a, x.len()).map(|a| x[a].clone())).collect()
            }
            Some(_) => Err(self.fail("perm and input differ in rank")),
            None => Ok(x.into_iter().rev().collect()),
        }
    }

    pub(super) fn split(&mut self) -> Result<Vec<Vec<Dim>>> {
        let x = self.input(0)?;
        let a = self.axis(self.node.int("axis").unwrap_or(0), x.len())?;
        let n = self.size(&x[a]);
        let lengths = split_lengths(self.node, n, self.list("split", 1)?)
            .ok_or_else(|| self.fail(&format!("its lengths do not add up to {n}")))?;
        let equal = lengths.windows(2).all(|w| w[0] == w[1]);
        let mut at = 0;
        let mut out = Vec::new();
        for &length in &lengths {
            // Unequal lengths are typed as segments from the first border on.
            let part = match equal {
                true => self.typing.factors.slice(&x[a], at, length).1,
                false => self.segment(&x[a], at, length),
            };
            at += length;
            let mut dims = x.clone();
            dims[a] = part;
            out.push(dims);
        }
        Ok(out)
    }

    /// A part of a dimension that is cut into unequal pieces: never a product, even where this piece alone would divide
    /// it.
    fn segment(&mut self, dim: &Dim, start: usize, length: usize) -> Dim {
        let total = self.size(dim);
        let factors = &mut self.typing.factors;
        // A border inside the dimension makes an atom a sum; the piece is then one of its segments.
        if factors.leaves(dim).len() == 1 && factors.segments(dim).is_none() && start == 0 && total > 1 {
            return factors.cut_atom(dim, length);
        }
        factors.slice(dim, start, length).1
    }

    pub(super) fn slice(&mut self) -> Result<Vec<Dim>> {
        let mut out = self.input(0)?;
        let starts = self.list("starts", 1)?.ok_or_else(|| self.fail("it has no starts"))?;
        let ends = self.list("ends", 2)?.ok_or_else(|| self.fail("it has no ends"))?;
        let axes = self.list("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = self.list("steps", 4)?.unwrap_or_else(|| vec![1; starts.len()]);
        if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
            return Err(self.fail("starts, ends, axes and steps differ in length"));
        }
        for i in 0..starts.len() {
            let a = self.axis(axes[i], out.len())?;
            let n = self.size(&out[a]);
            let (first, length) =
                slice_range(n, starts[i], ends[i], steps[i]).ok_or_else(|| self.fail("its step is zero"))?;
            if length == n && steps[i].unsigned_abs() == 1 {
                continue;
            }
            if length == 0 {
                // Nothing, which a Concat joins with something (a rotary embedding that turns all features).
                out[a] = Dim::from_slice(&[self.typing.factors.atom(0)]);
                continue;
            }
            if steps[i] == 1 {
                let (before, taken) = self.typing.factors.slice(&out[a], first, length);
                if let Some(before) = before {
                    self.typing.parts.push(AxisSlice { node: self.k, axis: a, before, taken: taken.clone() });
                }
                out[a] = taken;
            } else if steps[i] > 1
                && length.saturating_mul(steps[i] as usize) == n
                && let Some(outer) = self.typing.factors.outer(&out[a], length)
            {
                out[a] = outer;
            } else {
                let spatial = self.typing.factors.spatial_of(&out[a]);
                out[a] = self.typing.factors.fresh(length);
                let step = steps[i].unsigned_abs() as f64;
                let dim = out[a].clone();
                self.typing.factors.set_spatial(&dim, spatial.map(|s| Spatial { stride: s.stride * step, ..s }));
            }
        }
        Ok(out)
    }

    pub(super) fn concat(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        let a = self.axis(self.node.int("axis").ok_or_else(|| self.fail("it has no axis"))?, x.len())?;
        self.typing.opened_operands(self.k, &mut self.inputs, a);
        let given = self.given();
        if given.iter().any(|d| d.len() != x.len()) {
            return Err(self.fail("its inputs differ in rank"));
        }
        let mut out = Vec::new();
        for i in 0..x.len() {
            let whole = |d: &&Vec<Dim>| i != a || given.len() == 1 || self.size(&d[a]) > 0;
            let column: Vec<Dim> = given.iter().filter(whole).map(|d| d[i].clone()).collect();
            if i != a {
                let operands: Vec<Vec<Dim>> = column.into_iter().map(|d| vec![d]).collect();
                out.extend(self.broadcast(&operands));
                continue;
            }
            let lengths: Vec<usize> = column.iter().map(|d| self.size(d)).collect();
            if lengths.len() == 1 {
                out.push(column[0].clone());
            } else if lengths.windows(2).all(|w| w[0] == w[1]) {
                // Equal pieces: a product of their number and the piece.
                for d in &column[1..] {
                    self.unify(&column[0], d);
                }
                let mut dim = self.typing.factors.fresh(lengths.len());
                dim.extend(column[0].iter().copied());
                out.push(dim);
            } else {
                out.push(self.typing.factors.sum(column));
            }
        }
        Ok(out)
    }

    pub(super) fn expand(&mut self) -> Result<Vec<Dim>> {
        let mut x = self.input(0)?;
        let mut times = match self.node.op_type() {
            "Expand" => self.sizes(1)?,
            _ => self.list("repeats", 1)?.unwrap_or_default().iter().map(|&v| v.max(1) as usize).collect(),
        };
        let rank = times.len().max(x.len());
        while x.len() < rank {
            x.insert(0, Dim::new());
        }
        while times.len() < rank {
            times.insert(0, 1);
        }
        let expand = self.node.op_type() == "Expand";
        if expand {
            self.typing.opened_shape(self.k, &x, &mut times);
        }
        let mut out = Vec::new();
        for (d, m) in x.into_iter().zip(times) {
            if m == 1 || (expand && self.size(&d) == m) {
                out.push(d);
            } else {
                let mut dim = self.typing.factors.fresh(m);
                dim.extend(d);
                out.push(dim);
            }
        }
        Ok(out)
    }

    pub(super) fn pad(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        let pads = self.list("pads", 1)?.ok_or_else(|| self.fail("it has no pads"))?;
        let axes = self.list("axes", 3)?.unwrap_or_else(|| (0..x.len() as i64).collect());
        if pads.len() != 2 * axes.len() {
            return Err(self.fail("pads and axes differ in length"));
        }
        let mut out = x;
        for (i, &a) in axes.iter().enumerate() {
            let a = self.axis(a, out.len())?;
            let added = pads[i].saturating_add(pads[i + axes.len()]);
            if pads[i] != 0 || added != 0 {
                let n = (self.size(&out[a]) as i64).saturating_add(added);
                if n < 1 {
                    return Err(self.fail("it cuts everything away"));
                }
                let spatial = self.typing.factors.spatial_of(&out[a]);
                out[a] = self.typing.factors.fresh(n as usize);
                let dim = out[a].clone();
                self.typing.factors.set_spatial(&dim, spatial);
            }
        }
        Ok(out)
    }

    pub(super) fn depth_space(&mut self) -> Result<Vec<Dim>> {
        let (s, b) = (self.shape(0)?, self.node.int("blocksize").unwrap_or(1).max(1) as usize);
        let [n, c, h, w] = s[..] else { return Err(self.fail("it wants four dimensions")) };
        Ok(match self.node.op_type() {
            "DepthToSpace" => self.fresh(&[n, c / b.saturating_mul(b), h.saturating_mul(b), w.saturating_mul(b)]),
            _ => self.fresh(&[n, c.saturating_mul(b).saturating_mul(b), h / b, w / b]),
        })
    }

    pub(super) fn constant_of_shape(&mut self) -> Result<Vec<Dim>> {
        let shape = self.sizes(0)?;
        Ok(self.fresh(&shape))
    }
}
