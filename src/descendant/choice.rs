//! The shape that a user asks for, resolved against what the ancestor has.

use std::str::FromStr;

use serde::Serialize;

use crate::anatomy::{Anatomy, Stack};
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};

/// Which layers of the ancestor the descendant has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layers {
    /// All of them.
    #[default]
    All,
    /// The first N.
    First(usize),
    /// The last N.
    Last(usize),
    /// N that lie evenly, the first and the last among them.
    Even(usize),
    /// These, in ascending order.
    List(Vec<usize>),
    /// Those of each of the named stacks, counted within the stack, and all of the others.
    Stacks(Vec<(String, Layers)>),
}

impl FromStr for Layers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let stack = |part: &str| {
            let name = part.split_once(':')?.0.trim();
            (!matches!(name, "first" | "last" | "even") && !name.is_empty()).then(|| name.to_string())
        };
        if !text.split(',').any(|part| stack(part).is_some()) {
            return Layers::of_one_stack(text);
        }
        // A comma stands between stacks, and between layers of one: what names no stack belongs to the one before it.
        let mut named: Vec<(String, String)> = Vec::new();
        for part in text.split(',') {
            match (stack(part), named.last_mut()) {
                (Some(name), _) => {
                    let choice = part.split_once(':').map_or("", |p| p.1);
                    named.push((name, choice.to_string()));
                }
                (None, Some((_, choice))) => *choice = format!("{choice},{part}"),
                (None, None) => {
                    return Err(Error::new(ErrorKind::Usage, format!("`{part}` of `{text}` names no stack"))
                        .hint("name the stack of every choice, such as vision:even:2,text:last:1"));
                }
            }
        }
        let stacks = named.into_iter().map(|(name, choice)| Ok((name, Layers::of_one_stack(&choice)?)));
        Ok(Layers::Stacks(stacks.collect::<Result<_>>()?))
    }
}

impl Layers {
    fn of_one_stack(text: &str) -> Result<Self> {
        let number = |s: &str| -> Result<usize> {
            match s.trim().parse() {
                Ok(n) => Ok(n),
                Err(_) => Err(Error::new(ErrorKind::Usage, format!("`{text}` is no choice of layers")).hint(
                    "write 6 (the first six), last:6, even:6 or a list such as 0,2,5; of one of several stacks \
                        vision:even:6",
                )),
            }
        };
        Ok(match text.split_once(':') {
            Some(("first", n)) => Layers::First(number(n)?),
            Some(("last", n)) => Layers::Last(number(n)?),
            Some(("even", n)) => Layers::Even(number(n)?),
            Some(_) => {
                number("?")?;
                Layers::All
            }
            None if text.contains(',') => {
                let list = text.split(',').filter(|p| !p.trim().is_empty()).map(number).collect::<Result<_>>()?;
                Layers::List(list)
            }
            None => Layers::First(number(text)?),
        })
    }

    /// Indices of the chosen layers of a model with these stacks, and those that are spared. Numbers of layers count
    /// those that are not; a list names layers of the model.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where there are not that many, where there is no such stack, and where one is named twice.
    pub fn choose(&self, stacks: &[Stack], spared: &[bool]) -> Result<Vec<usize>> {
        let mut kept: Vec<usize> = Vec::new();
        let Layers::Stacks(named) = self else {
            let is_list = matches!(self, Layers::List(_));
            let counted: Vec<usize> = (0..spared.len()).filter(|&l| is_list || !spared[l]).collect();
            kept.extend(self.resolve(counted.len())?.into_iter().map(|l| counted[l]));
            kept.extend((0..spared.len()).filter(|&l| spared[l]));
            kept.sort_unstable();
            kept.dedup();
            return Ok(kept);
        };
        for (i, (name, choice)) in named.iter().enumerate() {
            let Some(stack) = stacks.iter().find(|s| s.name == *name) else {
                return Err(Error::new(ErrorKind::Usage, format!("the ancestor has no stack `{name}`"))
                    .hint(format!("it has {}", listed(stacks))));
            };
            if named[..i].iter().any(|(before, _)| before == name) {
                return Err(Error::new(ErrorKind::Usage, format!("the stack `{name}` is named twice"))
                    .hint("give each stack one choice of layers"));
            }
            let count = stack.layers.len();
            let chosen = choice.resolve(count).map_err(|e| {
                Error::new(e.kind(), format!("`{name}`: {}", e.marked()))
                    .hint(format!("the stack has {count} layers, which count from 0 within it"))
            })?;
            kept.extend(chosen.into_iter().map(|l| stack.layers[l]));
        }
        let others = stacks.iter().filter(|s| !named.iter().any(|(name, _)| *name == s.name));
        kept.extend(others.flat_map(|s| &s.layers));
        kept.sort_unstable();
        Ok(kept)
    }

