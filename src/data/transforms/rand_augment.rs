//! RandAugment, with the operations and in the notation of timm.

use std::fmt;
use std::str::FromStr;

use rand::RngExt;
use rand_distr::{Distribution, Normal};

use super::super::random::Generator;
use super::ops::Operation;
use crate::error::{Error, ErrorKind, Result};

/// RandAugment (Cubuk et al. 2019, arXiv:1909.13719) over timm's operations whose effect grows with the magnitude.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandAugment {
    /// How strong the operations are, from 0 to 10.
    pub magnitude: f64,
    /// How many operations follow each other.
    pub layers: usize,
    /// The standard deviation of the magnitude.
    pub deviation: f64,
    /// The probability that an operation takes place.
    pub probability: f64,
}

impl Default for RandAugment {
    /// `rand-m9-n2-mstd0.5-inc1`.
    fn default() -> Self {
        RandAugment { magnitude: 9.0, layers: 2, deviation: 0.5, probability: 0.5 }
    }
}

impl RandAugment {
    /// The operations on one picture.
    pub(super) fn draw(&self, random: &mut Generator) -> Vec<Operation> {
        let mut operations = Vec::new();
        for _ in 0..self.layers {
            let kind = random.random_range(0..KINDS);
            if random.random_bool(self.probability) {
                let deviation: f64 = Normal::new(0.0, self.deviation).map_or(0.0, |normal| normal.sample(random));
                let level = (self.magnitude + deviation).clamp(0.0, 10.0) / 10.0;
                let sign = if random.random() { 1.0 } else { -1.0 };
                operations.push(increasing(kind, level, sign));
            }
        }
        operations
    }
}

/// How many operations timm's `_RAND_INCREASING_TRANSFORMS` lists.
const KINDS: usize = 15;

/// Operation `kind` of timm's `_RAND_INCREASING_TRANSFORMS` at a level between 0 and 1, away from neutral by `sign`.
fn increasing(kind: usize, level: f64, sign: f64) -> Operation {
    let factor = (1.0 + sign * 0.9 * level).max(0.1);
    match kind {
        0 => Operation::AutoContrast,
        1 => Operation::Equalize,
        2 => Operation::Invert,
        3 => Operation::Rotate(sign * 30.0 * level),
        4 => Operation::Posterize(4 - (4.0 * level) as u32),
        5 => Operation::Solarize(256 - (256.0 * level) as u32),
        6 => Operation::SolarizeAdd((110.0 * level) as u32),
        7 => Operation::Color(factor),
        8 => Operation::Contrast(factor),
        9 => Operation::Brightness(factor),
        10 => Operation::Sharpness(factor),
        11 => Operation::ShearX(sign * 0.3 * level),
        12 => Operation::ShearY(sign * 0.3 * level),
        13 => Operation::TranslateX(sign * 0.45 * level),
        _ => Operation::TranslateY(sign * 0.45 * level),
    }
}

impl FromStr for RandAugment {
    type Err = Error;

    /// Reads timm's notation, such as `rand-m9-n2-mstd0.5-inc1`, whose default magnitude is 10.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |problem: &str| {
            Error::new(ErrorKind::Usage, format!("`{text}` is no RandAugment that is known: {problem}"))
                .hint("write for example rand-m9-n2-mstd0.5-inc1")
        };
        let sections = text.strip_prefix("rand").ok_or_else(|| wrong("it does not begin with `rand`"))?;
        let mut result = RandAugment { magnitude: 10.0, layers: 2, deviation: 0.0, probability: 0.5 };
        let mut is_increasing = false;
        for section in sections.split('-').filter(|section| !section.is_empty()) {
            let start = section.find(|letter: char| letter.is_ascii_digit()).unwrap_or(section.len());
            let (name, number) = section.split_at(start);
            let number: f64 = number.parse().map_err(|_| wrong("a section has no number"))?;
            match name {
                "m" => result.magnitude = number,
                "n" => result.layers = number as usize,
                "mstd" => result.deviation = number,
                "p" => result.probability = number,
                "inc" => is_increasing = number == 1.0,
                _ => return Err(wrong("sections are m, n, mstd, p and inc")),
            }
        }
        if !is_increasing {
            return Err(wrong("only the operations of inc1 are there"));
        }
        Ok(result)
    }
}

