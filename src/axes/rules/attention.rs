//! Typing of fused attention and of what exporters write beside it.

use super::vocabulary::Rule;
use crate::axes::factors::Dim;
use crate::axes::typing::{Contraction, Fused};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Attributes;

impl Rule<'_, '_> {
    /// Types a dimension as (heads, head dim) after an attribute that counts heads.
    fn heads_of(&mut self, dim: &Dim, attribute: &'static str) -> Result<(Dim, Dim)> {
        let count = self.node.int(attribute).unwrap_or(1).max(1) as usize;
        let n = self.size(dim);
        if !n.is_multiple_of(count) {
            return Err(self.fail(&format!("{n} features do not divide into {count} heads")));
        }
        let heads = self.typing.factors.fresh(count);
        let width = self.typing.factors.fresh(n / count);
        let pair: Dim = heads.iter().chain(&width).copied().collect();
        self.unify(dim, &pair);
        self.typing.head_counts.insert((self.k, attribute), heads.clone());
        Ok((heads, width))
    }

    fn fuse(&mut self, batch: Dim, heads: Dim, queries: Dim, keys: Dim, width: usize) {
        let size = |d: &Dim| self.size(d) as u64;
        let sizes = [size(&batch), size(&queries), size(&keys), width as u64];
        let macs = sizes.into_iter().fold(2u64, u64::saturating_mul);
        self.typing.contractions.push(Contraction { node: self.k, summed: Dim::new(), terms: Vec::new(), macs });
        self.typing.fused.insert(self.k, Fused { batch, heads, queries, keys });
    }

    /// Batch and tokens that stand in one axis without padding (`com.microsoft` PackedAttention and what belongs to
    /// it): those of the operand of token offsets [batch, tokens], for images of as many tokens each.
    fn padded(&mut self, kept: &Dim, offsets: usize) -> Result<[Dim; 2]> {
        let offsets = self.input(offsets)?;
        let [batch, tokens] = &offsets[..] else { return Err(self.fail("its token offsets want two dimensions")) };
        self.unify(kept, &batch.iter().chain(tokens).copied().collect());
        Ok([batch.clone(), tokens.clone()])
    }

    /// `com.microsoft` Attention and PackedAttention: the packed projection and the attention in one.
    pub(super) fn projected_attention(&mut self) -> Result<Vec<Dim>> {
        let (x, w) = (self.input(0)?, self.input(1)?);
        let unpadded = self.node.op_type() == "PackedAttention";
        if x.len() != if unpadded { 2 } else { 3 }
            || w.len() != 2
            || self.node.ints("qkv_hidden_sizes").is_some_and(|s| s.windows(2).any(|p| p[0] != p[1]))
        {
            return Err(Error::new(ErrorKind::Unsupported, "this form of the fused operator has no typing rule"));
        }
        let (lead, features) = (&x[..x.len() - 1], &x[x.len() - 1]);
        let [batch, tokens] = if unpadded { self.padded(&x[0], 3)? } else { [x[0].clone(), x[1].clone()] };
        self.unify(features, &w[0]);
        let count = self.node.int("num_heads").unwrap_or(1).max(1) as usize;
        let width = self.size(&w[1]) / 3;
        if !width.is_multiple_of(count) {
            return Err(self.fail(&format!("{width} features do not divide into {count} heads")));
        }
        let heads = self.typing.factors.fresh(count);
        let mut out_dim = heads.clone();
        out_dim.extend(self.typing.factors.fresh(width / count));
        let mut packed = self.typing.factors.fresh(3);
        packed.extend(out_dim.iter().copied());
        self.unify(&w[1], &packed);
        if let Some(Some(bias)) = self.inputs.get(2).cloned()
            && let [b] = &bias[..]
        {
            self.unify(b, &packed);
        }
        self.typing.head_counts.insert((self.k, "num_heads"), heads.clone());
        let projected: Vec<Dim> = lead.iter().chain([&w[1]]).cloned().collect();
        self.contraction(features.clone(), vec![w[0].clone()], &projected);
        self.fuse(batch, heads, tokens.clone(), tokens, width);
        Ok(lead.iter().cloned().chain([out_dim]).collect())
    }