    /// Indices of the chosen layers among `count`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where there are not that many.
    pub fn resolve(&self, count: usize) -> Result<Vec<usize>> {
        let enough = |n: usize| -> Result<usize> {
            match n {
                0 => bail!(Usage, "a descendant needs at least one layer"),
                n if n > count => bail!(Usage, "{n} layers were asked for and the ancestor has {count}"),
                n => Ok(n),
            }
        };
        Ok(match self {
            Layers::All => (0..count).collect(),
            Layers::First(n) => (0..enough(*n)?).collect(),
            Layers::Last(n) => (count - enough(*n)?..count).collect(),
            Layers::Even(n) => match enough(*n)? {
                1 => vec![0],
                n => (0..n).map(|i| (i * (count - 1) + (n - 1) / 2) / (n - 1)).collect(),
            },
            Layers::List(list) => {
                enough(list.len())?;
                if list.windows(2).any(|w| w[0] >= w[1]) {
                    bail!(Usage, "the layers {list:?} are not in ascending order");
                }
                if let Some(l) = list.iter().find(|&&l| l >= count) {
                    bail!(Usage, "there is no layer {l}: the ancestor has layers 0 to {}", count.saturating_sub(1));
                }
                list.clone()
            }
            Layers::Stacks(_) => bail!(Usage, "stacks have names only within a model"),
        })
    }
}

/// Checks that every stack keeps a layer. Returns what is to be said of stacks that lose all because `layers` lists
/// those that stay one by one, and of parts of a stack that have channels of their own and lose all.
///
/// # Errors
/// [`ErrorKind::Usage`] for a stack that would be empty because layers are counted over all of them.
pub(super) fn check_stacks(typing: &Typing, anatomy: &Anatomy, layers: &Layers, kept: &[usize]) -> Result<Vec<String>> {
    let is_gone = |layers: &[usize]| !layers.iter().any(|l| kept.contains(l));
    let empty = |s: &Stack| format!("no layer of the stack `{}` is left", s.name);
    let gone: Vec<&Stack> = anatomy.stacks.iter().filter(|s| is_gone(&s.layers)).collect();
    let is_list = matches!(layers, Layers::List(_));
    if let Some(stack) = gone.first().filter(|_| !is_list) {
        let message = format!("{}: layers are counted over all stacks", empty(stack));
        let example: Vec<String> = anatomy.stacks.iter().map(|s| format!("{}:1", s.name)).collect();
        return Err(Error::new(ErrorKind::Usage, message).hint(format!(
            "name the stack, as in ⟦layers⟧ {}; the ancestor has {}",
            example.join(","),
            listed(&anatomy.stacks)
        )));
    }
    let parts = anatomy.stacks.iter().flat_map(|s| anatomy.by_channels(typing, s));
    let lost = parts.filter(|layers| is_gone(layers)).map(|layers| {
        let channels = typing.factors.size(&anatomy.layers[layers[0]].embedding);
        format!("no layer is left of those that work on {channels} channels of their own: {}", ranges(&layers))
    });
    Ok(gone.into_iter().map(empty).chain(lost).collect())
}

/// The stacks of a model, for a message.
fn listed(stacks: &[Stack]) -> String {
    let one = |s: &Stack| format!("`{}` ({})", s.name, ranges(&s.layers));
    stacks.iter().map(one).collect::<Vec<_>>().join(" and ")
}

