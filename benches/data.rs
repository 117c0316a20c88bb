//! How many images a second are decoded, augmented and put into batches, with nothing else running.
//!
//!     cargo bench --bench data -- DATA SIZE BATCH SECONDS [none|light|standard|deit]
//!
//! prints one JSON line. What a training step consumes is the batch of `benches/training.rs` divided by its median
//! time.
//!
//!     cargo bench --bench data -- texts MODEL TOKENIZER TEXTS
//!
//! prints how many seconds it takes to read texts and to make a model's arrays of them: see scripts/bench/texts.py.

use std::path::Path;
use std::time::Instant;

use offshoot::data::{
    Augmentation, Dataset, DatasetOptions, ImageLayout, Preprocess, Samples, Texts, TrainingLoader, TrainingOptions,
};
use offshoot::opening::Opening;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let [command, model, tokenizer, texts] = &arguments[..]
        && command == "texts"
    {
        return time_texts(model, tokenizer, texts);
    }
    let [data, size, batch, seconds, rest @ ..] = &arguments[..] else {
        eprintln!("usage: cargo bench --bench data -- DATA SIZE BATCH SECONDS [none|light|standard|deit]");
        return Ok(());
    };
    let (size, batch_size, seconds): (usize, usize, f64) = (size.parse()?, batch.parse()?, seconds.parse()?);
    let name = rest.first().map_or("standard", String::as_str);
    let augmentation = match name {
        "none" => Augmentation::none(),
        "light" => Augmentation::light(),
        "deit" => Augmentation::deit(),
        _ => Augmentation::standard(),
    };
    let dataset = Dataset::open(data, &DatasetOptions { ignore_labels: true, ..DatasetOptions::default() })?;
    let all: Vec<usize> = (0..dataset.len()).collect();
    let options = TrainingOptions { batch_size, augmentation, ..TrainingOptions::default() };
    let loader =
        TrainingLoader::new(dataset, all, Some(Preprocess::imagenet([size, size])), ImageLayout::Nchw, options)?;
    let (start, mut images) = (Instant::now(), 0);
    'all: for epoch in 0.. {
        for batch in loader.batches(epoch, 0) {
            images += batch?.indices.len();
            if start.elapsed().as_secs_f64() > seconds {
                break 'all;
            }
        }
    }
    let rate = images as f64 / start.elapsed().as_secs_f64();
    println!("{}", serde_json::json!({"data": data, "size": size, "augmentation": name, "images_per_second": rate}));
    Ok(())
}

fn time_texts(model: &str, tokenizer: &str, texts: &str) -> Result<(), Box<dyn std::error::Error>> {
    let texts = Texts { path: texts.into(), tokenizer: Some(tokenizer.into()), ..Texts::default() };
    let opening = Opening { texts: Some(texts), ..Opening::default() };
    let start = Instant::now();
    let opened = opening.open(Path::new(model), None)?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", serde_json::json!({"texts": opened.arrays.map(|arrays| arrays.len()), "seconds": seconds}));
    Ok(())
}
