//! How a model is opened, and how one that was made is checked.

use clap::Args;

use super::values::image_size;
use crate::anatomy::Pooling;
use crate::data::Feed;
use crate::onnx::ExternalLinks;
use crate::opening::Opening;

/// How a model file is opened.
#[derive(Args, Clone, Debug, Default)]
pub struct OpenFlags {
    /// Follow links that lead external data outside the model's folder
    #[arg(long)]
    pub allow_external_links: bool,
    /// Make the weights of a quantised model float numbers, and leave the quantisation of its activations out
    #[arg(long)]
    pub dequantize: bool,
    /// Whether weights in int8 stay as the file has them: of commands that run a file and make no other.
    #[arg(skip)]
    pub written: bool,
    /// Image size of a model that takes images of any size: N or HEIGHTxWIDTH [default: what its metadata, a
    /// configuration beside it, or its position tables say]
    #[arg(long, value_name = "N|HxW", value_parser = image_size)]
    pub input_size: Option<[usize; 2]>,
    /// Give an input other than the image a value: a number, ones, zeros, a list such as 1,16,16, or an .npy file
    ///
    /// The value is that of one sample and the same for each; it has the type that the model declares, and its shape: a
    /// file has one row where the batch is, or no such axis. What is written keeps the input. Shapes that are computed
    /// from a value hold for it. Of two models, whichever has the input is fed.
    #[arg(long, value_name = "NAME=VALUE|FILE", help_heading = "Inputs and outputs")]
    pub feed: Vec<Feed>,
    /// The output that counts [default: all that images and --feed can compute; the others are named and left out]
    #[arg(long, value_name = "NAME", help_heading = "Inputs and outputs")]
    pub of: Option<String>,
    /// Pool the states of tokens that a model of texts gives, over real tokens, to one vector a text: its one output,
    /// in children, too [default: outputs as they are]
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Inputs and outputs")]
    pub pooling: Option<Pooling>,
}

impl OpenFlags {
    /// As the library has it, for a model that is fed with no pictures.
    pub fn opening(&self) -> Opening {
        let links = if self.allow_external_links { ExternalLinks::Accept } else { ExternalLinks::Refuse };
        Opening {
            links,
            dequantize: self.dequantize,
            written: self.written,
            input_size: self.input_size,
            feeds: self.feed.clone(),
            of: self.of.clone(),
            pooling: self.pooling,
            pictures: None,
            arrays: None,
            texts: None,
        }
    }
}

/// Whether a model is run to see that it is right.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct VerifyFlags {
    /// Verify also where that is predicted to take two seconds or more
    ///
    /// What is checked, by name: `runs` on an image; `batches` of two and three; `samples`, an image alone and among
    /// others; `permuted`, heads and neurons in another order. Of a descendant also `full-size`, its ancestor grown
    /// whole, and `removed`, its ancestor with the rows of what was removed at zero. In float16 also `half-precision`,
    /// on tract, which computes in it, and in int8 also `int8`, the float32 weights that it stands for. Exit code 1
    /// where one fails.
    #[arg(long, help_heading = "Verification", conflicts_with = "no_verify")]
    pub verify: bool,
    /// Verify nothing
    #[arg(long, help_heading = "Verification")]
    pub no_verify: bool,
}