/// Layers as ranges: "layers 0 to 2", "layers 0 to 2 and 6".
fn ranges(layers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &l in layers {
        match runs.last_mut() {
            Some(run) if run.1 + 1 == l => run.1 = l,
            _ => runs.push((l, l)),
        }
    }
    let one = |&(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a} to {b}") };
    let word = if layers.len() == 1 { "layer" } else { "layers" };
    format!("{word} {}", runs.iter().map(one).collect::<Vec<_>>().join(" and "))
}

/// How many heads the layers of the descendant have.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Heads {
    /// As many as the ancestor's.
    #[default]
    Same,
    /// This many in every layer.
    Count(usize),
    /// This many in each layer of the descendant.
    List(Vec<usize>),
    /// The ancestor's, divided by this.
    Width(f64),
    /// This share of each layer's own, in percent: rounded, and at least one.
    Percent(f64),
    /// Half in the lower third of the layers, three quarters in the middle, all in the upper third.
    Incrementing,
    /// All in the lower third of the layers, three quarters in the middle, half in the upper third.
    Decrementing,
}

impl FromStr for Heads {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |s: &str| -> Result<usize> {
            s.trim().parse().map_err(|_| {
                Error::new(ErrorKind::Usage, format!("`{text}` is no number of heads"))
                    .hint("write 4, a share such as 50%, a list such as 4,4,2,2, incrementing or decrementing")
            })
        };
        if let Some(share) = text.strip_suffix('%') {
            let share = share.trim().parse().ok().filter(|s| *s > 0.0 && *s <= MAX_PERCENT);
            return share.map(Heads::Percent).map_or_else(|| number(text).map(Heads::Count), Ok);
        }
        Ok(match text {
            "incrementing" => Heads::Incrementing,
            "decrementing" => Heads::Decrementing,
            _ if text.contains(',') => {
                Heads::List(text.split(',').filter(|p| !p.trim().is_empty()).map(number).collect::<Result<_>>()?)
            }
            _ => Heads::Count(number(text)?),
        })
    }
}

/// A layer as far as the number of heads is concerned.
#[derive(Clone, Copy, Debug)]
pub struct LayerHeads {
    /// The layer's index in the ancestor.
    pub layer: usize,
    /// Its heads.
    pub heads: usize,
    /// True where its heads are an axis of the graph that can be resized.
    pub resizable: bool,
}

impl Heads {
    /// Heads of each layer, and warnings about layers that keep theirs.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for numbers that cannot be.
    pub fn resolve(&self, layers: &[LayerHeads]) -> Result<(Vec<usize>, Vec<String>)> {
        let mut warnings = Vec::new();
        let mut counts = Vec::new();
        if let Heads::List(list) = self
            && list.len() != layers.len()
        {
            bail!(Usage, "⟦heads⟧ lists {} layers and the descendant has {}", list.len(), layers.len());
        }
        for (i, l) in layers.iter().enumerate() {
            let third = 3 * i / layers.len().max(1);
            let share = |third: usize| match third {
                0 => (l.heads / 2).max(1),
                1 => (l.heads * 3 / 4).max(1),
                _ => l.heads,
            };
            let wanted = match self {
                Heads::Same => l.heads,
                Heads::Count(n) => *n,
                Heads::List(list) => list[i],
                Heads::Incrementing => share(third),
                Heads::Decrementing => share(2 - third),
                Heads::Width(_) | Heads::Percent(_) if !l.resizable => l.heads,
                Heads::Percent(p) => percent(l.heads, *p),
                Heads::Width(w) => {
                    let n = l.heads as f64 / w;
                    if !(w.is_finite() && *w > 0.0) || (n - n.round()).abs() > 1e-9 * n.max(1.0) || n.round() < 1.0 {
                        bail!(
                            Usage,
                            "⟦width⟧ {w} gives layer {} no whole number of heads: it has {}",
                            l.layer,
                            l.heads
                        );
                    }
                    n.round() as usize
                }
            };
            if wanted == 0 {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("layer {} was given 0 heads; an attention needs at least one", l.layer),
                )
                .hint("drop whole layers with ⟦layers⟧"));
            }
            if wanted > MAX_HEADS {
                bail!(Usage, "layer {} was given {wanted} heads; the limit is {MAX_HEADS}", l.layer);
            }
            let scaled =
                matches!(self, Heads::Width(n) if *n != 1.0) || matches!(self, Heads::Percent(n) if *n != 100.0);
            if !l.resizable && (wanted != l.heads || scaled) {
                if matches!(self, Heads::List(_)) {
                    bail!(
                        Usage,
                        "layer {} has {} head(s) without an axis of their own and cannot get {wanted}",
                        l.layer,
                        l.heads
                    );
                }
                warnings
                    .push(format!("layer {} keeps its {} head(s): they have no axis of their own", l.layer, l.heads));
                counts.push(l.heads);
                continue;
            }
            counts.push(wanted);
        }
        Ok((counts, warnings))
    }
}

