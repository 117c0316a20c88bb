//! Operations on pixels, as Pillow defines them; nothing here is random.
//!
//! Pictures are bytes `[rows, columns, channels]` with 1 channel (Pillow's mode `L`) or 3 (`RGB`). The definitions are those of
//! Pillow's `ImageOps`, `ImageEnhance` and `Image.transform`, checked against its results.

use ndarray::{Array3, ArrayView2, Axis, Zip, s};

use super::preprocess::{Interpolation, Pixels, luma};

/// An operation with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Operation {
    /// Stretches each channel to the whole range.
    AutoContrast,
    /// Makes the values of each channel equally frequent.
    Equalize,
    /// Negates each value.
    Invert,
    /// Turns counter-clockwise around the middle, by degrees.
    Rotate(f64),
    /// Keeps that many of the highest bits.
    Posterize(u32),
    /// Negates the values from a threshold on.
    Solarize(u32),
    /// Adds to the values below 128.
    SolarizeAdd(u32),
    /// Moves away from grey; 1 changes nothing.
    Color(f64),
    /// Moves away from the mean luma; 1 changes nothing.
    Contrast(f64),
    /// Moves away from black; 1 changes nothing.
    Brightness(f64),
    /// Moves away from a smoothed picture; 1 changes nothing.
    Sharpness(f64),
    /// Shifts each row by this many columns for every row above it.
    ShearX(f64),
    /// Shifts each column by this many rows for every column left of it.
    ShearY(f64),
    /// Shifts to the left by a share of the width.
    TranslateX(f64),
    /// Shifts upwards by a share of the height.
    TranslateY(f64),
}

impl Operation {
    /// The picture after the operation. Where a transform finds no pixel, it puts the colour `fill`.
    pub fn apply(self, pixels: Pixels, interpolation: Interpolation, fill: &[u8]) -> Pixels {
        let (rows, columns, _) = pixels.dim();
        let (height, width) = (rows as f64, columns as f64);
        let moved = |matrix| affine(&pixels, matrix, interpolation, fill);
        match self {
            Operation::AutoContrast => by_table(pixels, |channel| stretching(histogram(channel))),
            Operation::Equalize => by_table(pixels, |channel| equalizing(histogram(channel))),
            Operation::Invert => pixels.mapv_into(|value| 255 - value),
            Operation::Posterize(bits) => {
                let mask = (0xff00u32 >> bits.min(8)) as u8;
                pixels.mapv_into(|value| value & mask)
            }
            Operation::Solarize(threshold) => {
                pixels.mapv_into(|value| if u32::from(value) < threshold { value } else { 255 - value })
            }
            Operation::SolarizeAdd(sum) => {
                let sum = sum.min(255) as u8;
                pixels.mapv_into(|value| if value < 128 { value.saturating_add(sum) } else { value })
            }
            Operation::Color(factor) => {
                let grey = lumas(&pixels);
                blend(
                    &grey.broadcast(pixels.dim()).map_or_else(|| pixels.clone(), |grey| grey.to_owned()),
                    pixels,
                    factor,
                )
            }
            Operation::Contrast(factor) => {
                let lumas = lumas(&pixels);
                let sum: u64 = lumas.iter().map(|&value| u64::from(value)).sum();
                let mean = (sum as f64 / lumas.len().max(1) as f64 + 0.5) as u8;
                blend(&Array3::from_elem(pixels.dim(), mean), pixels, factor)
            }
            Operation::Brightness(factor) => blend(&Array3::zeros(pixels.dim()), pixels, factor),
            Operation::Sharpness(factor) => blend(&smooth(&pixels), pixels, factor),
            Operation::Rotate(degrees) => {
                // Pillow rounds the matrix, too, so that right angles are exact.
                let rounded = |value: f64| (value * 1e15).round() / 1e15;
                let angle = -degrees.to_radians();
                let (sine, cosine) = (rounded(angle.sin()), rounded(angle.cos()));
                let (x, y) = (width / 2.0, height / 2.0);
                moved([cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y])
            }
            Operation::ShearX(factor) => moved([1.0, factor, 0.0, 0.0, 1.0, 0.0]),
            Operation::ShearY(factor) => moved([1.0, 0.0, 0.0, factor, 1.0, 0.0]),
            Operation::TranslateX(share) => moved([1.0, 0.0, share * width, 0.0, 1.0, 0.0]),
            Operation::TranslateY(share) => moved([1.0, 0.0, 0.0, 0.0, 1.0, share * height]),
        }
    }
}

/// The mirror image.
pub(super) fn flip(mut pixels: Pixels) -> Pixels {
    pixels.invert_axis(Axis(1));
    pixels
}

/// The picture with a border of `width` black pixels on each side.
pub(super) fn pad(pixels: &Pixels, width: usize) -> Pixels {
    let (rows, columns, channels) = pixels.dim();
    let mut padded = Array3::zeros((rows + 2 * width, columns + 2 * width, channels));
    padded.slice_mut(s![width..width + rows, width..width + columns, ..]).assign(pixels);
    padded
}

fn by_table(mut pixels: Pixels, table: impl Fn(ArrayView2<u8>) -> [u8; 256]) -> Pixels {
    for mut channel in pixels.axis_iter_mut(Axis(2)) {
        let table = table(channel.view());
        channel.mapv_inplace(|value| table[usize::from(value)]);
    }
    pixels
}

fn histogram(channel: ArrayView2<u8>) -> [usize; 256] {
    let mut histogram = [0; 256];
    channel.iter().for_each(|&value| histogram[usize::from(value)] += 1);
    histogram
}

