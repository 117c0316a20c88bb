//! The refit: the matrices of a thinned network, fitted in order of execution so that each corrects the error of those
//! before it.
//!
//! X is the residual stream of the descendant before a block and Y the ancestor's. Features A come from X; the targets
//! are what the ancestor's block adds (T1) and Y − X, the error so far (T2). With centred covariances, W = (G + a
//! m)⁻¹ (C1 + a m W0 + c C2), m the mean of G's diagonal; the bias follows from the means. a and c are those with
//! the least error on held-out images, and the old matrix is kept where it is better.

use std::collections::HashMap;

use faer::Mat;
use ndarray::{Array, Array1, Array2, ArrayD, Dimension, IxDyn};
use rayon::prelude::*;

use super::algebra::{Covariance, Moments, Partial, affine, product, ridge_solve, scale};
use super::network::{Network, Progress, stack};
use super::padding::chosen;
use super::scratch::{Arrays, Scratch, Slot};
use super::subgraph::Values;
use super::targets::{ResidualPath, TargetLinear};
use crate::error::Result;
use crate::learngene::BlockKind;
use crate::parallel;

/// Ridges to choose from, in means of the diagonal, ascending.
const RIDGES: [f64; 6] = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
/// Shares of the error so far that are corrected.
const CORRECTIONS: [f64; 3] = [0.0, 0.5, 1.0];
/// How often a network whose matrices are used several times is passed again.
const PASSES: usize = 4;
/// Images whose rows are multiplied at once.
const CHUNK: usize = 8;

/// A matrix that was fitted.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The layer.
    pub layer: usize,
    /// Heads or neurons.
    pub kind: BlockKind,
    /// Features x outputs.
    pub matrix: Array2<f32>,
    /// The bias.
    pub bias: Vec<f32>,
    /// How it was chosen; `None` where the old matrix stays.
    pub chosen: Option<Chosen>,
}

/// A ridge and a share of correction.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Chosen {
    /// The ridge, in means of the diagonal.
    pub ridge: f64,
    /// The share of the error so far that is corrected.
    pub correction: f64,
    /// Squared error of the stream on held-out images, relative to that of the old matrix.
    pub error: f64,
}

/// What a refit gives.
pub struct Refit {
    /// The matrices, by linear layer.
    pub fitted: Vec<Fitted>,
    /// Squared error of the end of the network on held-out images, relative to the values themselves.
    pub error: f64,
}

/// One image in both networks.
#[derive(Default)]
struct Image {
    ancestor: Values,
    child: Values,
    /// Of the linear layer at hand: features, what the ancestor adds, and the error so far.
    rows: Array2<f32>,
    added: Array2<f32>,
    missing: Array2<f32>,
    /// What earlier branches from the same value of the stream left missing in it.
    left: ArrayD<f32>,
}

/// What of an image belongs to the linear layer that is being fitted.
struct AtHand {
    rows: Array2<f32>,
    added: Array2<f32>,
    missing: Array2<f32>,
}

impl Image {
    /// What belongs to linear layer `i` of the child, without what is padding's.
    fn at_hand(&self, child: &Network, i: usize) -> AtHand {
        let real = child.real_rows(i, &self.child);
        let [rows, added, missing] =
            [&self.rows, &self.added, &self.missing].map(|m| chosen(m.clone(), real.as_deref()));
        AtHand { rows, added, missing }
    }
}

/// Values of the ancestor and of the child, and what is at hand, by the first letter of a name.
impl Arrays for Image {
    fn take(self) -> Vec<(String, ArrayD<f32>)> {
        let mut all: Vec<(String, ArrayD<f32>)> = Vec::new();
        all.extend(self.ancestor.into_iter().map(|(name, v)| (format!("y{name}"), v)));
        all.extend(self.child.into_iter().map(|(name, v)| (format!("x{name}"), v)));
        let own = [("r", self.rows), ("a", self.added), ("m", self.missing)];
        all.extend(own.into_iter().map(|(name, v)| (name.to_string(), v.into_dyn())));
        all.push(("l".into(), self.left));
        all
    }

