//! Values of flags: what a text on the command line stands for.

use crate::descendant::BatchAxis;

/// `open`, or a number of images.
pub fn batch_axis(text: &str) -> Result<BatchAxis, String> {
    match (text, text.parse()) {
        ("open", _) => Ok(BatchAxis::Open),
        (_, Ok(images @ 1..=65536)) => Ok(BatchAxis::Fixed(images)),
        _ => Err("a batch axis is `open`, or a number of images".into()),
    }
}

/// A height and a width; one number for both.
pub fn image_size(text: &str) -> Result<[usize; 2], String> {
    let (height, width) = text.split_once('x').unwrap_or((text, text));
    match (height.parse(), width.parse()) {
        (Ok(h @ 1..=65536), Ok(w @ 1..=65536)) => Ok([h, w]),
        _ => Err("an image size is a number of pixels, or HEIGHTxWIDTH".into()),
    }
}

/// A number of tokens.
pub fn tokens(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(tokens @ 1..=65536) => Ok(tokens),
        _ => Err("a number of tokens is between 1 and 65536".into()),
    }
}

/// A number from 0 to 1.
pub fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if (0.0..=1.0).contains(&v) => Ok(v),
        _ => Err("a share is a number from 0 to 1".into()),
    }
}

/// A number from 0 on.
pub fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if v.is_finite() && v >= 0.0 => Ok(v),
        _ => Err("this is a number from 0 on".into()),
    }
}

/// A number above 0.
pub fn above_zero(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if v.is_finite() && v > 0.0 => Ok(v),
        _ => Err("this is a number above 0".into()),
    }
}

/// The scores that stand for cosines of 0 and of 1.
pub fn score_range(text: &str) -> Result<[f64; 2], String> {
    let ends = text.split_once(',').map(|(low, high)| (low.trim().parse(), high.trim().parse()));
    match ends {
        Some((Ok(low), Ok(high))) if f64::is_finite(low) && f64::is_finite(high) && low < high => Ok([low, high]),
        _ => Err("a range of scores is LOW,HIGH, such as 0,5".into()),
    }
}

/// How far values may lie apart.
pub fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if v.is_finite() && v >= 0.0 => Ok(v),
        _ => Err("a tolerance is a number from 0 on".into()),
    }
}
