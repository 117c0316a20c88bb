//! Products of matrices, and convolutions.

use super::super::kernels::ROWS_OF_A_FUSED_PRODUCT;
use super::super::tape::Backward;
use super::elementwise::times;
use super::operands::refuse;
use crate::axes::explicit_einsum;
use crate::error::Result;
use crate::graph::{Attributes, int_attribute, ints_attribute, string_attribute};
use crate::onnx::proto::{AttributeProto, NodeProto};

/// α op(a) op(b) + β c, for MatMul, Gemm, `com.microsoft` FusedMatMul and Offshoot's own Linear.
///
/// Where the second factor is one matrix, all rows of the first are one matrix too: the gradient of a weight is one
/// Gemm.
pub fn matmul(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let flag = |name: &str| node.int(name).unwrap_or(0) != 0;
    if flag("transBatchA") || flag("transBatchB") {
        return Err(refuse(node, "transposed batches"));
    }
    let (mut ta, mut tb) = (flag("transA"), flag("transB"));
    let (a, b) = (node.input[0].as_str(), node.input[1].as_str());
    let (sa, sb, so) = (t.shape(a)?, t.shape(b)?, t.shape(&node.output[0])?);
    let alpha = node.float("alpha").unwrap_or(1.0);
    let output_gradient = g.to_string();
    let g = if alpha == 1.0 { g.to_string() } else { times(t, g, alpha) };

    // Vectors as matrices.
    let mut va = sa.clone();
    let mut vb = sb.clone();
    let mut vg = so.clone();
    if sa.len() == 1 {
        (va, ta) = (vec![1, sa[0]], false);
        vg.insert(so.len() - (sb.len() > 1) as usize, 1);
    }
    if sb.len() == 1 {
        (vb, tb) = (vec![sb[0], 1], false);
        vg.push(1);
    }
    if vb.len() == 2 && !ta && va.len() > 2 {
        let rows = va[..va.len() - 1].iter().product();
        (va, vg) = (vec![rows, va[va.len() - 1]], vec![rows, vg[vg.len() - 1]]);
    }
    let (ra, rb, rg) = (va.len(), vb.len(), vg.len());
    let g2 = t.reshape(&g, &vg);
    let batch = &vg[..rg - 2];
    let of = |tail: &[usize]| -> Vec<usize> { batch.iter().chain(&tail[tail.len() - 2..]).copied().collect() };
    let transposed = |on: bool| vec![int_attribute("transB", on as i64)];
    // The gradients of a matrix and of a bias beside it are one operator.
    let sums_bias = node.op_type() == "Linear" && node.input.get(2).is_some_and(|c| t.requires_grad(c));
    let mut summed = None;
    let is_fused = t.fuses() && (ra, rb, ta) == (2, 2, false) && va[0] >= ROWS_OF_A_FUSED_PRODUCT;
    t.give(node, 0, |t, _| {
        let b = t.reshape(b, &vb);
        let p = match ta {
            _ if is_fused => t.fused("Linear", &[&g2, &b], 1, transposed(!tb)).remove(0),
            true => t.product((&b, tb), (&g2, true), (rb, rg)),
            false => t.product((&g2, false), (&b, !tb), (rg, rb)),
        };
        let p = t.unbroadcast(&p, &of(&va), &va);
        Ok(t.reshape(&p, &sa))
    })?;
    t.give(node, 1, |t, _| {
        let a = t.reshape(a, &va);
        let p = match tb {
            _ if is_fused => {
                let mut outputs = t.fused("WeightGradient", &[&a, &g2], 1 + sums_bias as usize, transposed(tb));
                summed = outputs.drain(1..).next();
                outputs.remove(0)
            }
            true => t.product((&g2, true), (&a, ta), (rg, ra)),
            false => t.product((&a, !ta), (&g2, false), (ra, rg)),
        };
        let p = t.unbroadcast(&p, &of(&vb), &vb);
        Ok(t.reshape(&p, &sb))
    })?;
    t.give(node, 2, |t, c| {
        let to = t.shape(c)?;
        if let Some(sum) = summed {
            return Ok(t.reshape(&sum, &to));
        }
        let sum = t.unbroadcast(&output_gradient, &so, &to);
        let beta = node.float("beta").unwrap_or(1.0);
        Ok(if beta == 1.0 { sum } else { times(t, &sum, beta) })
    })
}

