//! Resize, and pooling over windows.

use super::super::tape::Backward;
use super::contraction::Window;
use super::elementwise::times;
use super::operands::{list, refuse};
use crate::axes::window_length;
use crate::error::Result;
use crate::graph::Attributes;
use crate::onnx::proto::NodeProto;

/// Resampling is linear along each axis: the gradient is a product with the transposed matrix of its coefficients.
pub fn resize(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let interpolation = Interpolation::read(node)?;
    t.give(node, 0, |t, x| {
        let (from, mut shape) = (t.shape(x)?, t.shape(&node.output[0])?);
        let mut out = g.to_string();
        let resized: Vec<usize> = (0..from.len()).filter(|&a| from[a] != shape[a]).collect();
        for axis in resized {
            let (n, m) = (from[axis], shape[axis]);
            let scale = interpolation.scale(t, node, axis, from.len()).unwrap_or(m as f64 / n as f64);
            let matrix = interpolation.matrix(n, m, scale);
            let mut transposed = vec![0.0; n * m];
            for i in 0..m {
                (0..n).for_each(|j| transposed[j * m + i] = matrix[i * n + j] as f32);
            }
            let matrix = t.floats(&[n, m], &transposed);
            let (before, after) =
                (shape[..axis].iter().product::<usize>(), shape[axis + 1..].iter().product::<usize>());
            let rows = t.reshape(&out, &[before, m, after]);
            let product = t.op("MatMul", &[&matrix, &rows]);
            shape[axis] = n;
            out = t.reshape(&product, &shape);
        }
        Ok(out)
    })
}

/// How a Resize (opset 11 to 19) takes its samples.
struct Interpolation {
    mode: String,
    coordinates: String,
    nearest: String,
    cubic: f64,
    antialias: bool,
    exclude_outside: bool,
}

impl Interpolation {
    fn read(node: &NodeProto) -> Result<Self> {
        let mode = node.string("mode").unwrap_or("nearest").to_string();
        let coordinates = node.string("coordinate_transformation_mode").unwrap_or("half_pixel").to_string();
        let known = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"];
        if !matches!(mode.as_str(), "nearest" | "linear" | "cubic") || !known.contains(&coordinates.as_str()) {
            return Err(refuse(node, &format!("mode `{mode}` with coordinates `{coordinates}`")));
        }
        Ok(Interpolation {
            mode,
            coordinates,
            nearest: node.string("nearest_mode").unwrap_or("round_prefer_floor").to_string(),
            cubic: node.float("cubic_coeff_a").unwrap_or(-0.75) as f64,
            antialias: node.int("antialias").unwrap_or(0) != 0,
            exclude_outside: node.int("exclude_outside").unwrap_or(0) != 0,
        })
    }

    /// The scale that the node itself gives for an axis; sizes give none.
    fn scale(&self, t: &Backward, node: &NodeProto, axis: usize, rank: usize) -> Option<f64> {
        let name = node.input.get(2).filter(|x| !x.is_empty())?;
        let known = t
            .typing
            .known
            .get(name.as_str())
            .cloned()
            .or_else(|| crate::axes::arithmetic::ConstValue::read(t.typing.weights.get(name.as_str())?))?;
        (known.data.len() == rank).then(|| known.data.iter().nth(axis).copied()).flatten()
    }

    fn kernel(&self, x: f64) -> f64 {
        let x = x.abs();
        let a = self.cubic;
        match (self.mode.as_str(), x) {
            ("linear", x) => (1.0 - x).max(0.0),
            (_, x) if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            (_, x) if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
            _ => 0.0,
        }
    }

    /// Coefficients [m, n] of m samples of n elements.
    fn matrix(&self, n: usize, m: usize, scale: f64) -> Vec<f64> {
        let mut out = vec![0.0; m * n];
        let reach = if self.mode == "linear" { 1.0 } else { 2.0 };
        let stretch = if self.antialias && scale < 1.0 { 1.0 / scale } else { 1.0 };
        for i in 0..m {
            let x = i as f64;
            let at = match self.coordinates.as_str() {
                "align_corners" if m > 1 => x * (n - 1) as f64 / (m - 1) as f64,
                "align_corners" => 0.0,
                "asymmetric" => x / scale,
                "pytorch_half_pixel" if m == 1 => 0.0,
                _ => (x + 0.5) / scale - 0.5,
            };
            if self.mode == "nearest" {
                let source = match self.nearest.as_str() {
                    "floor" => at.floor(),
                    "ceil" => at.ceil(),
                    "round_prefer_ceil" => (at + 0.5).floor(),
                    _ => (at - 0.5).ceil(),
                };
                out[i * n + (source as i64).clamp(0, n as i64 - 1) as usize] = 1.0;
                continue;
            }
            let (first, last) = ((at - reach * stretch).ceil() as i64, (at + reach * stretch).floor() as i64);
            let inside = |j: i64| (0..n as i64).contains(&j);
            let weights: Vec<(i64, f64)> = (first..=last)
                .filter(|&j| inside(j) || !(self.antialias || self.exclude_outside))
                .map(|j| (j, self.kernel((j as f64 - at) / stretch)))
                .collect();
            let total: f64 = weights.iter().map(|w| w.1).sum();
            for (j, w) in weights {
                // Samples outside are those at the border.
                out[i * n + j.clamp(0, n as i64 - 1) as usize] += w / total;
            }
        }
        out
    }
}