    fn put(arrays: Vec<(String, ArrayD<f32>)>) -> Image {
        let mut image = Image::default();
        for (name, value) in arrays {
            let own = || value.clone().into_dimensionality().unwrap_or_default();
            match name.split_at(1) {
                ("y", name) => drop(image.ancestor.insert(name.to_string(), value)),
                ("x", name) => drop(image.child.insert(name.to_string(), value)),
                ("r", _) => image.rows = own(),
                ("a", _) => image.added = own(),
                ("m", _) => image.missing = own(),
                _ => image.left = value,
            }
        }
        image
    }

    fn bytes(&self) -> u64 {
        let values = self.ancestor.values().chain(self.child.values()).map(|v| v.len());
        let own = self.rows.len() + self.added.len() + self.missing.len() + self.left.len();
        4 * (values.sum::<usize>() + own) as u64
    }
}

/// Fits the linear layers of a smaller network to its ancestor, in order. Layer l of the child is built like layer
/// `sources[l]` of the ancestor. `images` are fitted on, `held_out` are for choices; processes that work together share
/// both out. Values of images above `memory` bytes lie in a scratch file.
///
/// A matrix that is used several times is fitted to all its uses at once. What enters the later ones depends on it, so
/// the network is passed again with what was fitted, and what held-out images do not speak for is taken back by half.
/// The error so far is not corrected there: every use would do it again.
///
/// # Errors
/// Those of the runtime; [`crate::error::ErrorKind::Images`] for activations that are no numbers.
pub fn refit(
    ancestor: &Network,
    child: &Network,
    sources: &[usize],
    images: &[Values],
    held_out: &[Values],
    memory: u64,
    progress: Progress,
) -> Result<Refit> {
    let (images, held_out) =
        (&images[parallel::part(images.len(), CHUNK)], &held_out[parallel::part(held_out.len(), 1)]);
    let fitting =
        Fitting { ancestor, ways: ancestor.residual_paths()?, child, sources, images, held_out, memory, progress };
    let (mut best, mut next) = fitting.pass(&HashMap::new())?;
    for _ in 0..PASSES {
        if next.is_empty() {
            break;
        }
        let (found, later) = fitting.pass(&next)?;
        if found.error < best.error {
            (best, next) = (found, later);
        } else {
            next.iter_mut().for_each(|(&j, fit)| halfway(fit, &best.fitted[j]));
        }
    }
    Ok(best)
}

/// Takes a fit half of the way back to an older one.
fn halfway(fit: &mut Fitted, old: &Fitted) {
    let mean = |a: &mut f32, b: &f32| *a = (*a + b) / 2.0;
    fit.matrix.iter_mut().zip(&old.matrix).for_each(|(a, b)| mean(a, b));
    fit.bias.iter_mut().zip(&old.bias).for_each(|(a, b)| mean(a, b));
}

/// Matrices that are used several times, by the child's first linear layer that has each, as they were fitted to all
/// uses.
type Joint = HashMap<usize, Fitted>;

/// Two networks, their relation, and images.
struct Fitting<'a, 'm, 'c> {
    ancestor: &'a Network<'m>,
    ways: &'a [Option<ResidualPath>],
    child: &'a Network<'c>,
    sources: &'a [usize],
    images: &'a [Values],
    held_out: &'a [Values],
    memory: u64,
    progress: Progress<'a>,
}

/// What the uses of one matrix have seen so far.
struct Seen {
    moments: Moments,
    held_out: Vec<AtHand>,
}

