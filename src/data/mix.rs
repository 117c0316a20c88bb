//! Mixup and CutMix: the images and targets of a batch are mixed with those of the batch in reverse order.

use ndarray::{Array2, Array4, Axis, Zip, s};
use rand::RngExt;
use rand_distr::{Beta, Distribution};
use rayon::prelude::*;

use super::preprocess::Layout;
use super::random::Generator;

/// How a batch is mixed with itself in reverse order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mix {
    /// What the targets keep of their own.
    pub share: f64,
    /// Top, left, bottom and right of what is taken from the others; `None` if all pixels are averaged.
    pub region: Option<[usize; 4]>,
}

/// Draws how to mix a batch, as timm does: one share for all, from Beta(alpha, alpha), by CutMix or mixup at even odds where
/// both alphas are above 0. `None` if neither is.
pub(super) fn draw(mixup: f64, cutmix: f64, [height, width]: [usize; 2], random: &mut Generator) -> Option<Mix> {
    let is_cut = match (mixup > 0.0, cutmix > 0.0) {
        (true, true) => random.random(),
        (false, false) => return None,
        (_, is_cut) => is_cut,
    };
    let alpha = if is_cut { cutmix } else { mixup };
    let share: f64 = Beta::new(alpha, alpha).map_or(1.0, |beta| beta.sample(random));
    if !is_cut {
        return Some(Mix { share, region: None });
    }
    let side = (1.0 - share).sqrt();
    let mut span = |length: usize| {
        let cut = (length as f64 * side) as usize;
        let middle = random.random_range(0..length.max(1));
        [middle.saturating_sub(cut / 2), (middle + cut.div_ceil(2)).min(length)]
    };
    let [[top, bottom], [left, right]] = [span(height), span(width)];
    let area = ((bottom - top) * (right - left)) as f64;
    Some(Mix { share: 1.0 - area / (height * width).max(1) as f64, region: Some([top, left, bottom, right]) })
}

impl Mix {
    /// Mixes images in the layout of the model.
    pub fn images(&self, images: &mut Array4<f32>, layout: Layout) {
        let count = images.len_of(Axis(0));
        // The image in the middle of an odd number stays as it is.
        let (mut first, rest) = images.view_mut().split_at(Axis(0), count / 2);
        let (_, mut second) = rest.split_at(Axis(0), count % 2);
        second.invert_axis(Axis(0));
        let share = self.share as f32;
        first.outer_iter_mut().into_par_iter().zip(second.outer_iter_mut().into_par_iter()).for_each(|(a, b)| {
            let (mut a, mut b) = match layout {
                Layout::Nchw => (a, b),
                Layout::Nhwc => (a.permuted_axes([2, 0, 1]), b.permuted_axes([2, 0, 1])),
            };
            match self.region {
                None => Zip::from(&mut a).and(&mut b).for_each(|a, b| {
                    (*a, *b) = (share * *a + (1.0 - share) * *b, share * *b + (1.0 - share) * *a);
                }),
                Some([top, left, bottom, right]) => Zip::from(a.slice_mut(s![.., top..bottom, left..right]))
                    .and(b.slice_mut(s![.., top..bottom, left..right]))
                    .for_each(std::mem::swap),
            }
        });
    }

    /// Mixes targets `[images, classes]`.
    pub fn targets(&self, targets: &mut Array2<f32>) {
        let share = self.share as f32;
        let reversed = targets.slice(s![..;-1, ..]).to_owned();
        Zip::from(targets).and(&reversed).for_each(|own, &other| *own = share * *own + (1.0 - share) * other);
    }
}
