//! How clusters are made: the choices, as text and in JSON.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The eps of the paper, in pixels of an image of [`PUBLISHED_SIDE`].
pub const PUBLISHED_EPS: f64 = 10.0;
/// The height and the width of the paper's images.
pub const PUBLISHED_SIDE: f64 = 224.0;

/// What stands for a cluster of heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Centroid {
    /// The member whose density is nearest the cluster's mean.
    #[default]
    Nearest,
    /// The mean of the members' weights.
    Mean,
}

/// What stands for a cluster of FFNs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum FfnCentroid {
    /// The FFN of the first layer of the cluster.
    #[default]
    Shallowest,
    /// The FFN of the layer whose mean density is nearest the cluster's.
    Nearest,
    /// The mean of the FFNs' weights.
    Mean,
}

/// When adjacent layers share an FFN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum FfnRule {
    /// The paper: equally many centroids, whose sorted densities differ by less than eps on average.
    #[default]
    Strict,
    /// The same, with clusters of one head left out of the comparison.
    IgnoreSingletons,
}

/// What makes two heads alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Similarity {
    /// The difference of their densities, in pixels (the paper).
    #[default]
    Density,
    /// The Jensen-Shannon divergence of their mean attention maps, in bits.
    Attention,
    /// One minus the linear centred kernel alignment (CKA) of their outputs.
    Output,
    /// What the layer's output loses when one is predicted from the other, as a share of it.
    Prediction,
}

impl Similarity {
    /// All of them.
    const ALL: [Similarity; 4] =
        [Similarity::Density, Similarity::Attention, Similarity::Output, Similarity::Prediction];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Similarity::Density => "density",
            Similarity::Attention => "attention",
            Similarity::Output => "output",
            Similarity::Prediction => "prediction",
        }
    }
}

/// One or several similarities, whose distances are scaled to a mean of one and averaged, such as `density+output`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Similarities(pub Vec<Similarity>);

impl Default for Similarities {
    fn default() -> Self {
        Similarities(vec![Similarity::default()])
    }
}

impl Similarities {
    /// True for densities alone, as the paper has it.
    pub fn is_density(&self) -> bool {
        self.0 == [Similarity::Density]
    }
}

impl std::str::FromStr for Similarities {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let mut list = Vec::new();
        for part in text.split('+').map(str::trim) {
            match Similarity::ALL.into_iter().find(|s| s.name() == part) {
                Some(one) if !list.contains(&one) => list.push(one),
                Some(_) => bail!(Usage, "`{part}` stands twice in `{text}`"),
                None => bail!(Usage, "`{part}` is none of density, attention, output and prediction, joined by +"),
            }
        }
        Ok(Similarities(list))
    }
}

impl std::fmt::Display for Similarities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|s| s.name()).collect();
        f.write_str(&names.join("+"))
    }
}

/// How many clusters a layer gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// As many as have the best silhouette.
    Auto,
    /// So many.
    Of(usize),
    /// This share of its heads or neurons, in percent.
    Percent(u8),
}

impl Count {
    /// Clusters of `units` heads or neurons; `None` where they are chosen.
    pub(super) fn resolve(self, units: usize) -> Option<usize> {
        match self {
            Count::Auto => None,
            Count::Of(count) => Some(count.clamp(1, units.max(1))),
            Count::Percent(share) => Some(((units * usize::from(share) + 50) / 100).max(1)),
        }
    }
}

impl std::str::FromStr for Count {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let share = text.strip_suffix('%').map(str::parse::<u8>);
        match (share, text.parse()) {
            _ if text == "auto" => Ok(Count::Auto),
            (Some(Ok(share @ 1..=100)), _) => Ok(Count::Percent(share)),
            (None, Ok(n @ 1..)) => Ok(Count::Of(n)),
            _ => bail!(Usage, "`{text}` is no number of clusters: give one from 1 on, a share such as 50%, or auto"),
        }
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Count::Auto => f.write_str("auto"),
            Count::Of(count) => write!(f, "{count}"),
            Count::Percent(share) => write!(f, "{share}%"),
        }
    }
}

/// How heads or neurons are clustered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Algorithm {
    /// DBSCAN: whatever a chain of neighbours joins (the paper).
    #[default]
    Dbscan,
    /// Agglomerative clustering with average linkage, down to so many clusters a layer.
    Agglomerative(Count),
    /// k-means, which for distances that are no differences of numbers is k-means in the space that they span.
    KMeans(Count),
}

impl std::str::FromStr for Algorithm {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let (name, count) = text.split_once(':').map_or((text, None), |(n, c)| (n, Some(c)));
        let count = || count.map_or(Ok(Count::Auto), str::parse);
        match name {
            "dbscan" if !text.contains(':') => Ok(Algorithm::Dbscan),
            "agglomerative" => Ok(Algorithm::Agglomerative(count()?)),
            "kmeans" => Ok(Algorithm::KMeans(count()?)),
            _ => {
                bail!(Usage, "`{text}` is none of dbscan, agglomerative:K and kmeans:K, where K may be auto or a share")
            }
        }
    }
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Algorithm::Dbscan => f.write_str("dbscan"),
            Algorithm::Agglomerative(count) => write!(f, "agglomerative:{count}"),
            Algorithm::KMeans(count) => write!(f, "kmeans:{count}"),
        }
    }
}

/// A neighbourhood: a distance, or the one that suits the distances best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Eps {
    /// The one whose clusters have the best silhouette; for FFNs, the one in the largest gap between distances.
    Auto,
    /// A distance; 0 keeps everything apart.
    Given(f64),
}

impl Eps {
    /// True where nothing is clustered.
    pub fn is_zero(self) -> bool {
        self == Eps::Given(0.0)
    }
}

impl std::str::FromStr for Eps {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text.parse::<f64>() {
            _ if text == "auto" => Ok(Eps::Auto),
            Ok(v) if v.is_finite() && v >= 0.0 => Ok(Eps::Given(v)),
            _ => bail!(Usage, "`{text}` is no distance: give a number from 0 on, or auto"),
        }
    }
}

macro_rules! as_text {
    ($($kind:ty),*) => {$(
        impl From<$kind> for String {
            fn from(value: $kind) -> String {
                value.to_string()
            }
        }
        impl TryFrom<String> for $kind {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }
    )*};
}
as_text!(Similarities, Algorithm);

/// The order in which clusters fill the slots of a descendant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Big clusters first (the paper).
    #[default]
    Priority,
    /// In the order of their lowest heads.
    Original,
    /// Short distances first.
    Ascending,
    /// Long distances first.
    Descending,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_written() {
        for text in ["density", "attention+output", "density+prediction"] {
            assert_eq!(text.parse::<Similarities>().unwrap().to_string(), text);
        }
        for text in ["dbscan", "agglomerative:4", "kmeans:auto"] {
            assert_eq!(text.parse::<Algorithm>().unwrap().to_string(), text);
        }
        assert_eq!("kmeans".parse::<Algorithm>().unwrap(), Algorithm::KMeans(Count::Auto));
        assert!(["", "density+", "colour", "output+output"].iter().all(|t| t.parse::<Similarities>().is_err()));
        assert!(["dbscan:3", "kmeans:0", "kmeans:x", "ward"].iter().all(|t| t.parse::<Algorithm>().is_err()));
        assert!(["-1", "nan", "inf", "x"].iter().all(|t| t.parse::<Eps>().is_err()));
        assert_eq!(("auto".parse::<Eps>().unwrap(), "2.5".parse::<Eps>().unwrap()), (Eps::Auto, Eps::Given(2.5)));
    }
}