impl Fitting<'_, '_, '_> {
    /// Passes the network once, with `joint` in the place of matrices that are used several times. Gives what was
    /// fitted, and these matrices fitted anew.
    fn pass(&self, joint: &Joint) -> Result<(Refit, Joint)> {
        let Fitting { ancestor, ways, child, .. } = *self;
        let scratch = Scratch::new(self.memory);
        let mut all = self.start(&scratch)?;
        let (mut changed, mut fitted, mut next) = (false, Vec::new(), 0);
        let (mut seen, mut anew): (HashMap<usize, Seen>, Joint) = Default::default();
        for (i, linear) in ancestor.linears.iter().enumerate() {
            (self.progress)(i, ancestor.linears.len());
            let Some((j, own)) = child
                .linears
                .get(next)
                .map(|own| (next, own))
                .filter(|(_, own)| self.sources.get(own.layer) == Some(&linear.layer) && own.kind == linear.kind)
            else {
                // A layer that the child lacks: what it adds is an error that the next linear layer corrects.
                changed = true;
                each(&mut all, &scratch, &|image| {
                    ancestor.advance(i, &mut image.ancestor)?;
                    ancestor.pass(i, &ancestor.rows(i, &image.ancestor)?, &mut image.ancestor)
                })?;
                continue;
            };
            next += 1;
            let (follows, leads) = (i > 0 && self.beside(i, i - 1), self.beside(i, i + 1));
            changed |= ancestor.matrices[i] != child.matrices[j];
            each(&mut all, &scratch, &|image| self.look(image, i, j, follows))?;
            let first = child.first[j];
            let old = Fitted {
                layer: own.layer,
                kind: own.kind,
                matrix: child.matrices[j].0.clone(),
                bias: child.matrices[j].1.clone(),
                chosen: None,
            };
            let again = child.uses(j).count() > 1;
            let mut fit = match joint.get(&first).filter(|_| again) {
                Some(joint) => Fitted { layer: own.layer, ..joint.clone() },
                None => old.clone(),
            };
            // Where nothing was removed nothing is refitted.
            if changed {
                let gain = ways[i].as_ref().map(|w| w.gain.as_slice());
                let last = child.uses(j).last() == Some(j);
                let of_uses = seen.entry(first).or_insert_with(|| Seen::new(own));
                let (fits, rest) = all.split_at(self.images.len());
                of_uses.look(child, j, (fits, rest), &scratch)?;
                if last && let Some(mut of_uses) = seen.remove(&first) {
                    of_uses.moments.sum();
                    let covariance = of_uses.moments.covariance(own.has_bias());
                    let to = if again { anew.entry(first).or_insert(old) } else { &mut fit };
                    let corrections = if again { &CORRECTIONS[..1] } else { &CORRECTIONS };
                    choose(to, &covariance, gain, corrections, &of_uses.held_out)?;
                }
            }
            each(&mut all, &scratch, &|image| self.leave(image, i, j, &fit, (follows, leads)))?;
            fitted.push(fit);
        }
        if next < child.linears.len() {
            bail!(Internal, "the descendant's matrices are not in the order of the ancestor's");
        }
        anew.retain(|_, fit| fit.chosen.is_some());
        Ok((Refit { fitted, error: self.error(&mut all[self.images.len()..], &scratch)? }, anew))
    }

    /// The images before the first linear layer.
    fn start(&self, scratch: &Scratch) -> Result<Vec<Slot<Image>>> {
        let images = self.images.iter().chain(self.held_out).enumerate();
        let slot = |(k, i): (usize, &Values)| {
            let image = Image { ancestor: i.clone(), child: i.clone(), ..Image::default() };
            Slot::new(scratch, k, image)
        };
        images.map(slot).collect()
    }

    /// True for branches that start from the same value: what one leaves missing is for the next one to correct.
    fn beside(&self, i: usize, j: usize) -> bool {
        let skip = |k: usize| self.ancestor.linears.get(k).and_then(|s| s.skip.as_ref());
        skip(j).is_some() && skip(j) == skip(i) && self.ways[j].is_some() && self.ways[i].is_some()
    }

    /// What is at hand before linear layer `i` of the ancestor and `j` of the child.
    fn look(&self, image: &mut Image, i: usize, j: usize, follows: bool) -> Result<()> {
        let (ancestor, linear, own) = (self.ancestor, &self.ancestor.linears[i], &self.child.linears[j]);
        ancestor.advance(i, &mut image.ancestor)?;
        self.child.advance(j, &mut image.child)?;
        image.rows = self.child.rows(j, &image.child)?;
        image.added = ancestor.apply(i, &ancestor.rows(i, &image.ancestor)?);
        let out = ancestor.leaving(i, &image.added, &image.ancestor)?;
        image.ancestor.insert(linear.output.clone(), out);
        let skips = linear.skip.as_ref().zip(own.skip.as_ref());
        let both = skips.and_then(|(s, t)| Some((image.ancestor.get(s)?, image.child.get(t)?)));
        image.missing = match (&ancestor.of(&image.ancestor).residual_paths()?[i], both) {
            (Some(way), Some((y, x))) if follows && image.left.shape() == y.shape() => {
                way.output_for(&plus(minus(y, x), &image.left))
            }
            (Some(way), Some((y, x))) => way.output_for(&minus(y, x)),
            _ => Array2::zeros(image.added.dim()),
        };
        Ok(())
    }

    /// Puts what leaves the fitted linear layer into the values of the child.
    fn leave(&self, image: &mut Image, i: usize, j: usize, fit: &Fitted, (follows, leads): (bool, bool)) -> Result<()> {
        let (linear, own) = (&self.ancestor.linears[i], &self.child.linears[j]);
        let out = affine(image.rows.view(), fit.matrix.view(), &fit.bias);
        image.child.insert(own.output.clone(), self.child.leaving(j, &out, &image.child)?);
        let stream = linear.skip.as_ref().and_then(|s| image.ancestor.get(s));
        image.left = match (&self.ancestor.of(&image.ancestor).residual_paths()?[i], stream) {
            (Some(way), Some(stream)) if leads => {
                let left = way.to_residual(&minus(&image.added, &out), stream);
                if follows && image.left.shape() == left.shape() { plus(left, &image.left) } else { left }
            }
            _ => ArrayD::default(IxDyn(&[0])),
        };
        (image.rows, image.added, image.missing) = Default::default();
        Ok(())
    }

    /// Squared error of the end of the network, relative to the values themselves.
    fn error(&self, held_out: &mut [Slot<Image>], scratch: &Scratch) -> Result<f64> {
        let errors: Vec<(f64, f64)> = held_out
            .par_iter_mut()
            .map(|slot| {
                slot.with(scratch, |image| {
                    self.ancestor.advance(self.ancestor.linears.len(), &mut image.ancestor)?;
                    self.child.advance(self.child.linears.len(), &mut image.child)?;
                    let mut sums = (0.0, 0.0);
                    for (a, b) in self.ancestor.end.iter().zip(&self.child.end) {
                        let ends =
                            (self.ancestor.real_part(a, &image.ancestor)?, self.child.real_part(b, &image.child)?);
                        let (Some(a), Some(b)) = ends else { continue };
                        sums.0 += a.iter().zip(&b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
                        sums.1 += a.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                    }
                    Ok(sums)
                })
            })
            .collect::<Result<_>>()?;
        let mut sums = errors.iter().fold([0.0, 0.0], |s, e| [s[0] + e.0, s[1] + e.1]);
        parallel::sum(&mut sums);
        let [difference, size] = sums;
        Ok(difference / f64::max(size, f64::MIN_POSITIVE))
    }
}

