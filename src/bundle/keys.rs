//! What configurations call the sizes of a model: transformers' and timm's keys, family by family.

use super::sizes::Stack;

/// A size of a stack of layers, and what it is called; the name that most families take comes first.
pub(super) struct Named {
    /// The keys.
    pub keys: &'static [&'static str],
    /// The numbers, one where it is that of the stack.
    pub of: fn(&Stack) -> Vec<usize>,
    /// Whether a configuration without any of the keys leaves it to a default that is then wrong.
    pub implied: bool,
}

/// The sizes. A key that means something else in another family (DistilBERT's `hidden_dim` is the width of its FFNs)
/// holds another number there.
pub(super) const SIZES: [Named; 6] = [
    Named {
        keys: &["num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"],
        of: |stack| vec![stack.layers.len()],
        implied: true,
    },
    Named {
        keys: &["intermediate_size", "n_inner", "encoder_ffn_dim", "ffn_dim", "d_ff", "hidden_dim", "mlp_dim"],
        of: |stack| stack.neurons.clone(),
        implied: true,
    },
    Named {
        keys: &["hidden_size", "n_embd", "d_model", "dim", "embed_dim"],
        of: |stack| stack.channels.clone(),
        implied: true,
    },
    Named { keys: &["num_key_value_heads"], of: |stack| stack.key_heads.clone(), implied: false },
    Named { keys: &HEAD_DIM, of: |stack| stack.head_dims.clone(), implied: false },
    Named { keys: &HEADS, of: |stack| stack.heads.clone(), implied: true },
];

/// The heads of a layer.
pub(super) const HEADS: [&str; 5] =
    ["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"];

/// The dimension of a head.
pub(super) const HEAD_DIM: [&str; 3] = ["head_dim", "attention_head_size", "d_kv"];

/// Families whose heads may be of any dimension by another key than `head_dim`.
pub(super) const OWN_HEAD_DIM: [(&str, &str); 2] =
    [("deberta-v2", "attention_head_size"), ("sew-d", "attention_head_size")];

/// The width of FFNs as a multiple of the channels.
pub(super) const RATIO: &str = "mlp_ratio";

/// Lists with an entry for each layer.
pub(super) const LISTS: [&str; 2] = ["layer_types", "mlp_layer_types"];

/// Every so many layers one is of another kind.
pub(super) const PERIODS: [&str; 2] = ["global_attn_every_n_layers", "sliding_window_pattern"];

/// Sections of a configuration for the stack of a name.
pub(super) const SECTIONS: [(&str, &str); 2] = [("text_config", "text"), ("vision_config", "vision")];

/// The number of classes: at the root, and in timm's section.
pub(super) const CLASSES: [&str; 3] = ["num_labels", "num_classes", "pretrained_cfg.num_classes"];

/// The channels that sentence-transformers pools.
pub(super) const POOLED: [&str; 2] = ["word_embedding_dimension", "embedding_dimension"];

/// Where timm has the size of images.
pub(super) const PICTURES: [(&str, &str); 3] =
    [("pretrained_cfg", "input_size"), ("default_cfg", "input_size"), ("pretrained_cfg", "test_input_size")];

/// Rows of the table of positions.
pub(super) const POSITIONS: [&str; 3] = ["max_position_embeddings", "n_positions", "n_ctx"];

/// Tokens of a text at most, in the configurations of tokenizers.
pub(super) const LENGTHS: [&str; 2] = ["model_max_length", "max_seq_length"];