impl fmt::Display for RandAugment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RandAugment { magnitude, layers, deviation, probability } = self;
        write!(f, "rand-m{magnitude}-n{layers}-mstd{deviation}-p{probability}-inc1")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::super::super::random::{Purpose, generator};
    use super::*;

    fn random(position: u64) -> Generator {
        generator(7, Purpose::Augment, 0, position)
    }

    #[test]
    fn magnitudes_are_those_of_timm() {
        #[derive(Deserialize)]
        struct Level {
            name: String,
            magnitude: f64,
            sign: f64,
            arguments: Vec<f64>,
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/augment/levels.json");
        let levels: Vec<Level> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut names: Vec<&String> = levels.iter().map(|level| &level.name).collect();
        names.dedup();
        assert_eq!(names.len(), KINDS);
        for level in &levels {
            let kind = names.iter().position(|name| **name == level.name).unwrap();
            let operation = increasing(kind, level.magnitude / 10.0, level.sign);
            let (name, argument) = match operation {
                Operation::AutoContrast => ("AutoContrast", None),
                Operation::Equalize => ("Equalize", None),
                Operation::Invert => ("Invert", None),
                Operation::Rotate(value) => ("Rotate", Some(value)),
                Operation::Posterize(value) => ("PosterizeIncreasing", Some(value.into())),
                Operation::Solarize(value) => ("SolarizeIncreasing", Some(value.into())),
                Operation::SolarizeAdd(value) => ("SolarizeAdd", Some(value.into())),
                Operation::Color(value) => ("ColorIncreasing", Some(value)),
                Operation::Contrast(value) => ("ContrastIncreasing", Some(value)),
                Operation::Brightness(value) => ("BrightnessIncreasing", Some(value)),
                Operation::Sharpness(value) => ("SharpnessIncreasing", Some(value)),
                Operation::ShearX(value) => ("ShearX", Some(value)),
                Operation::ShearY(value) => ("ShearY", Some(value)),
                Operation::TranslateX(value) => ("TranslateXRel", Some(value)),
                Operation::TranslateY(value) => ("TranslateYRel", Some(value)),
            };
            assert_eq!(name, level.name);
            assert_eq!(argument.is_some(), !level.arguments.is_empty(), "{name}");
            for (argument, expected) in argument.iter().zip(&level.arguments) {
                assert!((argument - expected).abs() < 1e-12, "{name} {}: {argument}", level.magnitude);
            }
        }
    }

    #[test]
    fn rand_augment_draws_all_operations_alike() {
        let rand_augment: RandAugment = "rand-m9-n2-mstd0.5-inc1".parse().unwrap();
        assert_eq!(rand_augment, RandAugment::default());
        let mut counts = std::collections::HashMap::new();
        let mut angles = Vec::new();
        for position in 0..6000 {
            for operation in rand_augment.draw(&mut random(position)) {
                *counts.entry(std::mem::discriminant(&operation)).or_insert(0usize) += 1;
                if let Operation::Rotate(angle) = operation {
                    angles.push(angle);
                }
            }
        }
        // 6000 pictures, two operations each, half of them left out, of 15 kinds: 400 of each.
        assert_eq!(counts.len(), KINDS);
        assert!(counts.values().all(|count| count.abs_diff(400) < 100), "{counts:?}");
        let positive = angles.iter().filter(|&&angle| angle > 0.0).count();
        assert!(positive.abs_diff(angles.len() / 2) < 50);
        assert!(angles.iter().all(|angle| angle.abs() <= 30.0));
        let magnitudes: Vec<f64> = angles.iter().map(|angle| angle.abs() / 3.0).collect();
        let mean = magnitudes.iter().sum::<f64>() / magnitudes.len() as f64;
        let variance = magnitudes.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / magnitudes.len() as f64;
        assert!((mean - 9.0).abs() < 0.1 && (variance.sqrt() - 0.5).abs() < 0.08, "{mean} {variance}");
    }
}
