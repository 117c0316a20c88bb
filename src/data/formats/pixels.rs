//! Pictures that are held in memory as bytes, in whatever format they were read.

use image::{DynamicImage, GrayImage, RgbImage};
use ndarray::{Array4, Axis};

use super::super::item::{Container, Sample};
use crate::error::{Error, ErrorKind, Result};

/// Bytes `[images, rows, columns, 1 or 3]`.
#[derive(Debug)]
pub(super) struct PixelArray(pub Array4<u8>);

impl Container for PixelArray {
    fn len(&self) -> usize {
        self.0.len_of(Axis(0))
    }

    fn sample(&self, index: usize) -> Result<Sample<'_>> {
        let image = self.0.index_axis(Axis(0), index);
        let (rows, columns, channels) = image.dim();
        let bytes = image.iter().copied().collect();
        let (rows, columns) = (rows as u32, columns as u32);
        let picture = if channels == 1 {
            GrayImage::from_raw(columns, rows, bytes).map(DynamicImage::from)
        } else {
            RgbImage::from_raw(columns, rows, bytes).map(DynamicImage::from)
        };
        let picture = picture.ok_or_else(|| Error::new(ErrorKind::Internal, "an image lost its pixels"))?;
        Ok(Sample::picture(picture))
    }
}