/// Works on all images side by side.
fn each(all: &mut [Slot<Image>], scratch: &Scratch, work: &(dyn Fn(&mut Image) -> Result<()> + Sync)) -> Result<()> {
    all.par_iter_mut().try_for_each(|slot| slot.with(scratch, work))
}

impl Seen {
    fn new(linear: &TargetLinear) -> Seen {
        Seen { moments: Moments::new(linear.features(), 2 * linear.outputs), held_out: Vec::new() }
    }

    /// Adds features and both targets of a linear layer, over the images that are fitted on and over the others.
    fn look(
        &mut self,
        child: &Network,
        i: usize,
        (images, held_out): (&[Slot<Image>], &[Slot<Image>]),
        scratch: &Scratch,
    ) -> Result<()> {
        let linear = &child.linears[i];
        let at_hand = |slot: &Slot<Image>| slot.look(scratch, |x| Ok(x.at_hand(child, i)));
        let chunks: Vec<&[Slot<Image>]> = images.chunks(CHUNK).collect();
        // The chunks are the same for any number of threads, and so is the order in which they are added up.
        for group in chunks.chunks(rayon::current_num_threads()) {
            let parts: Vec<Partial> = group
                .par_iter()
                .map(|slots| {
                    let parts = slots.iter().map(at_hand).collect::<Result<Vec<_>>>()?;
                    let rows = stack(parts.iter().map(|p| &p.rows))?;
                    let added = stack(parts.iter().map(|p| &p.added))?;
                    let missing = stack(parts.iter().map(|p| &p.missing))?;
                    Ok(Partial::of(rows.view(), beside(&added, &missing).view()))
                })
                .collect::<Result<_>>()?;
            for part in &parts {
                child.finite(linear, part)?;
                self.moments.add(part);
            }
        }
        self.held_out.extend(held_out.iter().map(at_hand).collect::<Result<Vec<_>>>()?);
        Ok(())
    }
}