/// More heads than this are a mistake, not a wish.
const MAX_HEADS: usize = 4096;

/// How wide the FFNs of the descendant are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub enum FfnWidth {
    /// As wide as the ancestor's.
    #[default]
    Same,
    /// This many neurons.
    Neurons(usize),
    /// This share of the ancestor's, in percent.
    Percent(f64),
}

impl FromStr for FfnWidth {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = || {
            Error::new(ErrorKind::Usage, format!("`{text}` is no width of an FFN"))
                .hint("write a number of neurons such as 1024, or a share such as 50%")
        };
        Ok(match text.strip_suffix('%') {
            Some(share) => {
                let share: f64 = share.trim().parse().map_err(|_| fail())?;
                if !(share > 0.0 && share <= MAX_PERCENT) {
                    return Err(fail());
                }
                FfnWidth::Percent(share)
            }
            None => match text.trim().parse() {
                Ok(0) | Err(_) => return Err(fail()),
                Ok(n) if n > 1 << 20 => return Err(fail()),
                Ok(n) => FfnWidth::Neurons(n),
            },
        })
    }
}

impl FfnWidth {
    /// Neurons, of an FFN that has `width`.
    pub fn resolve(self, width: usize) -> usize {
        match self {
            FfnWidth::Same => width,
            FfnWidth::Neurons(n) => n,
            FfnWidth::Percent(p) => percent(width, p),
        }
    }
}

/// The largest share that is a wish: sixteen times the ancestor's.
const MAX_PERCENT: f64 = 1600.0;

