//! What the keys of methods and shapes ask for, in the terms of what `grow`, `condense` and `shrink` take.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::de::value::StrDeserializer;

use super::cell::Cell;
use super::file::Method;
use super::text::Text;
use crate::descendant::{GrowOptions, Heads, Init};
use crate::error::{Error, ErrorKind, Result};
use crate::learngene::Rules;

/// How a method makes its descendants.
pub(super) enum Construction {
    Grow(Init),
    Shrink,
    Magnitude,
    File,
}

/// How a method makes its descendants.
///
/// # Errors
/// [`ErrorKind::Usage`] for one that is not known.
pub(super) fn maker(method: &Method) -> Result<Construction> {
    Ok(match method.init.as_str() {
        "shrink" => Construction::Shrink,
        "magnitude" => Construction::Magnitude,
        "model" => Construction::File,
        name => Construction::Grow(choice("init", name)?),
    })
}

/// The names that a value may have, where it has none of them.
#[derive(Debug)]
struct KnownNames(&'static [&'static str]);

impl fmt::Display for KnownNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

impl std::error::Error for KnownNames {}

impl serde::de::Error for KnownNames {
    fn custom<T: fmt::Display>(_: T) -> Self {
        KnownNames(&[])
    }

    fn unknown_variant(_: &str, known: &'static [&'static str]) -> Self {
        KnownNames(known)
    }
}

/// A value of a key that stands for one of several, by the names that it has in JSON, which are those of the flags.
///
/// # Errors
/// [`ErrorKind::Usage`]; it lists them.
pub(super) fn choice<T: DeserializeOwned>(key: &str, text: &str) -> Result<T> {
    T::deserialize(StrDeserializer::<KnownNames>::new(text))
        .map_err(|known| Error::new(ErrorKind::Usage, format!("`{key}`: `{text}` is none of {known}")))
}

/// The same, or what is usual.
fn chosen<T: DeserializeOwned + Default>(key: &str, text: &Option<String>) -> Result<T> {
    text.as_deref().map_or(Ok(T::default()), |t| choice(key, t))
}

/// A value of a key that is written as on the command line.
fn parsed<T: std::str::FromStr<Err = Error>>(key: &str, text: Option<&str>) -> Result<Option<T>> {
    let told = |e: Error| {
        let hint = e.marked_hint().unwrap_or("docs/studies/README.md lists the keys").to_string();
        Error::new(ErrorKind::Usage, format!("`{key}`: {}", e.marked())).hint(hint)
    };
    text.map(|t| t.parse().map_err(told)).transpose()
}

/// The clustering that a method asks for.
///
/// # Errors
/// [`ErrorKind::Usage`] for a value that is none; it names the key.
pub(super) fn rules(method: &Method) -> Result<Rules> {
    Ok(Rules {
        algorithm: parsed("cluster", method.cluster.as_deref())?.unwrap_or_default(),
        eps: parsed("eps", method.eps.as_ref().map(|t| t.0.as_str()))?,
        ffn_eps: parsed("ffn-eps", method.ffn_eps.as_ref().map(|t| t.0.as_str()))?,
        min_heads: method.min_heads.unwrap_or(1),
        centroid: chosen("centroid", &method.centroid)?,
        ffn_centroid: chosen("ffn-centroid", &method.ffn_centroid)?,
        ffn_rule: chosen("ffn-rule", &method.ffn_rule)?,
        ffn_clusters: method.ffn_clusters.clone(),
        ..Rules::default()
    })
}

/// The shape of a cell's descendant, with a new classifier of so many classes.
///
/// # Errors
/// [`ErrorKind::Usage`] for a value that is none; it names the key.
pub(super) fn shape(cell: &Cell, init: Init, classes: Option<usize>) -> Result<GrowOptions> {
    let (size, method) = (&cell.size, &cell.how);
    let text = |t: &Option<Text>| t.as_ref().map(|t| t.0.clone());
    let heads = match (size.width, &size.heads) {
        (Some(_), Some(_)) => bail!(Usage, "`heads` and `width` cannot both be given"),
        (Some(w), None) => Heads::Width(w),
        (None, heads) => parsed("heads", text(heads).as_deref())?.unwrap_or_default(),
    };
    if size.parameters.is_some() {
        bail!(Usage, "`parameters` is for `shrink`: other methods take layers, heads and ffn-width");
    }
    Ok(GrowOptions {
        layers: parsed("layers", text(&size.layers).as_deref())?.unwrap_or_default(),
        heads,
        ffn_width: parsed("ffn-width", text(&size.ffn_width).as_deref())?.unwrap_or_default(),
        classes,
        order: chosen("order", &method.order)?,
        projection: chosen("projection", &method.projection)?,
        init,
        inherit: parsed("inherit", text(&method.inherit).as_deref())?,
        share: method.share,
        embedding_dim: size.embedding_dim,
        transform: method.transform.as_deref().map(|t| choice("transform", t)).transpose()?,
        seed: cell.seed,
        ..GrowOptions::default()
    })
}