/// Fits with some of the [`CORRECTIONS`] and with [ridges](RIDGES), from the middle to the side on which held-out
/// images have less error, and takes what is best on them.
fn choose(
    fit: &mut Fitted,
    covariance: &Covariance,
    gain: Option<&[f32]>,
    corrections: &[f64],
    held_out: &[AtHand],
) -> Result<()> {
    let outputs = fit.bias.len();
    let weights: Vec<f64> = (0..outputs).map(|c| gain.map_or(1.0, |g| f64::from(g[c]).powi(2))).collect();
    let none = (Array2::zeros((0, 0)), Array1::zeros(0));
    let mut old_errors = judge(held_out, &weights, &(fit.matrix.clone(), Array1::from(fit.bias.clone())), &none);
    parallel::sum(&mut old_errors);
    let [_, _, before] = old_errors;
    // Errors fall towards one ridge and rise behind it.
    let (less, more) = RIDGES.split_at(RIDGES.len() / 2);
    let mut tried = tried(fit, covariance, &weights, &[less[less.len() - 1], more[0]], held_out)?;
    let least = |tried: &Tried| tried.errors.iter().take(corrections.len()).copied().fold(f64::INFINITY, f64::min);
    let side = if least(&tried[0]) <= least(&tried[1]) { &less[..less.len() - 1] } else { &more[1..] };
    tried.extend(self::tried(fit, covariance, &weights, side, held_out)?);
    let mut best = (before, None);
    for found in &tried {
        for (c, &error) in found.errors.iter().enumerate().take(corrections.len()) {
            if error < best.0 {
                best = (error, Some((found, c)));
            }
        }
    }
    let Some((found, c)) = best.1 else { return Ok(()) };
    let share = corrections[c] as f32;
    let [own, correction] = &found.fits;
    fit.matrix = &own.0 + &(&correction.0 * share);
    fit.bias = (&own.1 + &(&correction.1 * share)).to_vec();
    let error = best.0 / before.max(f64::MIN_POSITIVE);
    fit.chosen = Some(Chosen { ridge: found.ridge, correction: corrections[c], error });
    Ok(())
}

/// A fit to the targets and one to the error so far, with one ridge.
struct Tried {
    ridge: f64,
    fits: [Affine; 2],
    /// On held-out images of all processes, with every share of the error so far.
    errors: [f64; 3],
}