const IDENTITY: fn(usize) -> u8 = |value| value as u8;

fn stretching(histogram: [usize; 256]) -> [u8; 256] {
    let used = |&value: &usize| histogram[value] > 0;
    match ((0..256).find(used), (0..256).rfind(used)) {
        (Some(low), Some(high)) if low < high => {
            let scale = 255.0 / (high - low) as f64;
            let offset = -(low as f64) * scale;
            std::array::from_fn(|value| (value as f64 * scale + offset) as u8)
        }
        _ => std::array::from_fn(IDENTITY),
    }
}

fn equalizing(histogram: [usize; 256]) -> [u8; 256] {
    let last = histogram.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
    let step = (histogram.iter().sum::<usize>() - last) / 255;
    if step == 0 {
        return std::array::from_fn(IDENTITY);
    }
    let mut below = step / 2;
    histogram.map(|count| {
        let value = (below / step).min(255) as u8;
        below += count;
        value
    })
}

/// The luma of every pixel, `[rows, columns, 1]`.
fn lumas(pixels: &Pixels) -> Pixels {
    match pixels.dim() {
        (rows, columns, 3) => Array3::from_shape_fn((rows, columns, 1), |(y, x, _)| {
            luma([0, 1, 2].map(|channel| pixels[[y, x, channel]]))
        }),
        _ => pixels.clone(),
    }
}

/// The picture moved away from `degenerate`, as `Image.blend` computes it.
fn blend(degenerate: &Pixels, mut pixels: Pixels, factor: f64) -> Pixels {
    let factor = factor as f32;
    Zip::from(&mut pixels).and(degenerate).for_each(|value, &from| {
        let (from, to) = (f32::from(from), f32::from(*value));
        // The conversion cuts off at 0 and 255.
        *value = (from + factor * (to - from)) as u8;
    });
    pixels
}

/// Pillow's `ImageFilter.SMOOTH`: a mean of the 3 x 3 neighbours in which the middle counts five times. The border stays.
fn smooth(pixels: &Pixels) -> Pixels {
    let (rows, columns, _) = pixels.dim();
    let mut result = pixels.clone();
    if rows < 3 || columns < 3 {
        return result;
    }
    Zip::indexed(&mut result.slice_mut(s![1..rows - 1, 1..columns - 1, ..])).for_each(|(y, x, channel), value| {
        let window = pixels.slice(s![y..y + 3, x..x + 3, channel]);
        let sum: u32 = window.iter().map(|&neighbour| u32::from(neighbour)).sum::<u32>() + 4 * u32::from(*value);
        *value = (sum as f32 / 13.0 + 0.5) as u8;
    });
    result
}

/// The picture whose pixel at (x, y) is the one at (a x + b y + c, d x + e y + f), as `Image.transform` computes it.
/// Lanczos, which Pillow refuses here, is bicubic.
fn affine(pixels: &Pixels, [a, b, c, d, e, f]: [f64; 6], interpolation: Interpolation, fill: &[u8]) -> Pixels {
    let (rows, columns, channels) = pixels.dim();
    let mut result = Array3::from_shape_fn(pixels.dim(), |(_, _, channel)| fill.get(channel).copied().unwrap_or(0));
    let support: &[isize] = match interpolation {
        Interpolation::Nearest => &[0],
        Interpolation::Bilinear => &[0, 1],
        Interpolation::Bicubic | Interpolation::Lanczos => &[-1, 0, 1, 2],
    };
    let kernel = |fraction: f64| -> [f64; 4] {
        match support.len() {
            1 => [1.0, 0.0, 0.0, 0.0],
            2 => [1.0 - fraction, fraction, 0.0, 0.0],
            _ => cubic(fraction),
        }
    };
    let half = if support.len() == 1 { 0.0 } else { 0.5 };
    let clamped = |position: isize, side: usize| position.clamp(0, side as isize - 1) as usize;
    for row in 0..rows {
        for column in 0..columns {
            let (x, y) = (column as f64 + 0.5, row as f64 + 0.5);
            let (x, y) = (a * x + b * y + c, d * x + e * y + f);
            if !(0.0..columns as f64).contains(&x) || !(0.0..rows as f64).contains(&y) {
                continue;
            }
            let (x, y) = (x - half, y - half);
            let (left, top) = (x.floor(), y.floor());
            let (across, down) = (kernel(x - left), kernel(y - top));
            for channel in 0..channels {
                let mut sum = 0.0;
                for (&step, weight) in support.iter().zip(down) {
                    let line = clamped(top as isize + step, rows);
                    let along: f64 = support
                        .iter()
                        .zip(across)
                        .map(|(&step, weight)| {
                            weight * f64::from(pixels[[line, clamped(left as isize + step, columns), channel]])
                        })
                        .sum();
                    sum += weight * along;
                }
                // What whole numbers weigh must not be lost to rounding; the conversion cuts off at 0 and 255.
                result[[row, column, channel]] = (sum + 1e-9) as u8;
            }
        }
    }
    result
}

/// The weights of the four neighbours for cubic convolution with a = -1, which Pillow transforms with.
fn cubic(fraction: f64) -> [f64; 4] {
    let (t, t2, t3) = (fraction, fraction * fraction, fraction * fraction * fraction);
    [-t + 2.0 * t2 - t3, 1.0 - 2.0 * t2 + t3, t + t2 - t3, -t2 + t3]
}
