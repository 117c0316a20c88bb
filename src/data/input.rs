//! What a model's image input takes, and who says so.
//!
//! The size of images and the transform that prepares them are looked for in this order: flags, the model's own
//! metadata, a configuration beside the model, the graph, and last a guess. [`declare`] supplies the model with what it
//! finds, as metadata, so that whatever reads the model later, and whatever is made of it, has the same; an
//! [`InputReport`] tells the user.

use serde::Serialize;

use super::configs::{self, Config};
use super::feeds::FedReport;
use super::transforms::{BYTES, ChannelOrder, Preprocess, PreprocessFlags};
use crate::axes::{Assumption, SizeFrom, Typing, channels_last};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{ImageInput, Values, data_inputs, declared_dims};
use crate::metadata::{IMAGE_SIZE, PREPROCESS};
use crate::onnx::{DataType, Model};

/// The supplier of what the command line says.
const FLAGS: &str = "flags";
/// The supplier of what stands in the model's metadata.
const METADATA: &str = "metadata";
/// The supplier of what the graph shows.
const GRAPH: &str = "graph";
/// The supplier of a size that position and bias tables have.
const TABLES: &str = "tables";
/// The supplier of what nobody says.
const GUESS: &str = "guess";

/// Channels, height and width of the image input, as far as it declares them.
struct Dims {
    channels: usize,
    size: [Option<usize>; 2],
}

impl Dims {
    fn of(model: &Model) -> Option<Dims> {
        let dims = data_inputs(model.graph()).into_iter().filter_map(declared_dims).find(|dims| dims.len() == 4)?;
        let (channels, size) = match channels_last(&dims) {
            true => (dims[3], [dims[1], dims[2]]),
            false => (dims[1], [dims[2], dims[3]]),
        };
        Some(Dims { channels: channels.unwrap_or(3), size })
    }

    fn is_open(&self) -> bool {
        self.size.contains(&None)
    }

    fn takes(&self, size: [usize; 2]) -> bool {
        self.size.iter().zip(size).all(|(fixed, n)| fixed.is_none_or(|fixed| fixed == n))
    }

    /// The size that is fixed, in words.
    fn text(&self) -> String {
        self.size.map(|n| n.map_or("any".to_string(), |n| n.to_string())).join(" x ")
    }
}

/// True for a model whose graph does not fix another image size.
pub fn takes_size(model: &Model, size: [usize; 2]) -> bool {
    Dims::of(model).is_some_and(|dims| dims.takes(size))
}

/// Says for which images (height, width) a model is meant that leaves their size open.
///
/// # Errors
/// [`ErrorKind::Usage`] where the graph fixes another size or cannot take this one, [`ErrorKind::Unsupported`] where it
/// takes no images.
pub fn fix_size(model: &mut Model, size: [usize; 2]) -> Result<()> {
    let Some(dims) = Dims::of(model) else {
        return Err(Error::new(ErrorKind::Unsupported, "the model takes no images, so they have no size")
            .hint("leave ⟦input-size⟧ out"));
    };
    let [height, width] = size;
    if !dims.takes(size) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("the graph takes images of {} pixels, not of {height} x {width}", dims.text()),
        )
        .hint("leave ⟦input-size⟧ out; `offshoot grow ⟦image-size⟧` makes a child of another size"));
    }
    if dims.is_open() {
        sound_at(model, size).map_err(|error| {
            Error::new(
                ErrorKind::Usage,
                format!("the graph cannot take images of {height} x {width} pixels: {}", error.marked()),
            )
            .hint("leave ⟦input-size⟧ out, and `offshoot inspect` shows the size that the model's tables have")
        })?;
        model.supply_metadata(IMAGE_SIZE, format!("{height}x{width}"), vec![FLAGS.into()]);
    }
    Ok(())
}

fn sound_at(model: &Model, image: [usize; 2]) -> Result<()> {
    Typing::with(model, Assumption { image, ..Assumption::default() })?.check_consistent()
}

