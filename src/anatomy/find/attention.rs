//! Attentions: a Softmax, its heads, and the projection behind it.

use super::super::softmax::score_axes;
use super::super::structure::{Attention, Mixing};
use super::finder::{BlockFinder, WeightContraction};
use super::residual::is_skip_norm;
use crate::axes::{Dim, Factor};
use crate::onnx::proto::NodeProto;

impl<'m> BlockFinder<'_, 'm> {
    pub fn attentions(&self) -> Vec<Attention> {
        let typing = self.typing;
        let (mut found, mut linear): (Vec<Attention>, Vec<Attention>) = Default::default();
        for (k, node) in typing.graph.node.iter().enumerate() {
            let fused = typing.fused.get(&k);
            // What depends on no input is a constant, as the first attention of DETR's decoder, whose queries are zero.
            if node.output.first().is_some_and(|o| typing.is_constant(o)) {
                continue;
            }
            let (front, queries, keys) = match (fused, node) {
                (Some(f), _) => (vec![f.batch.clone(), f.heads.clone()], f.queries.clone(), f.keys.clone()),
                (None, _) if self.is_softmax(k) => {
                    let Some(dims) = node.output.first().and_then(|o| typing.dims.get(o.as_str())) else { continue };
                    let Some((front, [q, k])) = score_axes(typing, node, dims) else { continue };
                    (front.into_iter().map(|a| dims[a].clone()).collect(), dims[q].clone(), dims[k].clone())
                }
                _ => continue,
            };
            // Groups that compete for tokens (GroupViT): the Softmax runs over what asks, not over what is asked.
            let competes = fused.is_none() && !self.weighs_values(k, &keys) && self.is_product_over(k, &queries);
            let (queries, keys) = if competes { (keys, queries) } else { (queries, keys) };
            let attends = fused.is_some() || self.weighs_values(k, &keys);
            if let Some(bare) = attends.then(|| self.bare(k, &front, [&queries, &keys])).flatten() {
                found.push(bare);
                continue;
            }
            let Some(projection) = attends.then(|| self.projection(k, &keys)).flatten() else {
                linear.extend(self.linear(k));
                continue;
            };
            let WeightContraction { summed, made } = &self.weight[&projection];
            let front: Dim = front.iter().flat_map(|d| typing.factors.leaves(d)).collect();
            let (head_mixers, behind) = self.head_mixers(k, &front, projection);
            let mut heads: Dim = behind.into_iter().filter(|f| self.meet(&[*f], summed)).collect();
            let own = self.own_heads(k, &heads);
            let queries_per_kv_head: Dim = match own.is_empty() || own.len() == heads.len() {
                true => Dim::new(),
                false => std::mem::replace(&mut heads, own.clone()).into_iter().filter(|f| !own.contains(f)).collect(),
            };
            // What is summed over may hold more than heads: a projection that an FFN shares.
            let made_of = if heads.is_empty() { self.attended(k, &keys) } else { heads.clone() };
            let own = self.segments(summed).find(|s| self.meet(s, &made_of)).unwrap_or_else(|| summed.clone());
            let head_dim = own.into_iter().filter(|f| !self.meet(&[*f], &heads)).collect();
            let tokens = [queries, keys].map(|d| typing.factors.leaves(&d));
            let attention = Attention {
                heads,
                head_mixers,
                queries_per_kv_head,
                ..attention(vec![k], projection, head_dim, made.clone(), tokens)
            };
            // Of several Softmaxes before one projection, one whose queries and keys are tokens decides: another may
            // run over the places of a kernel that is computed for each token (ConvBERT).
            let over_tokens = |a: &Attention| self.size(&a.queries) > 1 && a.queries == a.keys;
            match found.iter_mut().find(|a| a.projection == projection) {
                Some(same) if self.size(&same.queries) < 2 && over_tokens(&attention) => *same = attention,
                Some(same) if self.size(&attention.queries) < 2 && over_tokens(same) => {}
                Some(same) => same.softmax.push(k),
                None => found.push(attention),
            }
        }
        // Heads that each have a Softmax of their own are joined by a Concat: its pieces are the heads.
        for a in found.iter_mut().filter(|a| a.heads.is_empty() && a.softmax.len() > 1) {
            if let Some((&pieces, rest)) = a.head_dim.split_first()
                && self.size(&[pieces]) == a.softmax.len()
            {
                (a.heads, a.head_dim) = (Dim::from_slice(&[pieces]), Dim::from_slice(rest));
            }
        }
        linear.retain(|l| found.iter().all(|a| a.projection != l.projection));
        found.extend(linear);
        found.sort_by_key(|a| a.softmax.first().copied().unwrap_or(a.projection));
        found
    }

    /// An attention without an output projection (the stages of T2T-ViT that cut tokens anew): what it attends to is
    /// added to the stream as it is, to a value that scores and values are made from. Its heads are channels of the
    /// stream. The product of probabilities and values stands in the place of the projection.
    fn bare(&self, softmax: usize, front: &[Dim], tokens: [&Dim; 2]) -> Option<Attention> {
        let product = self.product(softmax, tokens[1])?;
        let is_given = |x: &&str| !(x.is_empty() || product == softmax && self.typing.is_constant(x));
        let operands: Vec<&str> = self.links.inputs(product).take(3).filter(is_given).collect();
        let is_made = |x: &str, of: &str| x == of || self.links.maker(x).is_some_and(|m| self.is_made_from(m, of));
        let is_stream = |x: &str| !self.typing.is_constant(x) && operands.iter().all(|o| is_made(o, x));
        let is_sum = |k: &usize| matches!(self.node(*k).op_type(), "Add" | "Sum") || is_skip_norm(self.node(*k));
        let mut later = self.links.downstream(self.links.outputs(product)).until(|k| self.weight.contains_key(&k));
        let join = later.find(|k| is_sum(k) && self.links.inputs(*k).any(is_stream))?;
        let leaves = |d: &Dim| self.typing.factors.leaves(d);
        let dims = |x: &str| self.typing.dims.get(x);
        let width = leaves(dims(self.links.outputs(product).next()?)?.last()?);
        let made = dims(self.sum_of(join)?)?.iter().map(leaves).find(|d| self.meet(d, &width))?;
        let heads: Dim = front.iter().flat_map(leaves).filter(|f| made.contains(f)).collect();
        let head_dim = made.iter().copied().filter(|f| !heads.contains(f)).collect();
        Some(Attention { heads, ..attention(vec![softmax], product, head_dim, made, tokens.map(leaves)) })
    }

    /// Linear attention (MobileViT v2, SwiftFormer): there is no map from queries to keys. Scores weigh keys, which are
    /// added up over all tokens, and the context that this makes is multiplied with the values of every token.
    fn linear(&self, softmax: usize) -> Option<Attention> {
        let ends = |k: usize| self.weight.contains_key(&k) || self.node(k).op_type() == "ReduceSum";
        let mut scores = self.links.downstream(self.links.outputs(softmax)).until(ends);
        let sum = scores.find(|&k| self.node(k).op_type() == "ReduceSum")?;
        let leaves = |x: &str| -> Dim {
            let dims = self.typing.dims.get(x).into_iter().flatten();
            dims.flat_map(|d| self.typing.factors.leaves(d)).collect()
        };
        let (weighed, context) = (self.links.inputs(sum).next()?, self.links.outputs(sum).next()?);
        let kept = leaves(context);
        let tokens: Dim = leaves(weighed).into_iter().filter(|f| !kept.contains(f)).collect();
        let is_value = |x: &str| {
            let computed = self.links.maker(x).filter(|_| !self.typing.is_constant(x));
            computed.is_some_and(|m| !self.is_made_from(m, context)) && self.meet(&leaves(x), &tokens)
        };
        let mut later = self.links.downstream([context]).until(|k| self.weight.contains_key(&k));
        later.find(|&k| self.node(k).op_type() == "Mul" && self.links.inputs(k).any(is_value))?;
        // What is added on the way is made of a part of what the attention takes, and is no stream.
        let returns = |k: &usize| {
            let skip = self.residual_join(*k).map(|(skip, _)| self.unscaled(skip));
            skip.is_some_and(|skip| self.is_made_from_all_of(*k, skip))
        };
        let projection = self.links.downstream([context]).filter(|k| self.weight.contains_key(k)).find(returns)?;
        let WeightContraction { summed, made } = &self.weight[&projection];
        Some(attention(Vec::new(), projection, summed.clone(), made.clone(), [tokens.clone(), tokens]))
    }

    /// True where whatever a node is made from passes a value.
    fn is_made_from_all_of(&self, k: usize, value: &str) -> bool {
        let computed = self.links.upstream(self.links.inputs(k)).along(|x| !self.typing.is_constant(x));
        computed.until(|x| x == value).all(|x| x == value || self.links.maker(x).is_some())
    }

    /// A Softmax over the last axis, also where it is written out: exponentials over their sum.
    fn is_softmax(&self, k: usize) -> bool {
        let node = self.node(k);
        let maker = |x: &String| self.links.maker(x).map(|m| self.node(m));
        let sums_last = |sum: &NodeProto, of: &String| {
            let shape = |x: &String| self.typing.shape(x);
            sum.op_type() == "ReduceSum"
                && sum.input.first() == Some(of)
                && sum.output.first().and_then(shape).zip(shape(of)).is_some_and(|(mut one, all)| {
                    one.last() == Some(&1) && {
                        one.pop();
                        all.starts_with(&one) && all.len() == one.len() + 1
                    }
                })
        };
        match (node.op_type(), &node.input[..]) {
            ("Softmax", _) => true,
            ("Div", [e, sum]) => {
                maker(e).is_some_and(|m| m.op_type() == "Exp") && maker(sum).is_some_and(|m| sums_last(m, e))
            }
            ("Mul", [a, b]) => [(a, b), (b, a)].into_iter().any(|(e, inverse)| {
                let sum = maker(inverse).filter(|m| m.op_type() == "Reciprocal").and_then(|m| maker(m.input.first()?));
                maker(e).is_some_and(|m| m.op_type() == "Exp") && sum.is_some_and(|m| sums_last(m, e))
            }),
            _ => false,
        }
    }

    /// Talking heads: weight contractions from heads to as many heads, of scores on the way to the Softmax or of
    /// probabilities behind it. Returns them in order, and the leading factors behind the last one.
    fn head_mixers(&self, softmax: usize, front: &Dim, projection: usize) -> (Vec<Mixing>, Dim) {
        let mut found = Vec::new();
        if self.typing.fused.contains_key(&softmax) {
            return (found, front.clone());
        }
        let mixes =
            |from: &[Factor], to: &[Factor]| from.len() == 1 && to.len() == 1 && self.size(from) == self.size(to);
        // Backwards to the product of queries and keys: what is summed over makes heads.
        let mut heads = front.clone();
        let mut from = softmax;
        let is_end = |m: usize| self.weight.contains_key(&m) || self.is_product(m);
        loop {
            let values = self.links.upstream(self.links.inputs(from));
            let nodes = values.until(|x| self.links.maker(x).is_some_and(is_end)).nodes();
            let mut contractions = nodes.filter_map(|m| self.weight.get_key_value(&m));
            let mixing = contractions.find(|(_, w)| mixes(&w.summed, &w.made) && self.meet(&w.made, &heads));
            let Some((&m, w)) = mixing else { break };
            found.insert(0, Mixing { node: m, heads: w.summed.clone() });
            (from, heads) = (m, w.summed.clone());
        }
        // Forwards to the product with the values.
        let mut heads = front.clone();
        let mut walk = self.links.downstream(self.links.outputs(softmax)).through(|m| m < projection);
        while let Some(m) = walk.next() {
            match self.weight.get(&m) {
                Some(w) if mixes(&w.summed, &w.made) && self.meet(&w.summed, &heads) => {
                    found.push(Mixing { node: m, heads: w.summed.clone() });
                    heads = w.made.clone();
                }
                None if !self.is_product(m) => {}
                _ => walk.stop(),
            }
        }
        (found, heads)
    }

    fn is_product(&self, k: usize) -> bool {
        matches!(self.node(k).op_type(), "MatMul" | "FusedMatMul" | "Einsum")
    }

    /// True for a product of probabilities with values. Values may be constants where it sums over the keys: those of
    /// queries that are zero at first (DETR). Any other product with a weight mixes heads (talking heads), also where
    /// one head is left and nothing is summed over.
    fn takes_values(&self, k: usize, keys: &Dim) -> bool {
        let is_computed = || !self.node(k).input.iter().any(|x| self.typing.is_constant(x));
        self.is_product(k) && (is_computed() || self.sums_over(k, keys))
    }

    /// True where a node sums over some of these factors.
    fn sums_over(&self, k: usize, factors: &Dim) -> bool {
        let leaves = |dim: &Dim| self.typing.factors.all_leaves(dim);
        let factors = leaves(factors);
        self.summed.get(&k).into_iter().flatten().any(|dim| leaves(dim).iter().any(|f| factors.contains(f)))
    }

    /// The heads that keys carry all the way from their projection: grouped queries share the others.
    fn own_heads(&self, softmax: usize, heads: &Dim) -> Dim {
        let [_, keys] = self.score_operands(softmax)[..] else { return heads.clone() };
        let mut own = heads.clone();
        let projected = |x: &str| self.links.maker(x).is_some_and(|m| self.weight.contains_key(&m));
        for x in self.links.upstream([keys]).along(|x| !self.typing.is_constant(x)).until(projected) {
            let carried: Vec<Factor> =
                self.typing.dims.get(x).into_iter().flatten().flat_map(|d| self.typing.factors.all_leaves(d)).collect();
            if heads.iter().any(|f| carried.contains(f)) {
                own.retain(|f| carried.contains(f));
            }
        }
        own
    }

    /// True where a product behind a Softmax sums over its keys, with the probabilities as weights. Places that are
    /// sampled (deformable attention) are added up as they are, and are no keys that queries meet.
    fn weighs_values(&self, softmax: usize, keys: &Dim) -> bool {
        let later = self.links.downstream(self.links.outputs(softmax)).until(|k| self.takes_values(k, keys));
        keys.is_empty() || later.into_iter().any(|k| self.is_product(k) && self.sums_over(k, keys))
    }

    /// True where the first product of computed values behind a Softmax sums over some of these factors.
    fn is_product_over(&self, softmax: usize, factors: &Dim) -> bool {
        let is_end = |k: usize| self.weight.contains_key(&k) || self.is_product(k);
        let mut later = self.links.downstream(self.links.outputs(softmax)).until(is_end);
        let product = later.find(|&k| self.is_product(k) && !self.weight.contains_key(&k));
        product.is_some_and(|k| self.sums_over(k, factors))
    }

    /// The factors of what an attention makes: of the product of its probabilities with the values.
    fn attended(&self, softmax: usize, keys: &Dim) -> Dim {
        let Some(k) = self.product(softmax, keys) else { return Dim::new() };
        let dims = self.links.outputs(k).take(1).filter_map(|o| self.typing.dims.get(o)).flatten();
        dims.flat_map(|d| self.typing.factors.leaves(d)).collect()
    }

    /// The product of the probabilities with the values.
    fn product(&self, softmax: usize, keys: &Dim) -> Option<usize> {
        let product = |k: &usize| self.typing.fused.contains_key(k) || self.takes_values(*k, keys);
        std::iter::once(softmax).chain(self.links.downstream(self.links.outputs(softmax))).find(product)
    }

    /// Forward from the probabilities: their product with the values, then the first contraction with a weight of what
    /// the attention made that everything made from it passes through; else the first one.
    fn projection(&self, softmax: usize, keys: &Dim) -> Option<usize> {
        let attended = self.attended(softmax, keys);
        let mut product = self.typing.fused.contains_key(&softmax);
        let mut first = None;
        let computed = |o: &str| !self.typing.known.contains_key(o);
        let mut walk = self.links.downstream(self.links.outputs(softmax)).along(computed);
        while let Some(k) = walk.next() {
            match self.weight.get(&k) {
                Some(w) if product => {
                    first = first.or(Some(k));
                    if walk.is_bottleneck() && self.meet(&w.summed, &attended) {
                        return Some(k);
                    }
                }
                _ => product = product || self.takes_values(k, keys),
            }
        }
        first
    }

    /// The two values whose product is the scores: queries and keys.
    pub fn score_operands(&self, softmax: usize) -> Vec<&'m str> {
        let node = self.node(softmax);
        if self.typing.fused.contains_key(&softmax) {
            let queries = node.input.first().map_or("", String::as_str);
            // One operand may hold queries, keys and values.
            let separate = node.input.get(1).filter(|x| !x.is_empty() && !self.weight.contains_key(&softmax));
            return vec![queries, separate.map_or(queries, String::as_str)];
        }
        let dims = node.output.first().and_then(|o| self.typing.dims.get(o.as_str()));
        let Some([.., queries, keys]) = dims.map(Vec::as_slice) else { return Vec::new() };
        let computed = self.links.upstream(self.links.inputs(softmax)).along(|x| !self.typing.is_constant(x));
        let mut of_pairs = Vec::new();
        for m in computed.nodes().filter(|&m| self.is_product(m)) {
            let operands: Vec<&str> = self.links.inputs(m).take(2).collect();
            let [a, b] = operands[..] else { continue };
            let axes = |x: &str, of: &[&Dim]| {
                let dims = self.typing.dims.get(x).into_iter().flatten();
                dims.filter(|d| of.iter().any(|part| self.meet(d, part))).count()
            };
            if !operands.iter().any(|o| self.typing.is_constant(o)) {
                // What has an axis for queries and one for keys is a place for each pair of them (Bros), and not what
                // is asked for.
                match operands.iter().any(|x| axes(x, &[queries, keys]) > 1) {
                    false => return operands,
                    true if of_pairs.is_empty() => of_pairs = operands,
                    true => {}
                }
                continue;
            }
            // Learned queries are fixed. Weights that mix heads have no queries, and tables of relative positions have
            // keys too.
            let holds = |x: &str, part: &Dim| axes(x, &[part]) > 0;
            let sides = |q: &str, k: &str| holds(q, queries) && !holds(q, keys) && holds(k, keys) && !holds(k, queries);
            if sides(a, b) || sides(b, a) {
                return operands;
            }
        }
        of_pairs
    }
}

/// An attention of one head, of which no more is known than itself.
fn attention(softmax: Vec<usize>, projection: usize, head_dim: Dim, embedding: Dim, tokens: [Dim; 2]) -> Attention {
    let [queries, keys] = tokens;
    Attention {
        softmax,
        projection,
        heads: Dim::new(),
        head_mixers: Vec::new(),
        queries_per_kv_head: Dim::new(),
        head_dim,
        embedding,
        queries,
        keys,
        ffns: Vec::new(),
        convolution: None,
        sum: None,
        residual_in: None,
        residual_out: None,
        residual_adds: Vec::new(),
    }
}