/// The gradient of an operand is an Einsum of the output's gradient and the other operands.
pub fn einsum(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let ranks: Vec<usize> = node.input.iter().map(|x| Ok(t.shape(x)?.len())).collect::<Result<_>>()?;
    let equation = explicit_einsum(node.string("equation").unwrap_or(""), &ranks);
    let Some((left, output)) = equation.as_deref().and_then(|e| e.split_once("->")) else {
        return Err(refuse(node, "an equation that does not fit its inputs"));
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.iter().any(|term| term.chars().enumerate().any(|(i, c)| term.chars().skip(i + 1).any(|d| c == d))) {
        return Err(refuse(node, "an index that one operand repeats"));
    }
    let mut sizes = std::collections::HashMap::new();
    for (term, x) in terms.iter().zip(&node.input) {
        for (c, n) in term.chars().zip(t.shape(x)?) {
            let size = sizes.entry(c).or_insert(1);
            *size = n.max(*size);
        }
    }
    for (j, term) in terms.iter().enumerate() {
        t.give(node, j, |t, x| {
            let others: Vec<usize> = (0..terms.len()).filter(|&o| o != j).collect();
            let known = |c: char| output.contains(c) || others.iter().any(|&o| terms[o].contains(c));
            // Indices that this operand alone has are summed over: each element gets the gradient of the sum.
            let reached: String = term.chars().filter(|&c| known(c)).collect();
            let left: Vec<&str> = std::iter::once(output).chain(others.iter().map(|&o| terms[o])).collect();
            let inputs: Vec<&str> = std::iter::once(g).chain(others.iter().map(|&o| node.input[o].as_str())).collect();
            let equation = string_attribute("equation", &format!("{}->{reached}", left.join(",")));
            let mut out = t.op_with("Einsum", &inputs, vec![equation]);
            let whole: Vec<usize> = term.chars().map(|c| sizes[&c]).collect();
            if reached.len() < term.len() {
                let one: Vec<usize> = term.chars().map(|c| if known(c) { sizes[&c] } else { 1 }).collect();
                out = t.reshape(&out, &one);
                let target = t.ints(&whole.iter().map(|&n| n as i64).collect::<Vec<_>>());
                out = t.op("Expand", &[&out, &target]);
            }
            let to = t.shape(x)?;
            Ok(t.unbroadcast(&out, &whole, &to))
        })?;
    }
    Ok(())
}

/// Where the windows of a convolution or pooling lie along each spatial axis.
pub struct Window {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    before: Vec<usize>,
    /// How far the last window reaches behind the last element; negative where it does not reach it.
    overhang: Vec<i64>,
    /// What the node itself pads behind.
    behind: Vec<i64>,
}

impl Window {
    /// Windows over `from` elements (of the larger side, for a transposed convolution) that have `to` places.
    pub fn new(node: &NodeProto, kernel: &[usize], from: &[usize], to: &[usize]) -> Result<Self> {
        let rank = kernel.len();
        if from.len() != rank || to.len() != rank || node.attribute("output_shape").is_some() {
            return Err(refuse(node, "this form"));
        }
        let fixed = |name: &str, default: i64, n: usize| -> Vec<i64> {
            node.ints(name).filter(|v| v.len() == n).map(<[i64]>::to_vec).unwrap_or(vec![default; n])
        };
        let (strides, dilations) = (fixed("strides", 1, rank), fixed("dilations", 1, rank));
        let pads = fixed("pads", 0, 2 * rank);
        let reach = |i: usize| (to[i] as i64 - 1) * strides[i] + dilations[i] * (kernel[i] as i64 - 1) + 1;
        let (before, behind): (Vec<i64>, Vec<i64>) = (0..rank)
            .map(|i| {
                let total = (reach(i) - from[i] as i64).max(0);
                match node.string("auto_pad").unwrap_or("NOTSET") {
                    "SAME_UPPER" => (total / 2, total - total / 2),
                    "SAME_LOWER" => (total - total / 2, total / 2),
                    "VALID" => (0, 0),
                    _ => (pads[i], pads[rank + i]),
                }
            })
            .unzip();
        if before.iter().chain(&behind).any(|&p| p < 0) || strides.iter().chain(&dilations).any(|&s| s < 1) {
            return Err(refuse(node, "negative padding"));
        }
        let natural = |list: &[i64]| list.iter().map(|&v| v as usize).collect::<Vec<usize>>();
        Ok(Window {
            kernel: kernel.to_vec(),
            overhang: (0..rank).map(|i| reach(i) - before[i] - from[i] as i64).collect(),
            strides: natural(&strides),
            dilations: natural(&dilations),
            before: natural(&before),
            behind,
        })
    }

    fn attributes(&self, groups: usize, strides: &[usize], dilations: &[usize]) -> Vec<AttributeProto> {
        let list = |name: &str, v: &[usize]| ints_attribute(name, &v.iter().map(|&v| v as i64).collect::<Vec<_>>());
        let behind = self.overhang.iter().map(|&o| o.max(0) as usize);
        let pads: Vec<usize> = self.before.iter().copied().chain(behind).collect();
        vec![
            list("strides", strides),
            list("dilations", dilations),
            list("pads", &pads),
            int_attribute("group", groups as i64),
        ]
    }

    /// Attributes of the Conv that has exactly these windows.
    pub fn forward(&self, groups: usize) -> Vec<AttributeProto> {
        self.attributes(groups, &self.strides, &self.dilations)
    }

    /// Attributes of the ConvTranspose that puts windows back where they were taken.
    pub fn transposed(&self, groups: usize) -> Vec<AttributeProto> {
        let mut attributes = self.forward(groups);
        let missing: Vec<i64> = self.overhang.iter().map(|&o| (-o).max(0)).collect();
        attributes.push(ints_attribute("output_padding", &missing));
        attributes
    }

    /// Elements along axis `i` that the window at `o` covers, of `n` there are; with padding or without.
    pub fn covered(&self, i: usize, o: usize, n: usize, padded: bool) -> usize {
        let first = (o * self.strides[i]) as i64 - self.before[i] as i64;
        let (low, high) = if padded { (-(self.before[i] as i64), n as i64 + self.behind[i]) } else { (0, n as i64) };
        let places = (0..self.kernel[i]).map(|k| first + (k * self.dilations[i]) as i64);
        places.filter(|p| (low..high).contains(p)).count().max(1)
    }

    /// [maps, channels, spatial...] with what the windows reach outside of it filled with a value.
    pub fn padded(&self, t: &mut Backward, x: &str, value: f32) -> String {
        let behind: Vec<i64> = self.overhang.iter().map(|&o| o.max(0)).collect();
        if self.before.iter().all(|&p| p == 0) && behind.iter().all(|&p| p == 0) {
            return x.to_string();
        }
        let before = self.before.iter().map(|&p| p as i64);
        let pads: Vec<i64> = [0, 0].into_iter().chain(before).chain([0, 0]).chain(behind).collect();
        let (pads, value) = (t.ints(&pads), t.scalar(value));
        t.op("Pad", &[x, &pads, &value])
    }

    /// Of every window the element at `place`, from a value that was padded.
    pub fn element(&self, t: &mut Backward, x: &str, place: &[usize], to: &[usize]) -> String {
        let rank = place.len();
        let starts: Vec<i64> = (0..rank).map(|i| (place[i] * self.dilations[i]) as i64).collect();
        let ends: Vec<i64> = (0..rank).map(|i| starts[i] + ((to[i] - 1) * self.strides[i]) as i64 + 1).collect();
        let axes: Vec<i64> = (2..2 + rank as i64).collect();
        let steps: Vec<i64> = self.strides.iter().map(|&s| s as i64).collect();
        let operands = [t.ints(&starts), t.ints(&ends), t.ints(&axes), t.ints(&steps)];
        t.op("Slice", &[x, &operands[0], &operands[1], &operands[2], &operands[3]])
    }
}

pub fn conv(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let (x, w) = (node.input[0].as_str(), node.input[1].as_str());
    let (sx, sw, so) = (t.shape(x)?, t.shape(w)?, t.shape(&node.output[0])?);
    let groups = node.int("group").unwrap_or(1).max(1) as usize;
    t.give(node, 2, |t, _| {
        let axes: Vec<usize> = (0..so.len()).filter(|&a| a != 1).collect();
        Ok(t.reduce("ReduceSum", g, &axes, false))
    })?;
    let window = Window::new(node, &sw[2..], &sx[2..], &so[2..])?;
    let tiled = window.strides == sw[2..]
        && window.dilations.iter().all(|&d| d == 1)
        && window.before.iter().all(|&p| p == 0)
        && window.overhang.iter().all(|&o| o == 0);
    if tiled && groups == 1 {
        return patches(t, node, g);
    }
    t.give(node, 0, |t, _| Ok(t.op_with("ConvTranspose", &[g, w], window.transposed(groups))))?;
    t.give(node, 1, |t, _| Ok(kernel_gradient(t, &window, (x, &sx), (g, &so), &sw, groups)))
}

/// The adjoint of a convolution: its gradient is a convolution.
pub fn conv_transpose(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let (x, w) = (node.input[0].as_str(), node.input[1].as_str());
    let (sx, sw, so) = (t.shape(x)?, t.shape(w)?, t.shape(&node.output[0])?);
    let groups = node.int("group").unwrap_or(1).max(1) as usize;
    t.give(node, 2, |t, _| {
        let axes: Vec<usize> = (0..so.len()).filter(|&a| a != 1).collect();
        Ok(t.reduce("ReduceSum", g, &axes, false))
    })?;
    let window = Window::new(node, &sw[2..], &so[2..], &sx[2..])?;
    t.give(node, 0, |t, _| Ok(t.op_with("Conv", &[g, w], window.forward(groups))))?;
    t.give(node, 1, |t, _| Ok(kernel_gradient(t, &window, (g, &so), (x, &sx), &sw, groups)))
}

/// The gradient of a kernel [places' channels, windows' channels / groups, kernel...], from the value that the windows
/// lie in and the one that has an element for each window: a convolution of the two in which batch and channels change
/// places, and strides and dilations.
fn kernel_gradient(
    t: &mut Backward,
    window: &Window,
    (x, sx): (&str, &[usize]),
    (g, sg): (&str, &[usize]),
    kernel: &[usize],
    groups: usize,
) -> String {
    let (batch, channels, rank) = (sx[0], sx[1] / groups, sx.len());
    let spatial = &sx[2..];
    let mut swap: Vec<usize> = (0..rank).collect();
    swap.swap(0, 1);
    let images = if groups == 1 {
        t.transpose(x, &swap)
    } else {
        let apart = t.reshape(x, &[&[batch, groups, channels], spatial].concat());
        let perm: Vec<usize> = [2, 1, 0].into_iter().chain(3..rank + 1).collect();
        let swapped = t.transpose(&apart, &perm);
        t.reshape(&swapped, &[&[channels, groups * batch], spatial].concat())
    };
    let filters = t.transpose(g, &swap);
    let mut out =
        t.op_with("Conv", &[&images, &filters], window.attributes(groups, &window.dilations, &window.strides));
    for i in 0..rank - 2 {
        // Elements that no window reaches make the result longer than the kernel.
        if window.overhang[i] < 0 && (-window.overhang[i]) as usize >= window.dilations[i] {
            out = t.part(&out, 2 + i, 0, kernel[2 + i]);
        }
    }
    debug_assert_eq!(sg[1], kernel[0]);
    t.transpose(&out, &swap)
}

/// A patch embedding (stride = kernel, no padding): a product over patches.
fn patches(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let (x, w) = (node.input[0].as_str(), node.input[1].as_str());
    let (sx, sw, so) = (t.shape(x)?, t.shape(w)?, t.shape(&node.output[0])?);
    let (batch, channels, out, rank) = (sx[0], sx[1], so[1], sx.len() - 2);
    let (kernel, places) = (&sw[2..], &so[2..]);
    let count = channels * kernel.iter().product::<usize>();
    let rows = batch * places.iter().product::<usize>();
    // [batch, channels, (place, element) of each axis] and [batch, places, channels, elements].
    let pairs = places.iter().zip(kernel).flat_map(|(&p, &k)| [p, k]);
    let apart: Vec<usize> = [batch, channels].into_iter().chain(pairs).collect();
    let perm: Vec<usize> =
        std::iter::once(0).chain((0..rank).map(|i| 2 + 2 * i)).chain([1]).chain((0..rank).map(|i| 3 + 2 * i)).collect();
    let flat = {
        let order: Vec<usize> = std::iter::once(0).chain(2..2 + rank).chain([1]).collect();
        let last = t.transpose(g, &order);
        t.reshape(&last, &[rows, out])
    };
    t.give(node, 1, |t, _| {
        let pixels = t.reshape(x, &apart);
        let pixels = t.transpose(&pixels, &perm);
        let pixels = t.reshape(&pixels, &[rows, count]);
        let p = t.product((&flat, true), (&pixels, false), (2, 2));
        Ok(t.reshape(&p, &sw))
    })?;
    t.give(node, 0, |t, _| {
        let weights = t.reshape(w, &[out, count]);
        let pixels = t.product((&flat, false), (&weights, false), (2, 2));
        let together: Vec<usize> = perm.iter().map(|&p| apart[p]).collect();
        let pixels = t.reshape(&pixels, &together);
        let inverse: Vec<usize> = (0..perm.len()).map(|i| perm.iter().position(|&p| p == i).unwrap_or(i)).collect();
        let pixels = t.transpose(&pixels, &inverse);
        Ok(t.reshape(&pixels, &sx))
    })
}
