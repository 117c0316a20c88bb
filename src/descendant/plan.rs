//! What a descendant is to be, and what it became.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use super::choice::{FfnWidth, Heads, Layers};
use super::constant_folding::fold_constants;
use super::init::{Inherit, Init, LayerSource};
use super::input_size::resize_tokens;
use super::transform::Transform;
use super::verification::Verification;
use crate::axes::{Typing, carry_value_info, declared_batch, fix_batch, open_batch};
use crate::bundle::BundleReport;
use crate::data::PlaceTable;
use crate::error::{Error, ErrorKind, Result};
use crate::learngene::{Order, parameters};
use crate::metadata::DESCENDANT;
use crate::onnx::{Model, encoded_len};
use crate::rounding::{self, Dtype, Rounded};
use crate::runtime::Runtime;

/// How the output projection follows the heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Projection {
    /// As the published code: the first columns, or every column repeated; whichever heads fill the slots.
    Paper,
    /// A slot's output rows are the sum of the rows of all heads that its centroid stands for, divided over the slots
    /// that hold it.
    #[default]
    Matched,
    /// As matched, and then fitted in closed form to the ancestor on images ([`crate::fitting`]), with the last FFN
    /// matrices.
    Fitted,
}

/// Images in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchAxis {
    /// Any number.
    Open,
    /// So many.
    Fixed(usize),
}

impl Serialize for BatchAxis {
    /// `open`, or the number.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            BatchAxis::Open => serializer.serialize_str("open"),
            BatchAxis::Fixed(images) => images.serialize(serializer),
        }
    }
}

/// What a descendant is to be.
#[derive(Clone, Debug, Default)]
pub struct GrowOptions {
    /// The output whose layers are chosen and resized; layers that it does not need stay as they are. Without one all
    /// are.
    pub of: Option<String>,
    /// Its layers.
    pub layers: Layers,
    /// Its heads.
    pub heads: Heads,
    /// The width of its FFNs.
    pub ffn_width: FfnWidth,
    /// Classes of a new classifier.
    pub classes: Option<usize>,
    /// The order in which clusters fill slots.
    pub order: Order,
    /// How the output projection follows the heads.
    pub projection: Projection,
    /// Keep shared weights shared: one tensor a centroid and an FFN.
    pub tied: bool,
    /// How the weights come about.
    pub init: Init,
    /// Which layers inherit, where the method inherits only some.
    pub inherit: Option<Inherit>,
    /// Consecutive layers that share weights, for the method that shares them; two where it is left open.
    pub share: Option<usize>,
    /// Channels of the residual stream, for the methods that define another number.
    pub embedding_dim: Option<usize>,
    /// How a layer transforms weights that it shares with others. Left open, [`Init::WeightTransformation`] transforms
    /// and others do not.
    pub transform: Option<Transform>,
    /// Rank of the low-rank part of an affine transform.
    pub transform_rank: Option<usize>,
    /// Height and width of its images, in pixels.
    pub image_size: Option<[usize; 2]>,
    /// Seed of what is drawn at random (a new classifier, layers that are not inherited).
    pub seed: u64,
}

/// One layer of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedLayer {
    /// The ancestor's layer that it is built like.
    pub ancestor_layer: usize,
    /// Where its weights come from.
    pub source: LayerSource,
    /// Heads.
    pub heads: usize,
    /// The ancestor's head that each slot receives; none where weights are not inherited as they are.
    pub slots: Vec<usize>,
    /// Neurons of the FFN, where there is one; of several those of the last.
    pub ffn_width: Option<usize>,
    /// Neurons of every FFN in order of execution, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ffn_widths: Vec<usize>,
    /// For each FFN the ancestor's neuron in each place; empty where all stay, and where weights are not inherited as
    /// they are.
    #[serde(skip)]
    pub neurons: Vec<Vec<usize>>,
}