    /// `com.microsoft` PackedMultiHeadAttention: [tokens of all images, heads x dim] three times, or [tokens, heads, 3,
    /// dim] once.
    pub(super) fn unpadded_attention(&mut self) -> Result<Vec<Dim>> {
        let q = self.input(0)?;
        let kept = q.first().cloned().unwrap_or_default();
        let [batch, tokens] = self.padded(&kept, 4)?;
        let [heads, dim, of_values] = match &q[..] {
            [_, heads, _, dim] => {
                self.typing.head_counts.insert((self.k, "num_heads"), heads.clone());
                [heads.clone(), dim.clone(), dim.clone()]
            }
            [_, features] => {
                let (k, v) = (self.input(1)?, self.input(2)?);
                let ([k_kept, k_features], [v_kept, v_features]) = (&k[..], &v[..]) else {
                    return Err(self.fail("keys and values want two dimensions, as the queries have"));
                };
                let (heads, dim) = self.heads_of(features, "num_heads")?;
                let (k_heads, k_dim) = self.heads_of(k_features, "num_heads")?;
                let (v_heads, v_dim) = self.heads_of(v_features, "num_heads")?;
                for (a, b) in [(&heads, &k_heads), (&heads, &v_heads), (&dim, &k_dim), (&kept, k_kept), (&kept, v_kept)]
                {
                    self.unify(a, b);
                }
                [heads, dim, v_dim]
            }
            _ => return Err(Error::new(ErrorKind::Unsupported, "this form of the fused operator has no typing rule")),
        };
        self.packed_bias(&heads, &dim, &of_values);
        let width = self.size(&heads).saturating_mul(self.size(&dim));
        self.fuse(batch, heads.clone(), tokens.clone(), tokens, width);
        Ok(vec![kept, heads.iter().chain(&of_values).copied().collect()])
    }

    /// The bias of `com.microsoft` MultiHeadAttention: that of queries, keys and values, one behind the other.
    fn packed_bias(&mut self, heads: &Dim, dim: &Dim, of_values: &Dim) {
        let Some(Some(bias)) = self.inputs.get(3).cloned() else { return };
        let [b] = &bias[..] else { return };
        let joined = |dim: &Dim| heads.iter().chain(dim).copied().collect::<Dim>();
        let (of_keys, of_values) = (joined(dim), joined(of_values));
        let packed = if self.size(&of_keys) == self.size(&of_values) {
            self.unify(&of_keys, &of_values);
            self.typing.factors.fresh(3).iter().chain(&of_keys).copied().collect()
        } else {
            self.typing.factors.sum(vec![of_keys.clone(), of_keys, of_values])
        };
        self.unify(b, &packed);
    }

    /// Attention of the default domain, and `com.microsoft` MultiHeadAttention: [batch, heads, tokens, dim], or [batch,
    /// tokens, heads x dim] with the number of heads as an attribute. MultiHeadAttention also takes keys and values
    /// with an axis of heads beside queries without one, and packed operands: [batch, tokens, heads, 3, dim], or
    /// queries beside [batch, tokens, heads, 2, dim].
    pub(super) fn attention(&mut self) -> Result<Vec<Vec<Dim>>> {
        let microsoft = self.node.op_type() == "MultiHeadAttention";
        let (of_queries, of_keys) =
            if microsoft { ("num_heads", "num_heads") } else { ("q_num_heads", "kv_num_heads") };
        let operands: Vec<Vec<Dim>> = (0..3).map_while(|j| self.inputs.get(j).cloned().flatten()).collect();
        let merged = operands.first().is_some_and(|q| q.len() != 4);
        let mut parts = Vec::new();
        for (j, dims) in operands.into_iter().enumerate() {
            match &dims[..] {
                [n, tokens, features] => {
                    let (heads, dim) = self.heads_of(features, if j == 0 { of_queries } else { of_keys })?;
                    parts.push([n.clone(), heads, tokens.clone(), dim]);
                }
                [n, heads, tokens, dim] => parts.push([n.clone(), heads.clone(), tokens.clone(), dim.clone()]),
                [n, tokens, heads, packed, dim] if microsoft => {
                    let part = [n.clone(), heads.clone(), tokens.clone(), dim.clone()];
                    parts.extend(vec![part; self.size(packed)]);
                    self.typing.head_counts.insert((self.k, of_queries), heads.clone());
                }
                _ => parts.clear(),
            }
        }
        let [q, k, v] = &parts[..] else {
            return Err(Error::new(ErrorKind::Unsupported, "this form of the fused operator has no typing rule"));
        };
        let [batch, heads, queries, dim] = q.clone();
        let [key_batch, key_heads, keys, key_dim] = k.clone();
        self.unify(&batch, &key_batch);
        self.unify(&batch, &v[0]);
        self.unify(&dim, &key_dim);
        self.unify(&keys, &v[2]);
        self.unify(&key_heads, &v[1]);
        self.share_heads(&heads, &key_heads)?;
        let joined = |heads: &Dim, dim: &Dim| heads.iter().chain(dim).copied().collect::<Dim>();
        let width = self.size(&heads).saturating_mul(self.size(&dim));
        if microsoft {
            self.packed_bias(&heads, &dim, &v[3]);
        }
        let mask = if microsoft { 5 } else { 3 };
        if let Some(Some(mask)) = self.inputs.get(mask).cloned()
            && mask.len() <= 4
        {
            self.broadcast(&[vec![batch.clone(), heads.clone(), queries.clone(), keys.clone()], mask]);
        }
        self.fuse(batch.clone(), heads.clone(), queries.clone(), keys.clone(), width);
        let out = match merged {
            true => vec![batch.clone(), queries.clone(), joined(&heads, &v[3])],
            false => vec![batch.clone(), heads.clone(), queries.clone(), v[3].clone()],
        };
        // Present keys and values, and the scores, where they are asked for.
        let scores = vec![batch, heads, queries, keys];
        Ok(vec![out, k.to_vec(), v.to_vec(), scores])
    }

