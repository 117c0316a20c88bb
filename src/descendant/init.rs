//! Initialisations: Cluster-Learngene and the methods that it is compared with.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// How the weights of a descendant come about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Centroids of clustered heads and shared FFNs (Wang et al., NeurIPS 2024)
    #[default]
    ClusterLearngene,
    /// Everything at random: matrices normal with deviation 0.02, as timm and DeiT
    FromScratch,
    /// The ancestor's weights; heads and neurons are cut from the end
    PretrainFinetune,
    /// The ancestor's last layers, on random lower ones (Wang et al., AAAI 2022)
    HeuristicLearngene,
    /// The ancestor's first layers, below random ones (Wang et al., 2305.02279)
    AutoLearngene,
    /// Consecutive layers share weights, each with transforms that start as identity (MiniViT, CVPR 2022)
    WeightTransformation,
    /// Evenly spaced elements of every tensor, a new classifier (Xu et al., 2311.18823)
    WeightSelection,
    /// A straight line over depth through the ancestor's layers (TLEG, AAAI 2024)
    LinearExpansion,
    /// The low frequencies of weights stacked over layers (FRONT, 2026)
    Frequency,
}

impl Init {
    /// The method's name on the command line.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default()
    }

    pub(super) fn takes_inherit(self) -> bool {
        matches!(self, Init::PretrainFinetune | Init::HeuristicLearngene | Init::AutoLearngene)
    }

    pub(super) fn takes_embedding(self) -> bool {
        matches!(self, Init::FromScratch | Init::WeightSelection)
    }

    /// True where layers may become wider than the ancestor's.
    pub(super) fn widens(self) -> bool {
        matches!(self, Init::ClusterLearngene | Init::FromScratch | Init::Frequency)
    }
}

/// Which layers of a descendant inherit, where a method inherits only some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Inherit {
    /// N layers, where the method says which.
    Count(usize),
    /// The first N.
    Front(usize),
    /// N in the middle.
    Middle(usize),
    /// The last N.
    Last(usize),
}

impl FromStr for Inherit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = || {
            Error::new(ErrorKind::Usage, format!("`{text}` is no choice of inherited layers"))
                .hint("write front:4, middle:4, last:4, or 4 where the method says which")
        };
        let number = |s: &str| s.trim().parse().map_err(|_| fail());
        Ok(match text.split_once(':') {
            Some(("front", n)) => Inherit::Front(number(n)?),
            Some(("middle", n)) => Inherit::Middle(number(n)?),
            Some(("last", n)) => Inherit::Last(number(n)?),
            Some(_) => return Err(fail()),
            None => Inherit::Count(number(text)?),
        })
    }
}

/// Where the weights of one layer come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerSource {
    /// The ancestor's layer.
    Inherited,
    /// Drawn at random.
    Random,
    /// Computed from the ancestor's layers.
    Expanded,
    /// The weights of the first layer of its group, with transforms of its own.
    Shared,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherited_layers_are_parsed() {
        let parse = |s: &str| s.parse::<Inherit>().ok();
        assert_eq!(parse("front:3"), Some(Inherit::Front(3)));
        assert_eq!(parse("middle: 2"), Some(Inherit::Middle(2)));
        assert_eq!(parse("last:1"), Some(Inherit::Last(1)));
        assert_eq!(parse("4"), Some(Inherit::Count(4)));
        for bad in ["top:3", "first", "front:", "-1", ""] {
            assert!(bad.parse::<Inherit>().unwrap_err().hint_text().is_some(), "{bad}");
        }
    }
}
