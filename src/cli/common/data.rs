//! Images: how they are prepared, and where labelled ones are.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};

use crate::data::{ChannelOrder, DatasetOptions, Interpolation, PreprocessFlags, Resize, Scale, Side, Target, Texts};

/// What a model is run on.
#[derive(Args, Clone, Debug, Default)]
#[group(skip)]
#[command(group = ArgGroup::new("samples").args(["images", "inputs", "texts"]).required(true).multiple(true))]
pub struct SampleFlags {
    /// Images: a folder, an IDX file, or an .npz or .npy of prepared tensors
    #[arg(long, value_name = "PATH")]
    pub images: Option<PathBuf>,
    #[command(flatten)]
    pub arrays: ArrayFlags,
}

impl SampleFlags {
    /// True for pictures and arrays or texts together, each for a tower of its own.
    pub fn are_of_towers(&self) -> bool {
        self.images.is_some() && self.arrays.path().is_some()
    }
}

/// Arrays that a model is run on in the place of images, or texts that become such.
#[derive(Args, Clone, Debug, Default)]
#[group(skip)]
#[command(group = ArgGroup::new("pictures").arg("inputs"))]
pub struct ArrayFlags {
    /// Arrays instead, one for each input by its name: an .npz archive, a folder of .npy files, or a .safetensors file
    ///
    /// The first axis of each is the sample; the others and the type are those that the input declares. Tokens at the
    /// zeros of an input that is called `attention_mask` are padding and count nowhere. An array
    /// `special_tokens_mask`, ones for tokens that stand for no content, keeps these out of densities.
    #[arg(long, value_name = "PATH")]
    pub inputs: Option<PathBuf>,
    /// Texts instead: a .txt file of one text a line, a .jsonl, .csv, .tsv or .parquet file, or a folder of them
    ///
    /// A tokenizer.json beside the model, or in the folder above one that is called onnx, cuts them into tokens.
    /// Padding goes on the right and counts nowhere; special tokens count in no density.
    #[arg(long, value_name = "PATH", conflicts_with = "inputs")]
    pub texts: Option<PathBuf>,
    #[command(flatten)]
    pub tokens: TokenFlags,
}

/// What a model is run on in the place of images.
#[derive(Clone, Debug)]
pub enum SampleFiles {
    /// The arrays of a file.
    Arrays(PathBuf),
    /// Texts.
    Texts(Texts),
}

impl SampleFiles {
    /// Where they are.
    pub fn path(&self) -> &Path {
        match self {
            SampleFiles::Arrays(path) => path,
            SampleFiles::Texts(texts) => &texts.path,
        }
    }
}

impl ArrayFlags {
    /// What is given, if anything is; `limit` is the most texts that are read.
    pub fn given(&self, limit: Option<usize>) -> Option<SampleFiles> {
        let texts = |path: &PathBuf| SampleFiles::Texts(Texts { limit, ..self.tokens.texts(path) });
        self.inputs.clone().map(SampleFiles::Arrays).or(self.texts.as_ref().map(texts))
    }

    /// Where it is.
    pub fn path(&self) -> Option<&Path> {
        self.inputs.as_deref().or(self.texts.as_deref())
    }
}

/// How texts are cut into tokens.
#[derive(Args, Clone, Debug, Default)]
pub struct TokenFlags {
    /// The column of texts in a table, or A,B for the two of pairs [default: text or sentence]
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',', num_args = 1, help_heading = "Texts",
        requires = "texts", conflicts_with_all = ["pictures", "inputs"],
        value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub text_column: Vec<String>,
    /// The tokenizer: a tokenizer.json of Hugging Face, or the folder that holds it [default: beside the model]
    #[arg(long, value_name = "FILE", help_heading = "Texts", requires = "texts",
        conflicts_with_all = ["pictures", "inputs"])]
    pub tokenizer: Option<PathBuf>,
    /// Tokens of a text at most, special ones included [default: what sentence_bert_config.json, tokenizer_config.json
    /// or the model's position table says]
    #[arg(long, value_name = "N", help_heading = "Texts", requires = "texts",
        conflicts_with_all = ["pictures", "inputs"], value_parser = clap::value_parser!(u32).range(1..))]
    pub max_length: Option<u32>,
    /// The side of texts that padding is on; another one than the right, or than the tokenizer's, is taken where a text
    /// says the same with padding and alone [default: right]
    #[arg(long, value_name = "SIDE", value_enum, help_heading = "Texts", requires = "texts",
        conflicts_with_all = ["pictures", "inputs"])]
    pub padding_side: Option<Side>,
    /// Tokens that a child is to have: no text has more.
    #[arg(skip)]
    pub of_child: Option<usize>,
}

impl TokenFlags {
    /// The texts at a path, as the library has them.
    fn texts(&self, path: &Path) -> Texts {
        let TokenFlags { text_column: columns, tokenizer, max_length, padding_side, of_child: tokens } = self.clone();
        let (path, max_length) = (path.to_path_buf(), max_length.map(|n| n as usize));
        Texts { path, columns, tokenizer, max_length, padding_side, tokens, ..Texts::default() }
    }
}

