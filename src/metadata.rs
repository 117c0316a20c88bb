//! What Offshoot writes under a name of its own, so that it or another program finds it again: metadata keys, prefixes
//! of names in a graph, and versions of JSON. A change of any of these is a change of the format.

/// How images are prepared for the model: the evaluation transform, in JSON.
pub const PREPROCESS: &str = "offshoot.preprocess";
/// The image size that a model of any size is meant for, as `HEIGHTxWIDTH`.
pub const IMAGE_SIZE: &str = "offshoot.image_size";
/// The names of the classes in the order of the outputs, in JSON.
pub const CLASSES: &str = "offshoot.classes";
/// The clusters, centroids and groups of a learngene, in JSON.
pub const LEARNGENE: &str = "offshoot.learngene";
/// Where a descendant comes from, in JSON.
pub const DESCENDANT: &str = "offshoot.descendant";
/// The state of a run, in the header of a checkpoint, in JSON.
pub const CHECKPOINT: &str = "offshoot.checkpoint";

/// Begins the names of the nodes and tensors by which layers look a shared centroid up.
pub const SHARE_PREFIX: &str = "offshoot.share/";
/// Begins the names of what makes the weight of one layer out of a shared one.
pub const TRANSFORM_PREFIX: &str = "offshoot.transform/";
/// Begins the names of the nodes that give a model of one image the axis of images, and take it away again.
pub const BATCH_PREFIX: &str = "offshoot.batch/";

/// Begins the names of the nodes and tensors that stand for an input which was given a value.
pub const FEED_PREFIX: &str = "offshoot.feed/";

/// Versions of JSON, in its field `schema`: `offshoot.COMMAND/VERSION`. A field may be added under the same version.
pub mod schema {
    /// Metadata [`LEARNGENE`](super::LEARNGENE).
    pub const LEARNGENE: &str = "offshoot.learngene/1";
    /// Metadata [`DESCENDANT`](super::DESCENDANT).
    pub const DESCENDANT: &str = "offshoot.descendant/1";
    /// Metadata [`CHECKPOINT`](super::CHECKPOINT).
    pub const CHECKPOINT: &str = "offshoot.checkpoint/1";
    /// The description beside a step graph.
    pub const STEP: &str = "offshoot.step/1";
    /// A cell of a study. It enters the names of the files: a change makes every cell anew.
    pub const CELL: &str = "offshoot.cell/1";
    /// The table of a study.
    pub const STUDY: &str = "offshoot.study/1";
    /// What growing does.
    pub const PLAN: &str = "offshoot.plan/1";
    /// What growing several descendants does.
    pub const PLANS: &str = "offshoot.plans/1";
    /// `offshoot compare`.
    pub const COMPARE: &str = "offshoot.compare/1";
    /// `offshoot density`.
    pub const DENSITY: &str = "offshoot.density/1";
    /// `offshoot doctor`.
    pub const DOCTOR: &str = "offshoot.doctor/1";
    /// `offshoot eval`.
    pub const EVAL: &str = "offshoot.eval/1";
    /// `offshoot inspect`.
    pub const INSPECT: &str = "offshoot.inspect/2";
    /// `offshoot inspect --explain`.
    pub const EXPLAIN: &str = "offshoot.explain/1";
    /// `offshoot run`.
    pub const RUN: &str = "offshoot.run/1";
    /// `offshoot shrink`.
    pub const SHRINK: &str = "offshoot.shrink/1";
    /// `offshoot shrink` to several sizes.
    pub const FRONTIER: &str = "offshoot.frontier/1";
    /// `offshoot tune`.
    pub const TUNE: &str = "offshoot.tune/1";
    /// `offshoot tune --dry-run`.
    pub const TUNE_PLAN: &str = "offshoot.tune-plan/1";
}
