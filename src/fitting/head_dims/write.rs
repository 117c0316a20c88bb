//! Puts the projections of attentions that are cut into a descendant.

use std::sync::Arc;

use faer::Mat;
use ndarray::Array2;

use super::super::algebra::{Covariance, select, times};
use super::super::network::Network;
use super::super::order::features;
use super::super::targets::{self, TargetFinder, TargetLinear};
use super::bases::{score_bases, value_bases};
use super::find::{HeadDimReduction, Operand, reductions};
use super::statistics::AttentionStatistics;
use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::error::Result;
use crate::learngene::BlockKind;
use crate::onnx::Model;
use crate::runtime::Runtime;

/// An attention of the ancestor as a descendant has it.
pub struct Truncation<'n> {
    /// The ancestor's attention.
    pub narrow: &'n HeadDimReduction,
    /// Its queries and keys.
    pub measured: &'n AttentionStatistics,
    /// Statistics of its heads.
    pub statistics: &'n Covariance,
    /// Its layer in the descendant.
    pub layer: usize,
    /// The ancestor's heads that are kept.
    pub heads: Vec<usize>,
}

/// Puts the projections of cut attentions into a descendant that has their shape already: pinned it is `child`, and the
/// weights go into `out`.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where an attention is not found again.
pub fn write(
    runtime: &Arc<Runtime>,
    ancestor: &Network,
    cuts: &[Truncation],
    child: &Model,
    out: &Model,
) -> Result<Model> {
    let pinned = Typing::new(child)?;
    let found = reductions(runtime, &pinned, child)?;
    let mut model = out.clone();
    for cut in cuts {
        let n = cut.narrow;
        let Some(own) = found.iter().find(|f| f.layer == cut.layer) else {
            bail!(Unsupported, "the attention of layer {} has lost its head dimension", n.layer)
        };
        let bases: Vec<(Mat<f64>, Mat<f64>, Vec<f64>)> =
            cut.heads.iter().map(|&h| score_bases(&cut.measured.0[h])).collect::<Result<_>>()?;
        let weight = ancestor.output_of_heads(n.layer)?;
        let values = value_bases(&cut.statistics.gram, &weight, &cut.heads, n.of[1])?;
        let [d, e] = own.of;
        let whole = d == n.of[0];
        let by_scale = f64::from(n.query.gain * n.key.gain * n.scale / (own.query.gain * own.key.gain * own.scale));
        // What stays whole is not turned.
        let turn = |base: &Mat<f64>, factor: f64| match whole {
            true => Mat::<f64>::identity(d, d) * faer::Scale(factor),
            false => base.subcols(0, d) * faer::Scale(factor),
        };
        let turned = |mats: Vec<Mat<f64>>, a: &Operand, b: &Operand, size: [usize; 2], bias: bool| BasisChange {
            from: a.projection.clone(),
            to: b.projection.output.clone(),
            columns: [a.columns.clone(), b.columns.clone()],
            size,
            bases: mats,
            bias,
        };
        let queries = bases.iter().map(|b| turn(&b.0, by_scale)).collect();
        let keys = bases.iter().map(|b| turn(&b.1, 1.0)).collect();
        let gain = f64::from(n.values.gain / own.values.gain);
        let whole_values = e == n.of[1];
        let cut_values: Vec<Mat<f64>> = values
            .iter()
            .map(|(base, _)| match whole_values {
                true => Mat::<f64>::identity(e, e) * faer::Scale(gain),
                false => base.subcols(0, e) * faer::Scale(gain),
            })
            .collect();
        let turns = [
            turned(queries, &n.query, &own.query, [n.of[0], d], true),
            turned(keys, &n.key, &own.key, [n.of[0], d], whole),
            turned(cut_values, &n.values, &own.values, [n.of[1], e], true),
        ];
        for turn in &turns {
            turn.write(runtime, ancestor, &cut.heads, &mut model)?;
        }
        // The output projection follows the values.
        if !whole_values {
            let typing = Typing::new(&model)?;
            let anatomy = Anatomy::new(&typing)?;
            let (linears, _) = targets::find_targets(&typing, &anatomy);
            let Some(linear) = linears.iter().find(|s| (s.layer, s.kind) == (cut.layer, BlockKind::Heads)) else {
                bail!(Unsupported, "the output projection of layer {} has disappeared", n.layer)
            };
            let (_, bias) = linear.matrix(runtime, &typing, &model)?;
            let mut matrix = Array2::<f32>::zeros((cut.heads.len() * e, weight.ncols()));
            let all: Vec<usize> = (0..weight.ncols()).collect();
            for (i, (&h, (base, _))) in cut.heads.iter().zip(&values).enumerate() {
                let own =
                    times(base.subcols(0, e).transpose(), select(&weight, &features(&[h], n.of[1]), &all).as_ref());
                for r in 0..e {
                    all.iter().for_each(|&c| matrix[[i * e + r, c]] = own[(r, c)] as f32);
                }
            }
            let mut next = model.clone();
            linear.write(&[], &typing, &mut next, &matrix, &bias)?;
            drop(linears);
            model = next;
        }
    }
    Ok(model)
}

/// Columns of a projection that are made from those of the ancestor's, head by head.
struct BasisChange {
    from: TargetLinear,
    /// The value that leaves the descendant's projection.
    to: String,
    /// By head and dimension: in the ancestor, and in the descendant.
    columns: [Vec<usize>; 2],
    size: [usize; 2],
    bases: Vec<Mat<f64>>,
    /// False where the bias falls away.
    bias: bool,
}

impl BasisChange {
    fn write(&self, runtime: &Arc<Runtime>, ancestor: &Network, heads: &[usize], model: &mut Model) -> Result<()> {
        let (old, old_bias) = self.from.matrix(runtime, &ancestor.typing, ancestor.model)?;
        let typing = Typing::new(model)?;
        let finder = TargetFinder::new(&typing);
        let linear = typing
            .contractions
            .iter()
            .filter_map(|c| finder.linear(self.from.layer, BlockKind::Heads, c.node, None, None))
            .find(|s| s.output == self.to);
        let Some(linear) = linear else { bail!(Unsupported, "the projection `{}` has disappeared", self.to) };
        let (mut matrix, mut bias) = linear.matrix(runtime, &typing, model)?;
        let [d, r] = self.size;
        for (i, (&h, base)) in heads.iter().zip(&self.bases).enumerate() {
            for j in 0..r {
                let to = self.columns[1][i * r + j];
                let mut column = vec![0f64; old.nrows()];
                let mut shift = 0.0;
                for x in 0..d {
                    let from = self.columns[0][h * d + x];
                    let factor = base[(x, j)];
                    column.iter_mut().zip(old.column(from)).for_each(|(c, w)| *c += factor * f64::from(*w));
                    shift += factor * f64::from(old_bias[from]);
                }
                matrix.column_mut(to).iter_mut().zip(&column).for_each(|(m, c)| *m = *c as f32);
                bias[to] = if self.bias { shift as f32 } else { 0.0 };
            }
        }
        let mut next = model.clone();
        linear.write(&[], &typing, &mut next, &matrix, &bias)?;
        drop(typing);
        *model = next;
        Ok(())
    }
}
