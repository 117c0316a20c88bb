//! Typing of windows that slide over an image, and of resizing.

use super::vocabulary::Rule;
use crate::axes::arithmetic::elements;
use crate::axes::factors::{Dim, Spatial};
use crate::error::Result;
use crate::graph::Attributes;
use crate::onnx::proto::NodeProto;

/// What a convolution's or pooling operator's window makes of `length` elements along spatial axis `i` of `rank`: the
/// number of positions, and the stride.
pub(crate) fn window_length(
    node: &NodeProto,
    rank: usize,
    i: usize,
    kernel: usize,
    length: i64,
    transposed: bool,
) -> (i64, i64) {
    let listed = |name: &str, default: i64, at: usize, n: usize| match node.ints(name) {
        Some(v) if v.len() == n => v[at],
        _ => default,
    };
    let stride = listed("strides", 1, i, rank).max(1);
    // Attributes may be any number; what comes of those that cannot be is too large, or not positive, and refused.
    let reach = listed("dilations", 1, i, rank).saturating_mul((kernel as i64).saturating_sub(1));
    let padding = listed("pads", 0, i, 2 * rank).saturating_add(listed("pads", 0, rank + i, 2 * rank));
    let ceil = node.int("ceil_mode").unwrap_or(0) != 0;
    let n = match (node.string("auto_pad").unwrap_or("NOTSET"), transposed) {
        ("SAME_UPPER" | "SAME_LOWER", false) => length.saturating_add(stride - 1) / stride,
        ("SAME_UPPER" | "SAME_LOWER", true) => length.saturating_mul(stride),
        (_, false) => {
            let room = length.saturating_add(padding).saturating_sub(reach).saturating_sub(1);
            let steps = if ceil { room.saturating_add(stride - 1) } else { room }.div_euclid(stride);
            steps.saturating_add(1)
        }
        (_, true) => (length.saturating_sub(1).saturating_mul(stride))
            .saturating_add(listed("output_padding", 0, i, rank))
            .saturating_add(reach)
            .saturating_add(1)
            .saturating_sub(padding),
    };
    (n, stride)
}

impl Rule<'_, '_> {
    /// Output length, and pixels that one step covers, along each spatial axis of a convolution or pooling window.
    pub(super) fn windows(&mut self, x: &[Dim], kernel: &[usize], transposed: bool) -> Result<Vec<Dim>> {
        let mut out = Vec::new();
        for (i, &length) in kernel.iter().enumerate() {
            let m = self.size(&x[2 + i]) as i64;
            let (n, stride) = window_length(self.node, kernel.len(), i, length, m, transposed);
            if n < 1 {
                return Err(self.fail(&format!("its window does not fit into {m} elements")));
            }
            if n == m {
                out.push(x[2 + i].clone());
                continue;
            }
            let spatial = self.typing.factors.spatial_of(&x[2 + i]);
            let dim = self.typing.factors.fresh(n as usize);
            let step = if transposed { 1.0 / stride as f64 } else { stride as f64 };
            self.typing.factors.set_spatial(&dim, spatial.map(|s| Spatial { stride: s.stride * step, ..s }));
            out.push(dim);
        }
        Ok(out)
    }

    pub(super) fn pool(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        let kernel: Vec<usize> =
            self.node.ints("kernel_shape").unwrap_or(&[]).iter().map(|&k| k.max(1) as usize).collect();
        if x.len() != kernel.len() + 2 {
            return Err(self.fail("kernel and input differ in rank"));
        }
        let mut out = x[..2].to_vec();
        out.extend(self.windows(&x, &kernel, false)?);
        Ok(out)
    }

    pub(super) fn global_pool(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        Ok(x.iter().enumerate().map(|(i, d)| if i < 2 { d.clone() } else { Dim::new() }).collect())
    }

    /// Blocks [n, channels x block, places] added up to an image [n, channels, ...] (Col2Im, operator set 18).
    pub(super) fn columns_to_image(&mut self) -> Result<Vec<Dim>> {
        let (x, image, block) = (self.input(0)?, self.sizes(1)?, self.sizes(2)?);
        let [n, channels, places] = &x[..] else { return Err(self.fail("it wants three dimensions")) };
        let elements = elements(&block).max(1);
        let total = self.size(channels);
        if image.len() != block.len() || !total.is_multiple_of(elements) {
            return Err(self.fail(&format!("{total} channels do not divide into blocks of {block:?}")));
        }
        let channels = match self.typing.factors.outer(channels, total / elements) {
            Some(channels) => channels,
            None => self.typing.factors.fresh(total / elements),
        };
        let mut out = vec![n.clone(), channels];
        let mut rest = places.clone();
        for (i, &length) in image.iter().enumerate() {
            let (count, stride) = window_length(self.node, image.len(), i, block[i], length as i64, false);
            let dim = self.typing.factors.fresh(length);
            let count = usize::try_from(count).unwrap_or(0);
            let whole = self.size(&rest);
            if count > 0
                && whole.is_multiple_of(count)
                && let Some(own) = self.typing.factors.outer(&rest, count)
            {
                let spatial = self.typing.factors.spatial_of(&own);
                let place = spatial.map(|s| Spatial { stride: s.stride / stride as f64, ..s });
                self.typing.factors.set_spatial(&dim, place);
                rest = self.typing.factors.inner(&rest, whole / count).unwrap_or_default();
            }
            out.push(dim);
        }
        Ok(out)
    }