/// Supplies a model with the transform of its pictures, and with the size of its images where it leaves them open: from
/// flags, else the model's metadata, else a configuration beside it, else what the graph shows. What nobody says is
/// left to [`Preprocess::resolve`]. `sized` says that the size is [fixed](fix_size) already.
///
/// # Errors
/// [`ErrorKind::Format`] for a configuration that cannot be used, or that names another size than the graph has, unless
/// flags decide; [`ErrorKind::Usage`] for flags that make no sense.
pub fn declare(model: &mut Model, flags: &PreprocessFlags, sized: bool) -> Result<()> {
    let (Some(dims), Some(input)) = (Dims::of(model), ImageInput::of(model.graph())) else { return Ok(()) };
    let decided = flags.mean.is_some() && flags.std.is_some();
    let own = model.metadata(PREPROCESS).map(str::to_owned);
    let config = match own.is_none().then(|| configs::beside(&model.path)) {
        Some(Err(_)) if decided => None,
        found => found.transpose()?.flatten(),
    };
    if let Some(config) = &config {
        agree(model, config, &dims, sized || decided)?;
    }
    if own.is_some() && flags.is_empty() {
        return Ok(());
    }
    let size = match dims.size {
        [Some(height), Some(width)] => [height, width],
        // A graph that cannot be typed is an error of whoever needs it typed.
        _ => match Typing::new(model).map(|typing| (typing.image_size(), typing.size_from)) {
            Ok((size, from)) => {
                if from == SizeFrom::Metadata && model.metadata(IMAGE_SIZE).is_none() {
                    // The model's own transform names it, and is about to be replaced.
                    model.supply_metadata(IMAGE_SIZE, format!("{}x{}", size[0], size[1]), vec![METADATA.into()]);
                }
                size
            }
            Err(_) => return Ok(()),
        },
    };
    let base = match (&own, &config) {
        (Some(text), _) => match serde_json::from_str(text) {
            Ok(base) => Some(base),
            // `Preprocess::resolve` says what is wrong with it.
            Err(_) => return Ok(()),
        },
        (None, Some(config)) => match config.preprocess(size, dims.channels) {
            Err(_) if decided => None,
            found => Some(found?),
        },
        (None, None) => None,
    };
    let shown = match input.values {
        _ if own.is_some() || decided => None,
        Values::Bytes if input.kind == Some(DataType::Int8) => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the input `{}` is of int8, and what stands for a picture there is not known", input.name),
            )
            .hint("give ⟦mean⟧ and ⟦std⟧; for bytes less 128, ⟦mean⟧ 0.50196 ⟦std⟧ 0.00392157"));
        }
        Values::Bytes => Some((0.0, BYTES)),
        Values::Unit => Some((0.0, 1.0)),
        Values::Unknown => None,
    };
    let guessed = base.is_none() && shown.is_none() && !decided;
    if guessed && (flags.is_empty() || dims.channels != 3) {
        return Ok(());
    }
    let path = config.as_ref().map(|config| config.path.display().to_string());
    let from = [
        (!flags.is_empty()).then(|| FLAGS.to_string()),
        shown.map(|_| GRAPH.to_string()),
        own.map(|_| METADATA.to_string()).or(path),
        guessed.then(|| GUESS.to_string()),
    ];
    let mut base = base.unwrap_or_else(|| Preprocess { channels: dims.channels, ..Preprocess::imagenet(size) });
    if let Some((mean, std)) = shown {
        base = Preprocess { mean: vec![mean; dims.channels], std: vec![std; dims.channels], ..base };
    }
    let text = |transform: &Preprocess| {
        serde_json::to_string(transform).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
    };
    let transform = Preprocess::resolve(flags, Some(&text(&base)?), dims.channels, size)?;
    model.supply_metadata(PREPROCESS, text(&transform)?, from.into_iter().flatten().collect());
    Ok(())
}

/// Checks that a configuration is of the size that the graph has, and takes its size for a graph that has none.
fn agree(model: &mut Model, config: &Config, dims: &Dims, decided: bool) -> Result<()> {
    let Some(size) = config.size else { return Ok(()) };
    let [height, width] = size;
    if !dims.takes(size) {
        return match decided {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Format,
                format!("it is for images of {height} x {width}, and the graph takes {} pixels", dims.text()),
            )
            .at(&config.path)
            .hint(format!(
                "⟦input-size⟧ {} takes the rest of it at the graph's size; ⟦mean⟧ and ⟦std⟧ decide without it",
                dims.size.map(|n| n.unwrap_or(height)).map(|n| n.to_string()).join("x")
            ))),
        };
    }
    if !dims.is_open() || model.metadata(IMAGE_SIZE).is_some() {
        return Ok(());
    }
    match sound_at(model, size) {
        Err(_) if decided => Ok(()),
        Err(error) => Err(Error::new(
            ErrorKind::Format,
            format!("it is for images of {height} x {width}, which the graph cannot take: {}", error.marked()),
        )
        .at(&config.path)
        .hint("⟦input-size⟧ HxW says which size is meant; ⟦mean⟧ and ⟦std⟧ decide without the file")),
        Ok(()) => {
            model.supply_metadata(IMAGE_SIZE, format!("{height}x{width}"), vec![config.path.display().to_string()]);
            Ok(())
        }
    }
}

