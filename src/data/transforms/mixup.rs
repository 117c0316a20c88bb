//! Mixup and CutMix: the images and targets of a batch are mixed with those of the batch in reverse order.

use ndarray::{Array2, Array4, Axis, Zip, s};
use rand::RngExt;
use rand_distr::{Beta, Distribution};
use rayon::prelude::*;

use super::super::random::Generator;
use super::super::shape::ImageLayout;

/// How a batch is mixed with itself in reverse order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mix {
    /// What the targets keep of their own.
    pub share: f64,
    /// Top, left, bottom and right of what is taken from the others; `None` if all pixels are averaged.
    pub region: Option<[usize; 4]>,
}

/// Draws how to mix a batch, as timm does: one share for all, from Beta(alpha, alpha), by CutMix or mixup at even odds
/// where both alphas are above 0. `None` if neither is.
pub(crate) fn draw(mixup: f64, cutmix: f64, [height, width]: [usize; 2], random: &mut Generator) -> Option<Mix> {
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
    /// The same for images of another height and width.
    pub fn scaled(&self, from: [usize; 2], to: [usize; 2]) -> Mix {
        let scale = |at: usize, axis: usize| (at * to[axis] + from[axis] / 2) / from[axis].max(1);
        let region = self
            .region
            .map(|[top, left, bottom, right]| [scale(top, 0), scale(left, 1), scale(bottom, 0), scale(right, 1)]);
        Mix { share: self.share, region }
    }

    /// Mixes images in the layout of the model.
    pub fn images(&self, images: &mut Array4<f32>, layout: ImageLayout) {
        let count = images.len_of(Axis(0));
        // The image in the middle of an odd number stays as it is.
        let (mut first, rest) = images.view_mut().split_at(Axis(0), count / 2);
        let (_, mut second) = rest.split_at(Axis(0), count % 2);
        second.invert_axis(Axis(0));
        let share = self.share as f32;
        first.outer_iter_mut().into_par_iter().zip(second.outer_iter_mut().into_par_iter()).for_each(|(a, b)| {
            let (mut a, mut b) = match layout {
                ImageLayout::Nchw => (a, b),
                ImageLayout::Nhwc => (a.permuted_axes([2, 0, 1]), b.permuted_axes([2, 0, 1])),
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

#[cfg(test)]
mod tests {
    use ndarray::Array;

    use super::super::super::random::{Purpose, generator};
    use super::*;

    fn draws(mixup: f64, cutmix: f64) -> Vec<Mix> {
        (0..2000)
            .map(|batch| draw(mixup, cutmix, [20, 30], &mut generator(1, Purpose::Mix, 0, batch)).unwrap())
            .collect()
    }

    #[test]
    fn shares_follow_their_distribution() {
        assert_eq!(draw(0.0, 0.0, [20, 30], &mut generator(1, Purpose::Mix, 0, 0)), None);
        // Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2 a + 1)).
        for alpha in [0.2, 0.8, 5.0] {
            let mixes = draws(alpha, 0.0);
            assert!(mixes.iter().all(|mix| mix.region.is_none() && (0.0..=1.0).contains(&mix.share)));
            let mean = mixes.iter().map(|mix| mix.share).sum::<f64>() / 2000.0;
            let variance = mixes.iter().map(|mix| (mix.share - mean).powi(2)).sum::<f64>() / 2000.0;
            assert!((mean - 0.5).abs() < 0.05, "{mean}");
            assert!((variance * 4.0 * (2.0 * alpha + 1.0) - 1.0).abs() < 0.1, "{variance}");
        }
        let cuts = draws(0.8, 1.0).iter().filter(|mix| mix.region.is_some()).count();
        assert!(cuts.abs_diff(1000) < 112, "{cuts}");
    }

    #[test]
    fn regions_have_the_area_of_what_is_given_away() {
        let mut clipped = 0;
        for mix in draws(0.0, 1.0) {
            let [top, left, bottom, right] = mix.region.unwrap();
            assert!(top <= bottom && bottom <= 20 && left <= right && right <= 30);
            let area = ((bottom - top) * (right - left)) as f64 / 600.0;
            assert!((1.0 - mix.share - area).abs() < 1e-12);
            clipped += usize::from(top == 0 || left == 0 || bottom == 20 || right == 30);
        }
        assert!((200..2000).contains(&clipped), "{clipped}");
    }

    #[test]
    fn batches_are_mixed_with_their_reverse() {
        let images = Array::from_iter((0..5 * 2 * 4 * 3).map(|value| value as f32));
        let images = images.into_shape_with_order((5, 2, 4, 3)).unwrap();
        let targets = Array2::from_shape_fn((5, 5), |(row, column)| f32::from(u8::from(row == column)));
        let region = [1, 0, 3, 2];
        for mix in [Mix { share: 0.75, region: None }, Mix { share: 2.0 / 3.0, region: Some(region) }] {
            let share = mix.share as f32;
            let mut expected = images.clone();
            for ((image, channel, y, x), value) in expected.indexed_iter_mut() {
                let other = images[[4 - image, channel, y, x]];
                match mix.region {
                    None => *value = share * *value + (1.0 - share) * other,
                    Some(_) if (1..3).contains(&y) && x < 2 => *value = other,
                    Some(_) => {}
                }
            }
            let mut planar = images.clone();
            mix.images(&mut planar, ImageLayout::Nchw);
            assert!(planar.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4));
            let mut interleaved = images.clone().permuted_axes([0, 2, 3, 1]).as_standard_layout().into_owned();
            mix.images(&mut interleaved, ImageLayout::Nhwc);
            assert_eq!(interleaved.permuted_axes([0, 3, 1, 2]), planar);

            // In twice the size every pixel is four.
            let mut large = Array4::from_shape_fn((5, 2, 8, 6), |(n, c, y, x)| images[[n, c, y / 2, x / 2]]);
            mix.scaled([4, 3], [8, 6]).images(&mut large, ImageLayout::Nchw);
            assert!(large.indexed_iter().all(|((n, c, y, x), value)| *value == planar[[n, c, y / 2, x / 2]]));

            let mut mixed = targets.clone();
            mix.targets(&mut mixed);
            assert_eq!(mixed[[0, 0]], share);
            assert!((mixed[[0, 4]] + share - 1.0).abs() < 1e-6);
            assert!((mixed[[2, 2]] - 1.0).abs() < 1e-6);
            assert!(mixed.sum_axis(Axis(1)).iter().all(|sum| (sum - 1.0).abs() < 1e-6));
        }
    }
}