    /// Samples [n, channels, places...] of an image [n, channels, ...] at the places of a grid [n, places..., axes].
    pub(super) fn grid_sample(&mut self) -> Result<Vec<Dim>> {
        let (x, grid) = (self.input(0)?, self.input(1)?);
        if x.len() != grid.len() || x.len() < 3 || self.size(&grid[grid.len() - 1]) != x.len() - 2 {
            return Err(self.fail("its grid does not fit its image"));
        }
        let n = self.broadcast(&[vec![x[0].clone()], vec![grid[0].clone()]]);
        Ok(n.into_iter().chain([x[1].clone()]).chain(grid[1..grid.len() - 1].iter().cloned()).collect())
    }

    /// Regions [regions, channels, height, width] of images [n, channels, ...].
    pub(super) fn roi_align(&mut self) -> Result<Vec<Dim>> {
        let (x, regions, image) = (self.input(0)?, self.input(1)?, self.input(2)?);
        let ([_, channels, _, _], [regions, _], [image]) = (&x[..], &regions[..], &image[..]) else {
            return Err(self.fail("it wants an image of four dimensions, regions of two, and places of one"));
        };
        self.unify(regions, image);
        let side = |name: &str| usize::try_from(self.node.int(name).unwrap_or(1)).unwrap_or(1);
        let [height, width] = [side("output_height"), side("output_width")].map(|n| self.typing.factors.fresh(n));
        Ok(vec![regions.clone(), channels.clone(), height, width])
    }

    pub(super) fn resize(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        let shape = self.shape(0)?;
        let operand = |j: usize| self.node.input.get(j).filter(|n| !n.is_empty());
        let axes: Vec<usize> = match self.node.ints("axes").filter(|a| !a.is_empty()) {
            Some(list) => list.iter().map(|&a| self.axis(a, x.len())).collect::<Result<_>>()?,
            None => (0..x.len()).collect(),
        };
        let mut target = shape.clone();
        let scale_input = if self.node.op_type() == "Upsample" || self.node.input.len() == 2 { 1 } else { 2 };
        let sizes = operand(3).and_then(|n| self.typing.ints(n));
        let scales = operand(scale_input).and_then(|n| self.typing.floats(n)).filter(|s| !s.is_empty());
        match (sizes, scales) {
            (Some(s), _) if s.len() == axes.len() => {
                axes.iter().zip(s).for_each(|(&a, v)| target[a] = v.max(1) as usize)
            }
            (None, Some(s)) if s.len() == axes.len() => {
                axes.iter().zip(s).for_each(|(&a, v)| target[a] = ((shape[a] as f64 * v).floor() as usize).max(1));
            }
            _ => {
                let error = self.fail("neither its sizes nor its scales are known");
                let by = operand(3).or_else(|| operand(scale_input));
                return Err(
                    by.map_or_else(|| self.fail("it has neither sizes nor scales"), |x| self.typing.unknown(error, x))
                );
            }
        }
        if operand(3).is_some() && axes.len() == x.len() {
            self.typing.opened_sizes(self.k, &x, &mut target);
        }
        // A table of offsets along one axis is resampled to the length that the grid wants, also where that is its own.
        let is_line = x.len() == 3
            && self.node.input.first().is_some_and(|x| self.typing.constants_so_far().contains(x.as_str()));
        let mut out = Vec::new();
        for (i, d) in x.iter().enumerate() {
            if target[i] == shape[i] && !(is_line && i == 2) {
                out.push(d.clone());
                continue;
            }
            let spatial = self.typing.factors.spatial_of(d);
            let dim = self.typing.factors.fresh(target[i]);
            let step = shape[i] as f64 / target[i] as f64;
            self.typing.factors.set_spatial(&dim, spatial.map(|s| Spatial { stride: s.stride * step, ..s }));
            out.push(dim);
        }
        Ok(out)
    }
}