/// What a model's image input takes, and who said so.
#[derive(Clone, Debug, Serialize)]
pub struct InputReport {
    /// Height and width of the images.
    pub size: [usize; 2],
    /// What decided them: `graph`, `flags`, `metadata`, the path of a configuration, `tables`, or `guess`.
    pub size_from: String,
    /// The transform that prepares pictures; none where the images are tensors.
    pub transform: Option<Preprocess>,
    /// What decided the transform, the strongest first, in the same words.
    pub transform_from: Vec<String>,
    /// Inputs that were given a value.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fed: Vec<FedReport>,
    /// The outputs that count.
    pub outputs: Vec<String>,
    #[serde(skip)]
    input: Option<ImageInput>,
}

impl InputReport {
    /// The report of a typed model and of the transform that its pictures go through.
    pub fn new(model: &Model, typing: &Typing, transform: Option<&Preprocess>) -> InputReport {
        let size_from = match typing.size_from {
            SizeFrom::Graph | SizeFrom::Caller => GRAPH.to_string(),
            SizeFrom::Metadata => model.suppliers(IMAGE_SIZE).first().cloned().unwrap_or(METADATA.into()),
            SizeFrom::Tables => TABLES.into(),
            SizeFrom::Guess => GUESS.into(),
        };
        let transform_from = match (transform, model.metadata(PREPROCESS), model.suppliers(PREPROCESS)) {
            (None, ..) => Vec::new(),
            (_, None, _) => vec![GUESS.to_string()],
            (_, Some(_), []) => vec![METADATA.to_string()],
            (_, Some(_), suppliers) => suppliers.to_vec(),
        };
        InputReport {
            size: typing.image_size(),
            size_from,
            transform: transform.cloned(),
            transform_from,
            fed: FedReport::of(model),
            outputs: model.graph().output.iter().map(|o| o.name().to_string()).collect(),
            input: ImageInput::of(model.graph()),
        }
    }

    /// What is used, and where it came from, in one line.
    pub fn line(&self) -> String {
        let [height, width] = self.size;
        let mut line = format!("images of {height} x {width} pixels");
        if self.size_from != GRAPH {
            line += &format!(" (from {})", place(&self.size_from));
        }
        let Some(transform) = &self.transform else { return line };
        let list = |values: &[f32]| match values {
            [first, rest @ ..] if rest.iter().all(|value| value == first) => first.to_string(),
            _ => values.iter().map(f32::to_string).collect::<Vec<_>>().join(" "),
        };
        line += &match transform.feeds_bytes() {
            true => ", as bytes".to_string(),
            false => format!(", mean {}, std {}", list(&transform.mean), list(&transform.std)),
        };
        if transform.channel_order == ChannelOrder::Bgr {
            line += ", BGR";
        }
        let places: Vec<String> = self.transform_from.iter().map(|from| place(from)).collect();
        line += &format!(
            ", {} {}, crop ratio {}: from {}",
            word(&transform.resize),
            word(&transform.interpolation),
            transform.crop_ratio,
            places.join(", then ")
        );
        line
    }

    /// What the user should look at.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.size_from == GUESS {
            let [height, width] = self.size;
            warnings.push(format!(
                "nothing says which image size this model is for: {height} x {width} is a guess, and ⟦input-size⟧ \
                 decides"
            ));
        }
        let (Some(transform), Some(input)) = (&self.transform, &self.input) else { return warnings };
        if self.transform_from.iter().any(|from| from == GUESS) {
            warnings.push(
                "nothing says how pictures are normalised: what is usual for ImageNet is a guess, and ⟦mean⟧ and \
                 ⟦std⟧, or the \
                 model's preprocessor_config.json beside it, decide"
                    .into(),
            );
        }
        let ends = |byte: f32| transform.mean.iter().zip(&transform.std).map(move |(mean, std)| (byte - mean) / std);
        let (lowest, highest) = (ends(0.0).fold(f32::INFINITY, f32::min), ends(1.0).fold(f32::NEG_INFINITY, f32::max));
        let twice = match input.values {
            Values::Bytes => highest < 16.0,
            Values::Unit => lowest < -0.25 || highest > 1.25,
            Values::Unknown => false,
        };
        if twice {
            warnings.push(format!(
                "pictures are normalised twice: the graph does it itself, and {} as well",
                self.transform_from.first().map(|from| place(from)).unwrap_or_default()
            ));
        }
        if input.reverses_channels
            && transform.channel_order == ChannelOrder::Rgb
            && self.transform_from.first().is_none_or(|from| from != FLAGS)
        {
            warnings.push(
                "the graph reverses the order of its channels; ⟦channel-order⟧ rgb or bgr says what it takes".into(),
            );
        }
        warnings
    }
}

/// What supplied something, in words.
fn place(from: &str) -> String {
    match from {
        FLAGS => "the flags".into(),
        METADATA => "the model's metadata".into(),
        GRAPH => "the graph".into(),
        TABLES => "the model's tables".into(),
        GUESS => "a guess".into(),
        path => format!("`{path}`"),
    }
}

/// The name that a value has in JSON.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