/// A share of `count`, rounded, and at least one.
fn percent(count: usize, share: f64) -> usize {
    ((count as f64 * share / 100.0).round() as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers() {
        let resolve = |s: &str| s.parse::<Layers>().and_then(|l| l.resolve(12)).ok();
        assert_eq!(resolve("3"), Some(vec![0, 1, 2]));
        assert_eq!(resolve("last:2"), Some(vec![10, 11]));
        assert_eq!(resolve("even:4"), Some(vec![0, 4, 7, 11]));
        assert_eq!(resolve("even:1"), Some(vec![0]));
        assert_eq!(resolve("0,2,5"), Some(vec![0, 2, 5]));
        for bad in ["0", "13", "last:0", "even:x", "middle:3", "2,1", "1,1", "3,12", ""] {
            assert_eq!(resolve(bad), None, "{bad}");
        }
    }

    #[test]
    fn layers_of_stacks() {
        // Two towers whose layers take turns, and one of one layer.
        let stack = |name: &str, layers: &[usize]| Stack { name: name.into(), layers: layers.to_vec() };
        let stacks = [stack("vision", &[0, 2, 4, 5]), stack("text", &[1, 3]), stack("joint", &[6])];
        let chosen = |s: &str| s.parse::<Layers>().and_then(|l| l.choose(&stacks, &[false; 7]));
        let of = |s: &str| chosen(s).unwrap();
        assert_eq!(of("vision:even:2"), [0, 1, 3, 5, 6]);
        assert_eq!(of("vision:last:1,text:1"), [1, 5, 6]);
        assert_eq!(of("vision:0,2,3,text:1,"), [0, 3, 4, 5, 6]);
        assert_eq!(of("text:last:1"), [0, 2, 3, 4, 5, 6]);
        assert_eq!(of("0,1,6"), [0, 1, 6]);
        // Where the text tower is spared, numbers count the others, and a list is completed.
        let spared = [1, 3].iter().fold([false; 7], |mut spared, &l| {
            spared[l] = true;
            spared
        });
        let without = |s: &str| s.parse::<Layers>().unwrap().choose(&stacks, &spared).unwrap();
        assert_eq!(without("2"), [0, 1, 2, 3]);
        assert_eq!(without("last:1"), [1, 3, 6]);
        assert_eq!(without("3,4"), [1, 3, 4]);
        for (bad, says) in [
            ("sound:2", "no stack `sound`"),
            ("middle:3", "no stack `middle`"),
            ("text:1,text:1", "named twice"),
            ("3,text:1", "names no stack"),
            ("text:3", "3 layers were asked for"),
            ("text:0", "at least one layer"),
            ("vision:0,4", "no layer 4"),
            ("vision:", "no choice of layers"),
        ] {
            let error = chosen(bad).unwrap_err();
            assert!(error.to_string().contains(says) && error.hint_text().is_some(), "{bad}: {error}");
        }
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "layers 0 to 2 and 5 and 7 to 8");
    }

    #[test]
    fn heads() {
        let layers: Vec<LayerHeads> = (0..3).map(|layer| LayerHeads { layer, heads: 12, resizable: true }).collect();
        let resolve = |h: Heads| h.resolve(&layers).map(|r| r.0).ok();
        assert_eq!(resolve("4".parse().unwrap()), Some(vec![4; 3]));
        assert_eq!(resolve("4,3,2".parse().unwrap()), Some(vec![4, 3, 2]));
        assert_eq!(resolve(Heads::Width(0.5)), Some(vec![24; 3]));
        assert_eq!(resolve(Heads::Width(4.0)), Some(vec![3; 3]));
        assert_eq!(resolve("50%".parse().unwrap()), Some(vec![6; 3]));
        assert_eq!(resolve("1 %".parse().unwrap()), Some(vec![1; 3]));
        assert_eq!(resolve("200%".parse().unwrap()), Some(vec![24; 3]));
        // The stages of a Swin have heads of their own number; a head and a half are two.
        let swin: Vec<LayerHeads> =
            [3, 6, 12, 24].map(|heads| LayerHeads { layer: 0, heads, resizable: true }).to_vec();
        assert_eq!("50%".parse::<Heads>().unwrap().resolve(&swin).unwrap().0, [2, 3, 6, 12]);
        for bad in ["%", "0%", "-50%", "nan%", "1601%", "50 percent"] {
            assert!(bad.parse::<Heads>().unwrap_err().hint_text().is_some(), "{bad}");
        }
        assert_eq!(resolve(Heads::Incrementing), Some(vec![6, 9, 12]));
        assert_eq!(resolve(Heads::Decrementing), Some(vec![12, 9, 6]));
        for bad in [Heads::Count(0), Heads::List(vec![1]), Heads::Width(5.0), Heads::Width(0.0), Heads::Width(f64::NAN)]
        {
            assert_eq!(resolve(bad.clone()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_single_head_keeps_itself_with_a_warning() {
        let layers =
            [LayerHeads { layer: 0, heads: 1, resizable: false }, LayerHeads { layer: 1, heads: 2, resizable: true }];
        let (counts, warnings) = Heads::Width(0.5).resolve(&layers).unwrap();
        assert_eq!((counts, warnings.len()), (vec![1, 4], 1));
        let (counts, warnings) = Heads::Percent(50.0).resolve(&layers).unwrap();
        assert_eq!((counts, warnings.len()), (vec![1, 1], 1));
        let (counts, warnings) = Heads::Count(2).resolve(&layers).unwrap();
        assert_eq!((counts, warnings.len()), (vec![1, 2], 1));
        assert!(Heads::List(vec![2, 2]).resolve(&layers).is_err());
        assert!(Heads::List(vec![1, 2]).resolve(&layers).is_ok());
    }

    #[test]
    fn ffn_widths() {
        assert_eq!("50%".parse::<FfnWidth>().unwrap().resolve(7), 4);
        assert_eq!("64".parse::<FfnWidth>().unwrap().resolve(7), 64);
        for bad in ["0", "-3", "0%", "x", "%"] {
            assert!(bad.parse::<FfnWidth>().is_err(), "{bad}");
        }
    }
}