fn kernel(node: &NodeProto) -> Vec<usize> {
    node.ints("kernel_shape").unwrap_or_default().iter().map(|&k| k.max(1) as usize).collect()
}

/// The mean of each window: every element of it gets its share.
pub fn average_pool(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    t.give(node, 0, |t, x| {
        let (from, to) = (t.shape(x)?, t.shape(&node.output[0])?);
        let kernel = kernel(node);
        let window = Window::new(node, &kernel, &from[2..], &to[2..])?;
        // Padding counts where it is asked for, but never what overhangs it.
        let padded = node.int("count_include_pad").unwrap_or(0) != 0;
        let shares: Vec<Vec<f32>> = (0..kernel.len())
            .map(|i| (0..to[2 + i]).map(|o| window.covered(i, o, from[2 + i], padded) as f32).collect())
            .collect();
        let counts = shares
            .iter()
            .fold(vec![1.0], |all: Vec<f32>, axis| all.iter().flat_map(|a| axis.iter().map(move |b| a * b)).collect());
        let whole = counts.iter().all(|c| *c == counts[0]);
        let mut one_channel = vec![from[0] * from[1], 1];
        one_channel.extend(&to[2..]);
        let g = t.reshape(g, &one_channel);
        let g = if whole {
            times(t, &g, 1.0 / counts[0])
        } else {
            let mut shape = vec![1, 1];
            shape.extend(&to[2..]);
            let inverse: Vec<f32> = counts.iter().map(|c| 1.0 / c).collect();
            let inverse = t.floats(&shape, &inverse);
            t.op("Mul", &[&g, &inverse])
        };
        let mut shape = vec![1, 1];
        shape.extend(&kernel);
        let ones = t.floats(&shape, &vec![1.0; kernel.iter().product()]);
        let spread = t.op_with("ConvTranspose", &[&g, &ones], window.transposed(1));
        Ok(t.reshape(&spread, &from))
    })
}

/// The largest of each window. Each element of a window is a channel, and elements that tie share the gradient.
pub fn max_pool(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let y = &node.output[0];
    t.give(node, 0, |t, x| {
        let (from, to) = (t.shape(x)?, t.shape(y)?);
        let kernel = kernel(node);
        let window = Window::new(node, &kernel, &from[2..], &to[2..])?;
        let maps = from[0] * from[1];
        let one = |spatial: &[usize]| [&[maps, 1], spatial].concat();
        let x = t.reshape(x, &one(&from[2..]));
        let padded = window.padded(t, &x, f32::MIN);
        let elements: usize = kernel.iter().product();
        let parts: Vec<String> =
            (0..elements).map(|e| window.element(t, &padded, &place(e, &kernel), &to[2..])).collect();
        let parts = t.concat(&parts, 1);
        let (y, g) = (t.reshape(y, &one(&to[2..])), t.reshape(g, &one(&to[2..])));
        let equal = t.op("Equal", &[&parts, &y]);
        let hot = t.indicator(&equal);
        let count = t.reduce("ReduceSum", &hot, &[1], true);
        let share = t.op("Div", &[&g, &count]);
        let shares = t.op("Mul", &[&hot, &share]);
        // Back to where each element of the window lay.
        let mut identity = vec![0.0; elements * elements];
        (0..elements).for_each(|e| identity[e * elements + e] = 1.0);
        let identity = t.floats(&[&[elements, 1], &kernel[..]].concat(), &identity);
        let spread = t.op_with("ConvTranspose", &[&shares, &identity], window.transposed(1));
        Ok(t.reshape(&spread, &from))
    })
}

/// Blocks that were added up: each takes the gradient from where it lay, by a convolution whose filters each pick one
/// element.
pub fn columns_to_image(t: &mut Backward, node: &NodeProto, g: &str) -> Result<()> {
    let block = list(t, node, "block_shape", 2)?.ok_or_else(|| refuse(node, "a computed block shape"))?;
    t.give(node, 0, |t, x| {
        let (from, to) = (t.shape(x)?, t.shape(&node.output[0])?);
        let block: Vec<usize> = block.iter().map(|&b| b.max(1) as usize).collect();
        let count = |i: usize| window_length(node, block.len(), i, block[i], to[2 + i] as i64, false).0.max(1) as usize;
        let places: Vec<usize> = (0..block.len()).map(count).collect();
        let window = Window::new(node, &block, &to[2..], &places)?;
        let elements: usize = block.iter().product();
        let maps = t.reshape(g, &[&[to[0] * to[1], 1], &to[2..]].concat());
        let mut identity = vec![0.0; elements * elements];
        (0..elements).for_each(|e| identity[e * elements + e] = 1.0);
        let identity = t.floats(&[&[elements, 1], &block[..]].concat(), &identity);
        let columns = t.op_with("Conv", &[&maps, &identity], window.forward(1));
        Ok(t.reshape(&columns, &from))
    })
}

/// Where the e-th element of a window lies.
fn place(e: usize, kernel: &[usize]) -> Vec<usize> {
    let mut rest = e;
    let mut place = vec![0; kernel.len()];
    for (p, &k) in place.iter_mut().zip(kernel).rev() {
        *p = rest % k;
        rest /= k;
    }
    place
}
