//! The shape that a user asks for, resolved against what the ancestor has.

use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, Result};

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
}

impl FromStr for Layers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |s: &str| -> Result<usize> {
            match s.trim().parse() {
                Ok(n) => Ok(n),
                Err(_) => Err(Error::new(crate::error::ErrorKind::Usage, format!("`{text}` is no choice of layers"))
                    .hint("write 6 (the first six), last:6, even:6 or a list such as 0,2,5")),
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
}

impl Layers {
    /// Indices of the chosen layers among `count`.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Usage`] where there are not that many.
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
        })
    }
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
                Error::new(crate::error::ErrorKind::Usage, format!("`{text}` is no number of heads"))
                    .hint("write 4, a list such as 4,4,2,2, incrementing or decrementing")
            })
        };
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
    /// [`crate::error::ErrorKind::Usage`] for numbers that cannot be.
    pub fn resolve(&self, layers: &[LayerHeads]) -> Result<(Vec<usize>, Vec<String>)> {
        let mut warnings = Vec::new();
        let mut counts = Vec::new();
        if let Heads::List(list) = self
            && list.len() != layers.len()
        {
            bail!(Usage, "--heads lists {} layers and the descendant has {}", list.len(), layers.len());
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
                Heads::Width(_) if !l.resizable => l.heads,
                Heads::Width(w) => {
                    let n = l.heads as f64 / w;
                    if !(w.is_finite() && *w > 0.0) || (n - n.round()).abs() > 1e-9 * n.max(1.0) || n.round() < 1.0 {
                        bail!(
                            Usage,
                            "--width {w} gives layer {} no whole number of heads: it has {}",
                            l.layer,
                            l.heads
                        );
                    }
                    n.round() as usize
                }
            };
            if wanted == 0 {
                return Err(Error::new(
                    crate::error::ErrorKind::Usage,
                    format!("layer {} was given 0 heads; an attention needs at least one", l.layer),
                )
                .hint("drop whole layers with --layers"));
            }
            if wanted > MAX_HEADS {
                bail!(Usage, "layer {} was given {wanted} heads; the limit is {MAX_HEADS}", l.layer);
            }
            if !l.resizable && (wanted != l.heads || matches!(self, Heads::Width(w) if *w != 1.0)) {
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
            Error::new(crate::error::ErrorKind::Usage, format!("`{text}` is no width of an FFN"))
                .hint("write a number of neurons such as 1024, or a share such as 50%")
        };
        Ok(match text.strip_suffix('%') {
            Some(share) => {
                let share: f64 = share.trim().parse().map_err(|_| fail())?;
                if !(share > 0.0 && share <= 1600.0) {
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
            FfnWidth::Percent(p) => ((width as f64 * p / 100.0).round() as usize).max(1),
        }
    }
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
    fn heads() {
        let layers: Vec<LayerHeads> = (0..3).map(|layer| LayerHeads { layer, heads: 12, resizable: true }).collect();
        let resolve = |h: Heads| h.resolve(&layers).map(|r| r.0).ok();
        assert_eq!(resolve("4".parse().unwrap()), Some(vec![4; 3]));
        assert_eq!(resolve("4,3,2".parse().unwrap()), Some(vec![4, 3, 2]));
        assert_eq!(resolve(Heads::Width(0.5)), Some(vec![24; 3]));
        assert_eq!(resolve(Heads::Width(4.0)), Some(vec![3; 3]));
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