/// What growing does, and how large the result is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DescendantPlan {
    /// [`schema::PLAN`](crate::metadata::schema::PLAN).
    pub schema: &'static str,
    /// How the weights come about.
    pub init: Init,
    /// The layers.
    pub layers: Vec<PlannedLayer>,
    /// Channels of the residual stream, where they were asked for.
    pub embedding_dim: Option<usize>,
    /// Height and width of the images, where they were asked for.
    pub image_size: Option<[usize; 2]>,
    /// Tokens of a sequence, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Images in a batch, `open` for any number, where that was asked for.
    pub batch_axis: Option<BatchAxis>,
    /// How layers transform the weights that they share.
    pub transform: Transform,
    /// Classes of the new classifier, where there is one.
    pub classes: Option<usize>,
    /// How the output projection follows the heads.
    pub projection: Projection,
    /// Parameters.
    pub parameters: u64,
    /// Multiply-accumulate operations for one image.
    pub macs: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Which weights are in int8, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub int8: Option<Rounded>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Those warnings that say why what is left is not what it was in the ancestor.
    #[serde(skip)]
    pub inexact: Vec<String>,
    /// What came of its verification, where there was to be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
    /// What was written beside it, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configs: Option<BundleReport>,
}

/// A descendant that was grown in memory.
#[derive(Debug)]
pub struct Descendant {
    /// The model.
    pub model: Model,
    /// How it came about.
    pub plan: DescendantPlan,
}

impl Descendant {
    /// Computes what is constant at its image size: see [`fold_constants`].
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where layers transform shared weights, which is still to be trained; those of
    /// [`fold_constants`].
    pub fn fold_constants(&mut self, runtime: &Arc<Runtime>, image: Option<[usize; 2]>) -> Result<()> {
        if self.plan.transform != Transform::None {
            return Err(Error::new(ErrorKind::Usage, "folding would compute the transforms of shared weights away")
                .hint("tune the descendant first, or give ⟦transform⟧ none"));
        }
        self.model = fold_constants(runtime, &self.model, image)?;
        self.plan.parameters = parameters(self.model.graph());
        self.plan.bytes = encoded_len(&self.model.proto);
        Ok(())
    }

    /// Gives it a fixed number of tokens: see [`resize_tokens`].
    ///
    /// # Errors
    /// Those of [`resize_tokens`].
    pub fn tokens(&mut self, tokens: usize) -> Result<()> {
        let before = PlaceTable::of(&self.model).filter(|t| t.by.is_none() && t.places() < tokens);
        self.model = resize_tokens(&self.model, tokens)?;
        if let Some(table) = before {
            let places = table.places();
            self.plan.warnings.push(format!(
                "the position table has places for {places} tokens: those of {tokens} are interpolated, and want tuning"
            ));
        }
        if let Some(Ok(mut of)) = self.model.metadata(DESCENDANT).map(serde_json::from_str::<serde_json::Value>) {
            of["tokens"] = tokens.into();
            self.model.set_metadata(DESCENDANT, of.to_string());
        }
        self.plan.tokens = Some(tokens);
        self.plan.macs = Typing::new(&self.model)?.macs();
        self.plan.parameters = parameters(self.model.graph());
        self.plan.bytes = encoded_len(&self.model.proto);
        Ok(())
    }

    /// Gives it batches of another size: shapes that hold the one of its file are opened first, see [`open_batch`].
    ///
    /// # Errors
    /// Those of [`open_batch`].
    pub fn batch(&mut self, axis: BatchAxis) -> Result<()> {
        self.plan.batch_axis = Some(axis);
        if let BatchAxis::Fixed(images) = axis
            && declared_batch(&self.model) == Some(images)
        {
            return Ok(());
        }
        self.model = open_batch(&self.model)?;
        if let BatchAxis::Fixed(images) = axis {
            fix_batch(&mut self.model, images);
        }
        self.plan.bytes = encoded_len(&self.model.proto);
        Ok(())
    }

    /// Declares its values as the exporter of its ancestor declared them: see [`carry_value_info`].
    pub fn declare_values(&mut self, ancestor: &Model) {
        carry_value_info(ancestor, &mut self.model);
        self.plan.bytes = encoded_len(&self.model.proto);
    }

    /// Makes it compute in another floating-point type, but for the nodes that make or take some values, where images
    /// were looked at for them; or rounds its weights: see [`rounding::convert_but`].
    ///
    /// # Errors
    /// Those of [`rounding::convert_but`].
    pub fn convert(&mut self, to: Dtype, wide: Option<&HashSet<String>>) -> Result<()> {
        let none = HashSet::new();
        let converted = rounding::convert_but(&mut self.model, to, wide.unwrap_or(&none))?;
        self.plan.warnings.extend(converted.warnings);
        self.plan.int8 = converted.int8;
        self.plan.warnings.extend(to.caution(wide.is_some()).map(str::to_string));
        self.plan.parameters = parameters(self.model.graph());
        self.plan.bytes = encoded_len(&self.model.proto);
        Ok(())
    }
}
