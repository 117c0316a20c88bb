//! Operations on pixels, as Pillow defines them; nothing here is random.
//!
//! Pictures are bytes `[rows, columns, channels]` with 1 channel (Pillow's mode `L`) or 3 (`RGB`). The definitions are
//! those of Pillow's `ImageOps`, `ImageEnhance` and `Image.transform`, checked against its results.

use ndarray::{Array3, ArrayView2, Axis, Zip, s};

use super::super::decode::{Pixels, luma};
use super::preprocess::Interpolation;

/// An operation with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Operation {
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
pub(crate) fn flip(mut pixels: Pixels) -> Pixels {
    pixels.invert_axis(Axis(1));
    pixels
}

/// The picture with a border of `width` black pixels on each side.
pub(crate) fn pad(pixels: &Pixels, width: usize) -> Pixels {
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

/// Pillow's `ImageFilter.SMOOTH`: a mean of the 3 x 3 neighbours in which the middle counts five times. The border
/// stays.
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
    let (first, support) = match interpolation {
        Interpolation::Nearest => (0, 1),
        Interpolation::Bilinear => (0, 2),
        Interpolation::Bicubic | Interpolation::Lanczos => (-1, 4),
    };
    let middle = if support == 1 { 0.0 } else { 0.5 };
    // The neighbours of a position along an axis of the given length, the outermost ones repeated, and what is beyond
    // the first of the inner two.
    let neighbours = |position: f64, length: usize| {
        let below = (position - middle).floor();
        let at = |step: isize| (below as isize + first + step).clamp(0, length as isize - 1) as usize;
        ([0, 1, 2, 3].map(at), position - middle - below)
    };
    for row in 0..rows {
        for column in 0..columns {
            let (x, y) = (column as f64 + 0.5, row as f64 + 0.5);
            let (x, y) = (a * x + b * y + c, d * x + e * y + f);
            if !(0.0..columns as f64).contains(&x) || !(0.0..rows as f64).contains(&y) {
                continue;
            }
            let (across, right) = neighbours(x, columns);
            let (down, below) = neighbours(y, rows);
            for channel in 0..channels {
                let mut lines = [0.0; 4];
                for (line, &row) in lines.iter_mut().zip(&down[..support]) {
                    *line = interpolate(across.map(|column| f64::from(pixels[[row, column, channel]])), right, support);
                }
                // The conversion cuts off at 0 and 255.
                result[[row, column, channel]] = interpolate(lines, below, support) as u8;
            }
        }
    }
    result
}

/// The value at a fraction of the way between the inner two of neighbours (the first two of which count for `support`
/// 2, and one for 1), in the order of operations of Pillow, whose results are cut off and not rounded. Its cubic
/// convolution has a = -1 here, and not -0.5 as in its resize.
fn interpolate([v1, v2, v3, v4]: [f64; 4], fraction: f64, support: usize) -> f64 {
    match support {
        1 => v1,
        2 => v1 + (v2 - v1) * fraction,
        _ => {
            let (p2, p3, p4) = (v3 - v1, 2.0 * (v1 - v2) + v3 - v4, v2 - v1 - v3 + v4);
            v2 + fraction * (p2 + fraction * (p3 + fraction * p4))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::super::super::decode::pixels;
    use super::super::preprocess::resample;
    use super::*;

    pub(crate) fn fixture(name: &str) -> Pixels {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/augment").join(name);
        let picture = image::open(path).unwrap();
        let channels = usize::from(picture.color().channel_count());
        pixels(picture, channels)
    }

    fn difference(actual: &Pixels, expected: &Pixels) -> (u8, f64) {
        assert_eq!(actual.dim(), expected.dim());
        let differences: Vec<u8> = actual.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).collect();
        let mean = differences.iter().map(|&value| f64::from(value)).sum::<f64>() / differences.len() as f64;
        (differences.into_iter().max().unwrap(), mean)
    }

    /// The tiles of `scripts/golden/augment.py`, in its order: what makes them, and whether bit by bit.
    fn tiles(source: &Pixels) -> Vec<(String, Pixels, bool)> {
        use Operation::*;
        let values = [
            AutoContrast,
            Equalize,
            Invert,
            Posterize(1),
            Posterize(4),
            Solarize(26),
            Solarize(256),
            SolarizeAdd(99),
            Color(0.1),
            Color(1.81),
            Contrast(0.19),
            Contrast(1.9),
            Brightness(0.4),
            Brightness(1.73),
            Sharpness(0.1),
            Sharpness(1.9),
        ];
        let moves = [Rotate(27.0), Rotate(-3.7), ShearX(0.27), ShearY(-0.19), TranslateX(0.405), TranslateY(-0.13)];
        let fill = [124, 116, 104];
        let mut tiles = Vec::new();
        for operation in values {
            let tile = operation.apply(source.clone(), Interpolation::Bicubic, &[]);
            tiles.push((format!("{operation:?}"), tile, true));
        }
        for interpolation in [Interpolation::Nearest, Interpolation::Bilinear, Interpolation::Bicubic] {
            for operation in moves {
                let tile = operation.apply(source.clone(), interpolation, &fill);
                tiles.push((format!("{operation:?} {interpolation:?}"), tile, true));
            }
        }
        for [top, left, height, width] in [[3, 5, 18, 11], [0, 0, 24, 32], [10, 1, 2, 30]] {
            let part = source.slice(s![top..top + height, left..left + width, ..]).to_owned();
            tiles.push((
                format!("{height} x {width}"),
                resample(&part, [24, 32], Interpolation::Bicubic).unwrap(),
                false,
            ));
        }
        tiles.push(("flip".into(), flip(source.clone()), true));
        tiles.push(("pad".into(), pad(source, 4).slice(s![1..25, 7..39, ..]).to_owned(), true));
        tiles
    }

    #[test]
    fn operations_are_those_of_pillow() {
        for kind in ["colour", "grey"] {
            let golden = fixture(&format!("{kind}-golden.png"));
            let tiles = tiles(&fixture(&format!("{kind}.png")));
            assert_eq!(golden.len_of(Axis(0)), 24 * tiles.len());
            for ((name, tile, exact), expected) in tiles.into_iter().zip(golden.axis_chunks_iter(Axis(0), 24)) {
                let (largest, mean) = difference(&tile, &expected.to_owned());
                println!("{kind} {name}: {largest} {mean:.4}");
                assert!(largest <= if exact { 0 } else { 2 }, "{kind} {name}: {largest}, {mean}");
            }
        }
    }

    #[test]
    fn extremes_are_defined() {
        let source = fixture("colour.png");
        let apply = |operation: Operation| operation.apply(source.clone(), Interpolation::Bilinear, &[7, 8, 9]);
        assert!(apply(Operation::Posterize(0)).iter().all(|&value| value == 0));
        assert_eq!(apply(Operation::Posterize(8)), source);
        assert_eq!(apply(Operation::Rotate(0.0)), source);
        assert_eq!(apply(Operation::Color(1.0)), source);
        let gone = apply(Operation::TranslateX(1.0));
        assert!(gone.indexed_iter().all(|((_, _, channel), &value)| value == [7, 8, 9][channel]));
        // A picture of one colour, and the smallest one.
        for plain in [Array3::from_elem((2, 2, 3), 17), Array3::from_elem((1, 1, 1), 17)] {
            for operation in [Operation::AutoContrast, Operation::Equalize, Operation::Sharpness(1.9)] {
                assert_eq!(operation.apply(plain.clone(), Interpolation::Bicubic, &[0; 3]), plain, "{operation:?}");
            }
        }
    }
}