/// Fits in the place of `old` with some ridges.
fn tried(
    old: &Fitted,
    covariance: &Covariance,
    weights: &[f64],
    ridges: &[f64],
    held_out: &[AtHand],
) -> Result<Vec<Tried>> {
    let (old, outputs) = (&old.matrix, old.bias.len());
    let m = scale(&covariance.gram);
    let with = |&ridge: &f64| {
        let right = Mat::from_fn(old.nrows(), 2 * outputs, |r, c| {
            covariance.cross[(r, c)] + if c < outputs { ridge * m * f64::from(old[[r, c]]) } else { 0.0 }
        });
        let both = ridge_solve(&covariance.gram, ridge * m, &right)?;
        let fits = [0, outputs].map(|first| {
            let matrix = Array2::from_shape_fn(old.dim(), |(r, c)| both[(r, first + c)] as f32);
            let bias = Array1::from_shape_fn(outputs, |c| {
                let own: f64 = covariance.features.iter().enumerate().map(|(r, mu)| mu * both[(r, first + c)]).sum();
                (covariance.targets[first + c] - own) as f32
            });
            (matrix, bias)
        });
        let errors = judge(held_out, weights, &fits[0], &fits[1]);
        Ok(Tried { ridge, fits, errors })
    };
    let mut tried: Vec<Tried> = ridges.par_iter().map(with).collect::<Result<_>>()?;
    tried.iter_mut().for_each(|tried| parallel::sum(&mut tried.errors));
    Ok(tried)
}

// Loops of their own, because ndarray's operators call a function for each element in a build whose codegen units are
// not optimised across each other.

/// `a` − `b`, element by element.
fn minus<D: Dimension>(a: &Array<f32, D>, b: &Array<f32, D>) -> Array<f32, D> {
    let mut difference = a.clone();
    for (a, b) in difference.iter_mut().zip(b) {
        *a -= b;
    }
    difference
}

/// `a` + `b`, element by element.
fn plus(mut a: ArrayD<f32>, b: &ArrayD<f32>) -> ArrayD<f32> {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    a
}

/// Columns of two matrices of as many rows.
fn beside(left: &Array2<f32>, right: &Array2<f32>) -> Array2<f32> {
    let mut both = Array2::zeros((left.nrows(), left.ncols() + right.ncols()));
    for ((mut row, left), right) in both.outer_iter_mut().zip(left.outer_iter()).zip(right.outer_iter()) {
        for (to, from) in row.iter_mut().zip(left.iter().chain(right)) {
            *to = *from;
        }
    }
    both
}

/// A matrix and a bias.
type Affine = (Array2<f32>, Array1<f32>);

/// Squared error of the stream behind a linear layer with `own` and every share of `correction` (an empty matrix for
/// none).
fn judge(images: &[AtHand], weights: &[f64], own: &Affine, correction: &Affine) -> [f64; 3] {
    let mut sums = [0.0; 3];
    for image in images {
        let given = product(image.rows.view(), own.0.view());
        let more = (!correction.0.is_empty()).then(|| product(image.rows.view(), correction.0.view()));
        // One pass over the numbers, without an array for each difference: this is most of a refit.
        let mut more = more.as_ref().map(|m| m.iter());
        for ((added, missing), given) in
            image.added.outer_iter().zip(image.missing.outer_iter()).zip(given.outer_iter())
        {
            let left = added.iter().zip(&missing).zip(&given).map(|((a, m), g)| a + m - g);
            for (column, ((left, w), bias)) in left.zip(weights).zip(&own.1).enumerate() {
                let left = left - bias;
                let more = more.as_mut().and_then(Iterator::next).map_or(0.0, |more| more + correction.1[column]);
                for (sum, c) in sums.iter_mut().zip(CORRECTIONS) {
                    *sum += w * (f64::from(left) - c * f64::from(more)).powi(2);
                }
            }
        }
    }
    sums
}