/// How images are prepared.
#[derive(Args, Clone, Debug, Default)]
pub struct TransformFlags {
    /// Mean of each channel after scaling to [0, 1], or one for all
    #[arg(
        long,
        value_name = "M,M,M",
        value_delimiter = ',',
        help_heading = "Preprocessing",
        allow_negative_numbers = true
    )]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel, or one for all
    #[arg(
        long,
        value_name = "S,S,S",
        value_delimiter = ',',
        help_heading = "Preprocessing",
        allow_negative_numbers = true
    )]
    pub std: Option<Vec<f32>>,
    /// Share of the resized image that the centre crop keeps
    #[arg(long, value_name = "R", help_heading = "Preprocessing", allow_negative_numbers = true)]
    pub crop_ratio: Option<f32>,
    /// Interpolation of the resize: bicubic, bilinear, lanczos or nearest
    #[arg(long, value_name = "KIND", help_heading = "Preprocessing")]
    pub interpolation: Option<Interpolation>,
    /// What is resized: short-side (aspect ratio kept) or square
    #[arg(long, value_name = "RULE", help_heading = "Preprocessing")]
    pub resize: Option<Resize>,
    /// Order in which the model takes colours: rgb or bgr; --mean and --std are in the same
    #[arg(long, value_name = "ORDER", help_heading = "Preprocessing")]
    pub channel_order: Option<ChannelOrder>,
    /// Use the first N samples only: images, texts, pairs of texts, or samples of arrays
    #[arg(long, value_name = "N", help_heading = "Preprocessing", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
}

impl TransformFlags {
    /// As options of the library.
    pub fn preprocess(&self) -> PreprocessFlags {
        PreprocessFlags {
            mean: self.mean.clone(),
            std: self.std.clone(),
            crop_ratio: self.crop_ratio,
            interpolation: self.interpolation,
            resize: self.resize,
            channel_order: self.channel_order,
        }
    }

    /// The most images that are used.
    pub fn limit(&self) -> Option<usize> {
        self.limit.map(|n| n as usize)
    }
}

/// Labelled images, or what stands for them.
#[derive(Args, Clone, Debug, Default)]
#[group(skip)]
#[command(group = ArgGroup::new("pictures").arg("data"))]
pub struct DataFlags {
    /// Data set: a folder with a folder per class, IDX files, an .npz with x and y, CIFAR binaries, WebDataset tars, or
    /// Parquet
    #[arg(long, value_name = "PATH", required_unless_present_any = ["inputs", "texts"])]
    pub data: Option<PathBuf>,
    /// Arrays instead, one for each input by its name: an .npz archive, a folder of .npy files, or a .safetensors file
    ///
    /// The first axis of each is the sample; samples are taken as they are, without random views. Labels are an array
    /// `y` of whole numbers, the class of each sample.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["data", "image_column", "label_column"])]
    pub inputs: Option<PathBuf>,
    /// Texts instead: a .jsonl, .csv, .tsv or .parquet file, a .txt file of one text a line, or a folder of them
    ///
    /// A tokenizer.json beside the model, or in the folder above one that is called onnx, cuts them into tokens.
    /// Padding goes on the right and counts nowhere. Labels stand in a column: numbers of classes from 0, or names,
    /// whose order is that of sorting.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["data", "inputs", "image_column"])]
    pub texts: Option<PathBuf>,
    #[command(flatten)]
    pub tokens: TokenFlags,
    /// Parquet's column of images [default: image or img], or the field of a tar's samples [default: a bare extension]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub image_column: Option<String>,
    /// The column of labels in Parquet, or beside texts [default: label or labels; of images fine_label, too]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub label_column: Option<String>,
    /// The column of scores of pairs of texts (--text-column A,B): how similar these are, which the cosine of their
    /// embeddings is to follow
    ///
    /// Each text of a pair is embedded alone. `eval` judges by Spearman's correlation of ranks, and `tune` lessens the
    /// mean squared difference of cosines and scores.
    #[arg(long, value_name = "NAME", help_heading = "Data", requires = "texts",
        conflicts_with_all = ["data", "inputs", "label_column"])]
    pub score_column: Option<String>,
    /// The scale of the scores, where cosines are to be learned from them.
    #[arg(skip)]
    pub scale: Option<Scale>,
    /// Stop at an image that cannot be read, instead of leaving it out
    #[arg(long, help_heading = "Data")]
    pub strict: bool,
}

impl DataFlags {
    /// Where the samples are.
    pub fn path(&self) -> &Path {
        let paths = [&self.inputs, &self.texts, &self.data];
        paths.into_iter().find_map(|path| path.as_deref()).unwrap_or(Path::new(""))
    }

    /// True for arrays and texts.
    pub fn is_given(&self) -> bool {
        self.inputs.is_some() || self.texts.is_some()
    }

    /// What lies at a path, where it stands for images: all of it, with its labels unless these are to be left aside.
    pub fn given(&self, path: &Path, ignore_labels: bool) -> Option<SampleFiles> {
        let target = match (ignore_labels, self.score_column.clone()) {
            (true, _) => Target::Ignored,
            (false, Some(column)) => Target::Score { column, scale: self.scale },
            (false, None) => Target::Label(self.label_column.clone()),
        };
        match (&self.inputs, &self.texts) {
            (Some(_), _) => Some(SampleFiles::Arrays(path.to_path_buf())),
            (None, Some(_)) => Some(SampleFiles::Texts(Texts { target, ..self.tokens.texts(path) })),
            (None, None) => None,
        }
    }

    /// The same with a tokenizer that is named, where texts are to be cut for several models: that of the first of them
    /// that one lies beside.
    pub fn with_tokenizer<'p>(&self, models: impl IntoIterator<Item = &'p Path>) -> DataFlags {
        let mut flags = self.clone();
        if flags.texts.is_some() && flags.tokens.tokenizer.is_none() {
            flags.tokens.tokenizer = models.into_iter().find_map(Texts::tokenizer_beside);
        }
        flags
    }

    /// As options of the library.
    pub fn options(&self, ignore_labels: bool) -> DatasetOptions {
        let (image_column, label_column) = (self.image_column.clone(), self.label_column.clone());
        DatasetOptions { ignore_labels, image_column, label_column }
    }
}