    /// LinearAttention: [batch, tokens, heads x dim]; a state [batch, key heads, dim, dim of values] takes the place of
    /// scores.
    pub(super) fn linear_attention(&mut self) -> Result<Vec<Vec<Dim>>> {
        let [q, k, v] = [self.input(0)?, self.input(1)?, self.input(2)?];
        let ([batch, tokens, of_q], [_, _, of_k], [_, _, of_v]) = (&q[..], &k[..], &v[..]) else {
            return Err(self.fail("queries, keys and values want three dimensions"));
        };
        for other in [&k, &v] {
            self.unify(batch, &other[0]);
            self.unify(tokens, &other[1]);
        }
        let (heads, dim) = self.heads_of(of_q, "q_num_heads")?;
        let (key_heads, key_dim) = self.heads_of(of_k, "kv_num_heads")?;
        let (value_heads, value_dim) = self.heads_of(of_v, "kv_num_heads")?;
        self.unify(&dim, &key_dim);
        self.unify(&key_heads, &value_heads);
        self.share_heads(&heads, &key_heads)?;
        let state = vec![batch.clone(), key_heads.clone(), dim.clone(), value_dim.clone()];
        if let Some(Some(past)) = self.inputs.get(3).cloned() {
            if past.len() != 4 {
                return Err(self.fail("its state wants four dimensions"));
            }
            past.iter().zip(&state).for_each(|(a, b)| self.unify(a, b));
        }
        // What fades the state, for each head or for each of its features, and how much of it is corrected.
        for j in [4, 5] {
            let Some(Some(gate)) = self.inputs.get(j).cloned() else { continue };
            let [b, t, last] = &gate[..] else { return Err(self.fail("its gates want three dimensions")) };
            self.unify(batch, b);
            self.unify(tokens, t);
            match self.size(last) {
                1 => {}
                n if n == self.size(&key_heads) => self.unify(last, &key_heads),
                _ => self.unify(last, of_k),
            }
        }
        // Written for each head of keys, read for each head of queries.
        let outer = [batch, tokens, &dim, &value_dim].into_iter().map(|d| self.size(d) as u64);
        let each = outer.fold(1, u64::saturating_mul);
        let macs = each.saturating_mul((self.size(&heads) + self.size(&key_heads)) as u64);
        self.typing.contractions.push(Contraction { node: self.k, summed: dim, terms: Vec::new(), macs });
        let out = heads.iter().chain(&value_dim).copied().collect();
        Ok(vec![vec![batch.clone(), tokens.clone(), out], state])
    }

    /// Query heads that share key heads: each key head serves several that lie together.
    fn share_heads(&mut self, heads: &Dim, key_heads: &Dim) -> Result<()> {
        let (m, n) = (self.size(heads), self.size(key_heads));
        if m == n {
            self.unify(heads, key_heads);
        } else if n > 0 && m.is_multiple_of(n) {
            if let Some(outer) = self.typing.factors.outer(heads, n) {
                self.unify(&outer, key_heads);
            }
        } else {
            return Err(self.fail(&format!("{m} query heads cannot share {n} key heads")));
        }
        Ok(())
    }

    /// Offshoot's own attention: the shape is an attribute, and the sums of each query's exponentials come second.
    pub(super) fn offshoot_attention(&mut self) -> Result<Vec<Vec<Dim>>> {
        let list = |name: &str| self.node.ints(name).unwrap_or(&[]).iter().map(|&n| n.max(0) as usize).collect();
        let (shape, sizes): (Vec<usize>, Vec<usize>) = (list("shape"), list("sizes"));
        let sums = sizes.iter().take(3).copied().collect::<Vec<_>>();
        Ok(vec![self.fresh(&shape), self.fresh(&sums)])
    }

    pub(super) fn remove_padding(&mut self) -> Result<Vec<Vec<Dim>>> {
        let x = self.input(0)?;
        let [batch, tokens, features] = &x[..] else { return Err(self.fail("it wants three dimensions")) };
        let count = self.size(batch) + 1;
        let kept: Dim = batch.iter().chain(tokens).copied().collect();
        let offsets = vec![batch.clone(), tokens.clone()];
        Ok(vec![vec![kept, features.clone()], offsets, self.fresh(&[count]), self.fresh(&[1])])
    }

    pub(super) fn restore_padding(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        let [kept, features] = &x[..] else { return Err(self.fail("it wants two dimensions")) };
        let [batch, tokens] = self.padded(kept, 1)?;
        Ok(vec![batch, tokens, features.clone()])
    }

    /// Tokens that are turned by their place; a merged axis has its heads as an attribute.
    pub(super) fn rotary(&mut self) -> Result<Vec<Vec<Dim>>> {
        if self.node.int("num_heads").is_some_and(|n| n > 0) {
            let x = self.input(0)?;
            if x.len() == 3 {
                self.heads_of(&x[2], "num_heads")?;
            }
        }
        self.same()
    }
}
