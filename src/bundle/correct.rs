//! The sizes of a child in a configuration of its ancestor.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::keys::{
    CLASSES, HEAD_DIM, HEADS, LENGTHS, LISTS, Named, OWN_HEAD_DIM, PERIODS, PICTURES, POOLED, POSITIONS, RATIO,
    SECTIONS, SIZES,
};
use super::sizes::{ModelSizes, Stack, uniform};

/// A key that was changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The key; in a section with its name in front.
    pub key: String,
    /// What it was; null where it was not there.
    pub from: Value,
    /// What it is; null where it was left out.
    pub to: Value,
}

/// What became of a configuration.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Corrected {
    pub changes: Vec<Change>,
    /// What it does not say of the child, or says wrongly.
    pub warnings: Vec<String>,
}

/// Puts the sizes of a child in the place of its ancestor's. `sources` has the ancestor's layer of each of the child's.
pub(super) fn correct(
    config: &mut Map<String, Value>,
    was: &ModelSizes,
    is: &ModelSizes,
    sources: &[usize],
) -> Corrected {
    let mut done = Corrected::default();
    // transformers fills in what its configurations leave out.
    let has_defaults = config.contains_key("model_type");
    let nested = SECTIONS.iter().any(|(key, _)| config.get(*key).is_some_and(Value::is_object));
    for before in &was.stacks {
        let only = (was.stacks.len() == 1 && is.stacks.len() == 1).then(|| &is.stacks[0]);
        let Some(after) = is.stack(&before.name).or(only) else {
            done.warnings.push(format!("the child has no stack `{}`, whose sizes stay", before.name));
            continue;
        };
        if after == before {
            continue;
        }
        let section = SECTIONS.iter().find(|(_, stack)| *stack == before.name).map(|(key, _)| *key);
        let (path, map) = match section {
            Some(key) if config.get(key).is_some_and(Value::is_object) => {
                let Some(map) = config.get_mut(key).and_then(Value::as_object_mut) else { continue };
                (format!("{key}."), map)
            }
            _ if was.stacks.len() == 1 && !nested => (String::new(), &mut *config),
            _ => {
                done.warnings.push(format!("it has no section for the stack `{}`, whose sizes stay", before.name));
                continue;
            }
        };
        let mut section = Section { path, map, before, after, has_defaults, done: &mut done };
        SIZES.iter().for_each(|named| section.size(named));
        section.ratio();
        section.head_dim();
        section.lists(sources);
    }
    positions(config, was, is, &mut done);
    if let (Some(old), Some(new)) = (was.image, is.image) {
        image(config, old, new, &mut done);
    }
    classes(config, was, is, &mut done);
    done
}

/// A configuration of one stack of layers.
struct Section<'c> {
    /// In front of its keys.
    path: String,
    map: &'c mut Map<String, Value>,
    before: &'c Stack,
    after: &'c Stack,
    has_defaults: bool,
    done: &'c mut Corrected,
}

impl Section<'_> {
    /// Writes a value, and says what it was.
    fn set(&mut self, key: &str, to: Value) {
        let from = self.map.insert(key.into(), to.clone()).unwrap_or(Value::Null);
        self.done.changes.push(Change { key: format!("{}{key}", self.path), from, to });
    }

    fn warn(&mut self, text: String) {
        self.done.warnings.push(text);
    }

    /// Corrects a size where it changed, under every key that has the ancestor's.
    fn size(&mut self, named: &Named) {
        let (was, is) = ((named.of)(self.before), (named.of)(self.after));
        let (old, new) = (uniform(&was), uniform(&is));
        let changed = if old.is_none() && new.is_none() { was != is } else { old != new };
        if was.is_empty() || !changed {
            return;
        }
        let held = |map: &Map<String, Value>, agrees: &dyn Fn(&Value) -> bool| -> Vec<&'static str> {
            named.keys.iter().copied().filter(|key| map.get(*key).is_some_and(agrees)).collect()
        };
        // A null stands for what follows from other keys.
        let mut keys = held(self.map, &|v| v.is_null() || (old.is_some() && v.as_u64() == old.map(|n| n as u64)));
        let others = held(self.map, &|v| v.is_number() || v.is_array());
        let implied = named.implied && !(named.keys[0] == "intermediate_size" && self.map.contains_key(RATIO));
        if keys.is_empty() && others.is_empty() && implied && self.has_defaults {
            keys.push(named.keys[0]);
        }
        if keys.is_empty() && (implied || !others.is_empty()) {
            let key = format!("{}{}", self.path, others.first().unwrap_or(&named.keys[0]));
            self.warn(match others.first().map(|key| &self.map[*key]) {
                Some(value) => format!("`{key}` stays {value}: the child has {}", listed(&is)),
                None => format!("it has no key such as `{key}`: the child has {}", listed(&is)),
            });
        }
        for key in keys {
            match new.filter(|&n| self.can_say(key, n)) {
                Some(n) => self.set(key, json!(n)),
                None => self.list(key, &is),
            }
        }
    }

    /// False for numbers of heads that transformers refuses: they have to divide the channels, unless the dimension of
    /// a head has a key that all of the family read.
    fn can_say(&self, key: &str, n: usize) -> bool {
        let channels = uniform(&self.after.channels).unwrap_or(0);
        !HEADS.contains(&key) || self.map.contains_key("d_kv") || (n > 0 && channels.is_multiple_of(n))
    }

    /// Leaves a key as it is, and writes the numbers of all layers beside it.
    fn list(&mut self, key: &str, is: &[usize]) {
        let why = match uniform(is) {
            Some(n) => format!("{n} do not divide the channels"),
            None => "layers differ".into(),
        };
        let stays = self.map.get(key).map_or("is left out".into(), |value| format!("stays {value}"));
        self.warn(format!("`{}{key}` {stays}, since {why}: `{key}_per_layer` has {}", self.path, json!(is)));
        self.set(&format!("{key}_per_layer"), json!(is));
    }

    /// Corrects the width of FFNs as a multiple of the channels.
    fn ratio(&mut self) {
        let Some(ratio) = self.map.get(RATIO).and_then(Value::as_f64) else { return };
        let of = |stack: &Stack| uniform(&stack.neurons).zip(uniform(&stack.channels));
        if of(self.before) == of(self.after) && uniform(&self.before.neurons).is_some() {
            return;
        }
        let says = |ratio: f64, (neurons, channels): (usize, usize)| (ratio * channels as f64) as usize == neurons;
        let is = listed(&self.after.neurons);
        let new = of(self.after).map(|both| (both.0 as f64 / both.1 as f64, both));
        match (of(self.before).filter(|&both| says(ratio, both)), new.filter(|&(ratio, both)| says(ratio, both))) {
            (Some(_), Some((new, _))) if new.fract() == 0.0 => self.set(RATIO, json!(new as u64)),
            (Some(_), Some((new, _))) => self.set(RATIO, json!(new)),
            _ => self.warn(format!("`{}{RATIO}` stays {ratio}: FFNs of the child have {is} neurons", self.path)),
        }
    }

    /// Writes down the dimension of a head where no key has it, and it is not the share of the channels that falls to
    /// each.
    fn head_dim(&mut self) {
        if HEAD_DIM.iter().any(|key| self.map.get(*key).is_some_and(Value::is_number)) {
            return;
        }
        let family = self.map.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let key = OWN_HEAD_DIM.iter().find(|(name, _)| *name == family).map_or(HEAD_DIM[0], |(_, key)| key);
        let (was, is) = (&self.before.head_dims, &self.after.head_dims);
        let Some(dim) = uniform(is) else {
            if was != is {
                self.list(key, is);
            }
            return;
        };
        let channels = uniform(&self.after.channels).unwrap_or(0);
        let heads = HEADS.iter().find_map(|key| self.map.get(*key).and_then(Value::as_u64));
        let follows = heads.map_or(uniform(was) == Some(dim), |n| (channels as u64).checked_div(n) == Some(dim as u64));
        if !follows && heads.is_none() && !self.has_defaults {
            self.warn(format!("it has no key such as `{}{key}`: heads of the child have {dim} dimensions", self.path));
        } else if !follows {
            let heads = listed(&self.after.heads);
            self.set(key, json!(dim));
            self.warn(format!(
                "`{}{key}` {dim} is added, since {heads} heads of {dim} are not the {channels} channels: what divides \
                 channels by heads (BERT in transformers) takes heads for larger than they are",
                self.path
            ));
        }
    }

    /// Takes the entries of the layers that are left.
    fn lists(&mut self, sources: &[usize]) {
        let places: Option<Vec<usize>> = self
            .after
            .layers
            .iter()
            .map(|&l| self.before.layers.iter().position(|own| Some(own) == sources.get(l)))
            .collect();
        let Some(places) = places.filter(|places| !places.iter().copied().eq(0..self.before.layers.len())) else {
            return;
        };
        let mut listed = false;
        for key in LISTS {
            let Some(Value::Array(list)) = self.map.get(key).filter(|v| v.is_array()) else { continue };
            if list.len() != self.before.layers.len() {
                continue;
            }
            listed = true;
            let left: Vec<Value> = places.iter().filter_map(|&at| list.get(at).cloned()).collect();
            if left != *list {
                self.set(key, json!(left));
            }
        }
        for key in PERIODS {
            let Some(period) = self.map.get(key).and_then(Value::as_u64).filter(|&n| n > 0 && !listed) else {
                continue;
            };
            let phase = |at: usize| (at as u64).is_multiple_of(period);
            if places.iter().enumerate().any(|(i, &at)| phase(i) != phase(at)) {
                self.warn(format!("`{}{key}` stays {period}: of the ancestor's layers {places:?} are left", self.path));
            }
        }
    }
}

/// A list in a sentence, a number where all are that.
fn listed(list: &[usize]) -> String {
    match uniform(list) {
        Some(n) => n.to_string(),
        None => format!("{list:?}"),
    }
}

/// Corrects the rows of the table of positions, in the section of texts, too.
fn positions(config: &mut Map<String, Value>, was: &ModelSizes, is: &ModelSizes, done: &mut Corrected) {
    let (Some(old), Some(new)) = (was.positions, is.positions) else { return };
    if old == new {
        return;
    }
    let section = config.get(SECTIONS[0].0).is_some_and(Value::is_object).then_some(SECTIONS[0].0);
    let path = section.map(|key| format!("{key}.")).unwrap_or_default();
    let map = match section {
        None => Some(&mut *config),
        Some(key) => config.get_mut(key).and_then(Value::as_object_mut),
    };
    let before = done.changes.len();
    let Some(map) = map else { return };
    for key in POSITIONS {
        if let Some(value) = map.get_mut(key).filter(|value| **value == json!(old)) {
            *value = json!(new);
            done.changes.push(Change { key: format!("{path}{key}"), from: json!(old), to: json!(new) });
        }
    }
    if done.changes.len() == before {
        let key = POSITIONS.into_iter().find(|key| map.contains_key(*key)).unwrap_or(POSITIONS[0]);
        let stays = map.get(key).map_or("is not there".into(), |value| format!("stays {value}"));
        done.warnings.push(format!("`{path}{key}` {stays}: the child has {new} positions, where there were {old}"));
    }
}

/// Corrects the length of texts in the configuration of a tokenizer: it is never beyond what the child takes, and where
/// it was all that the ancestor takes, it is all that the child does.
pub(super) fn length(config: &mut Map<String, Value>, was: &ModelSizes, is: &ModelSizes) -> Corrected {
    let mut done = Corrected::default();
    let Some(new) = is.tokens.filter(|_| was.tokens != is.tokens) else { return done };
    for key in LENGTHS {
        let Some(value) = config.get_mut(key) else { continue };
        // transformers writes 1e30 where it knows no length.
        if value.as_u64().is_some_and(|n| n > new as u64 || was.tokens.is_some_and(|old| n == old as u64)) {
            let from = std::mem::replace(value, json!(new));
            done.changes.push(Change { key: key.into(), from, to: json!(new) });
        }
    }
    done
}

/// Corrects the size of images: in sections, too, and where timm has it.
fn image(config: &mut Map<String, Value>, was: [usize; 2], is: [usize; 2], done: &mut Corrected) {
    const KEY: &str = "image_size";
    if was == is {
        return;
    }
    let before = done.changes.len();
    let mut set = |path: &str, key: &str, map: &mut Map<String, Value>| {
        let forms = [side, both, with_channels];
        let Some(from) = map.get(key).cloned() else { return };
        let Some(form) = forms.iter().find(|form| form(was, &from).as_ref() == Some(&from)) else { return };
        if let Some(to) = form(is, &from).or(both(is, &from)) {
            map.insert(key.into(), to.clone());
            done.changes.push(Change { key: format!("{path}{key}"), from, to });
        }
    };
    set("", KEY, config);
    for (section, key) in SECTIONS.map(|(section, _)| (section, KEY)).into_iter().chain(PICTURES) {
        if let Some(map) = config.get_mut(section).and_then(Value::as_object_mut) {
            set(&format!("{section}."), key, map);
        }
    }
    if done.changes.len() == before {
        done.warnings.push(format!("it names no size of images as the ancestor has it: the child takes {is:?}"));
    }
}

/// A square image.
fn side([h, w]: [usize; 2], _: &Value) -> Option<Value> {
    (h == w).then(|| json!(h))
}

/// Height and width.
fn both(size: [usize; 2], _: &Value) -> Option<Value> {
    Some(json!(size))
}

/// Channels, height and width.
fn with_channels([h, w]: [usize; 2], like: &Value) -> Option<Value> {
    Some(json!([like.get(0)?, h, w]))
}

/// Corrects the size of images in the configuration of an image processor.
pub(super) fn processor(config: &mut Map<String, Value>, was: &ModelSizes, is: &ModelSizes) -> Corrected {
    let mut done = Corrected::default();
    let (Some(old), Some(new)) = (was.image, is.image) else { return done };
    let form = |[h, w]: [usize; 2]| json!({"height": h, "width": w});
    for key in ["size", "crop_size"].into_iter().filter(|_| old != new) {
        let Some(from) = config.get(key).cloned() else { continue };
        if from == form(old) || side(old, &from).as_ref() == Some(&from) {
            let to = form(new);
            config.insert(key.into(), to.clone());
            done.changes.push(Change { key: key.into(), from, to });
        } else {
            done.warnings.push(format!("`{key}` stays {from}: the child takes {new:?}"));
        }
    }
    done
}

/// Corrects the number of classes and their names.
fn classes(config: &mut Map<String, Value>, was: &ModelSizes, is: &ModelSizes, done: &mut Corrected) {
    let changed = is.classes.is_some() && was.classes != is.classes;
    let names = is.names.as_ref().filter(|names| is.classes.is_none_or(|n| n == names.len()));
    let named = config.get("id2label").is_some_and(Value::is_object);
    // transformers takes a model without names for one of two classes.
    let nameless = is.classes.is_some() && config.contains_key("model_type");
    let mut set = |key: &str, to: Option<Value>| {
        let from = config.get(key).cloned();
        if from != to {
            match to.clone() {
                Some(to) => drop(config.insert(key.into(), to)),
                None => drop(config.shift_remove(key)),
            }
            let [from, to] = [from, to].map(Option::unwrap_or_default);
            done.changes.push(Change { key: key.into(), from, to });
        }
    };
    if let Some(names) = names.filter(|_| named || nameless) {
        let by_number = names.iter().enumerate().map(|(n, name)| (n.to_string(), json!(name)));
        let by_name = names.iter().enumerate().map(|(n, name)| (name.clone(), json!(n)));
        set("id2label", Some(Value::Object(by_number.collect())));
        set("label2id", Some(Value::Object(by_name.collect())));
    } else if changed && named {
        set("id2label", None);
        set("label2id", None);
        done.warnings.push("`id2label` is left out: it names classes that the child does not have".into());
    }
    let Some(from) = was.classes.map(|n| json!(n)).filter(|_| changed) else { return };
    for path in CLASSES {
        let (section, key) = path.split_once('.').map_or((None, path), |(section, key)| (Some(section), key));
        let map = match section {
            None => Some(&mut *config),
            Some(section) => config.get_mut(section).and_then(Value::as_object_mut),
        };
        if let Some(value) = map.and_then(|map| map.get_mut(key)).filter(|value| **value == from) {
            *value = json!(is.classes);
            done.changes.push(Change { key: path.into(), from: from.clone(), to: value.clone() });
        }
    }
}

/// Corrects the channels in the configuration of a module of sentence-transformers that pools them.
pub(super) fn pooling(config: &mut Map<String, Value>, was: &ModelSizes, is: &ModelSizes) -> Corrected {
    let mut done = Corrected::default();
    let of = |sizes: &ModelSizes| sizes.stacks.first().and_then(|stack| uniform(&stack.channels)).map(|n| json!(n));
    let (Some(from), Some(to)) = (of(was), of(is)) else { return done };
    for key in POOLED.into_iter().filter(|_| from != to) {
        if let Some(value) = config.get_mut(key).filter(|value| **value == from) {
            *value = to.clone();
            done.changes.push(Change { key: key.into(), from: from.clone(), to: to.clone() });
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stack of so many layers: heads, their dimension, neurons and channels.
    fn stack(name: &str, layers: usize, [heads, dim, neurons, channels]: [usize; 4]) -> Stack {
        let of = |n: usize| vec![n; layers];
        Stack {
            name: name.into(),
            layers: (0..layers).collect(),
            heads: of(heads),
            key_heads: of(heads),
            head_dims: of(dim),
            neurons: of(neurons),
            channels: of(channels),
        }
    }

    fn sizes(stacks: &[Stack]) -> ModelSizes {
        ModelSizes { stacks: stacks.to_vec(), ..ModelSizes::default() }
    }

    /// The configuration of a child, and what is told.
    fn child(config: Value, was: &ModelSizes, is: &ModelSizes, sources: &[usize]) -> (Value, Vec<String>) {
        let Value::Object(mut config) = config else { panic!("no object") };
        let done = correct(&mut config, was, is, sources);
        for change in &done.changes {
            assert_ne!(change.from, change.to, "{change:?}");
        }
        (Value::Object(config), done.warnings)
    }

    #[test]
    fn every_family_has_its_own_keys() {
        let was = sizes(&[stack("input_ids", 6, [12, 64, 3072, 768])]);
        let is = sizes(&[stack("input_ids", 3, [6, 128, 1536, 768])]);
        let distilbert = json!({"model_type": "distilbert", "dim": 768, "hidden_dim": 3072, "n_heads": 12,
            "n_layers": 6, "max_position_embeddings": 512, "seq_classif_dropout": 0.2, "vocab_size": 30522});
        let expected = json!({"model_type": "distilbert", "dim": 768, "hidden_dim": 1536, "n_heads": 6, "n_layers": 3,
            "max_position_embeddings": 512, "seq_classif_dropout": 0.2, "vocab_size": 30522});
        assert_eq!(child(distilbert, &was, &is, &[0, 2, 4]), (expected, vec![]));
        let gpt2 =
            json!({"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_inner": null, "n_layer": 6, "n_ctx": 768});
        let expected =
            json!({"model_type": "gpt2", "n_embd": 768, "n_head": 6, "n_inner": 1536, "n_layer": 3, "n_ctx": 768});
        assert_eq!(child(gpt2, &was, &is, &[0, 2, 4]), (expected, vec![]));
        let bart = json!({"encoder_attention_heads": 12, "encoder_ffn_dim": 3072, "encoder_layers": 6, "d_model": 768,
            "num_hidden_layers": 6, "decoder_layers": 6, "decoder_ffn_dim": 3072});
        let expected = json!({"encoder_attention_heads": 6, "encoder_ffn_dim": 1536, "encoder_layers": 3,
            "d_model": 768, "num_hidden_layers": 3, "decoder_layers": 6, "decoder_ffn_dim": 3072});
        assert_eq!(child(bart, &was, &is, &[0, 2, 4]), (expected, vec![]));
        // A default that is left out in transformers' form is written down, and in another it is told.
        let expected = json!({"model_type": "bert", "num_hidden_layers": 3, "intermediate_size": 1536,
            "num_attention_heads": 6});
        assert_eq!(child(json!({"model_type": "bert"}), &was, &is, &[0, 2, 4]), (expected, vec![]));
        let (config, told) = child(json!({"architecture": "vit"}), &was, &is, &[0, 2, 4]);
        assert_eq!((config, told.len()), (json!({"architecture": "vit"}), 4));
        assert!(told[3].contains("heads of the child have 128 dimensions"), "{told:?}");
        assert!(told[0].contains("no key such as `num_hidden_layers`: the child has 3"), "{told:?}");
    }

    #[test]
    fn the_dimension_of_a_head_is_said_where_it_does_not_follow() {
        let was = sizes(&[stack("x", 2, [8, 8, 128, 64])]);
        let is = |heads, dim| sizes(&[stack("x", 2, [heads, dim, 128, 64])]);
        let (config, told) = child(json!({"num_attention_heads": 8}), &was, &is(4, 8), &[0, 1]);
        assert_eq!(config, json!({"num_attention_heads": 4, "head_dim": 8}));
        assert!(told.len() == 1 && told[0].contains("4 heads of 8 are not the 64 channels"), "{told:?}");
        let deberta = json!({"model_type": "deberta-v2", "num_attention_heads": 8});
        let expected = json!({"model_type": "deberta-v2", "num_attention_heads": 8, "attention_head_size": 6});
        assert_eq!(child(deberta, &was, &is(8, 6), &[0, 1]).0, expected);
        let t5 = json!({"d_kv": 8, "num_heads": 8, "d_model": 64});
        assert_eq!(child(t5, &was, &is(3, 6), &[0, 1]), (json!({"d_kv": 6, "num_heads": 3, "d_model": 64}), vec![]));
        // Transformers refuses numbers of heads that do not divide the channels.
        let (config, told) = child(json!({"num_attention_heads": 8}), &was, &is(3, 8), &[0, 1]);
        assert_eq!(config, json!({"num_attention_heads": 8, "num_attention_heads_per_layer": [3, 3]}));
        assert!(
            told.len() == 1 && told[0].contains("`num_attention_heads` stays 8, since 3 do not divide"),
            "{told:?}"
        );
    }

    #[test]
    fn layers_that_differ_are_told() {
        let was = sizes(&[stack("x", 2, [4, 8, 64, 32])]);
        let mut is = was.clone();
        is.stacks[0].neurons = vec![64, 48];
        is.stacks[0].head_dims = vec![8, 6];
        let (config, told) = child(json!({"intermediate_size": 64, "head_dim": 8}), &was, &is, &[0, 1]);
        let expected = json!({"intermediate_size": 64, "head_dim": 8, "intermediate_size_per_layer": [64, 48],
            "head_dim_per_layer": [8, 6]});
        assert_eq!((config, told.len()), (expected, 2));
        assert!(told[0].contains("`intermediate_size` stays 64, since layers differ"), "{told:?}");
        // Another number than the ancestor's is nobody's to correct.
        let (config, told) = child(json!({"intermediate_size": 99}), &was, &is, &[0, 1]);
        assert_eq!(config, json!({"intermediate_size": 99, "head_dim_per_layer": [8, 6]}));
        assert!(told[1].contains("`head_dim` is left out, since layers differ"), "{told:?}");
        assert!(told[0].contains("`intermediate_size` stays 99: the child has [64, 48]"), "{told:?}");
    }

    #[test]
    fn kinds_of_layers_go_with_them() {
        let was = sizes(&[stack("x", 4, [4, 8, 64, 32])]);
        let is = sizes(&[stack("x", 2, [4, 8, 64, 32])]);
        let config = json!({"num_hidden_layers": 4, "layer_types": ["full", "near", "near", "full"]});
        let expected = json!({"num_hidden_layers": 2, "layer_types": ["full", "full"]});
        assert_eq!(child(config, &was, &is, &[0, 3]), (expected, vec![]));
        let config = json!({"num_hidden_layers": 4, "global_attn_every_n_layers": 3});
        let expected = json!({"num_hidden_layers": 2, "global_attn_every_n_layers": 3});
        assert_eq!(child(config.clone(), &was, &is, &[0, 2]), (expected, vec![]));
        let (_, told) = child(config, &was, &is, &[0, 3]);
        assert!(told.len() == 1 && told[0].contains("`global_attn_every_n_layers` stays 3"), "{told:?}");
    }

    #[test]
    fn towers_have_sections() {
        let was = sizes(&[stack("vision", 2, [4, 8, 64, 32]), stack("text", 3, [2, 8, 32, 16])]);
        let is = sizes(&[stack("vision", 2, [4, 8, 64, 32]), stack("text", 3, [2, 8, 16, 16])]);
        let config = json!({"model_type": "clip", "text_config": {"intermediate_size": 32}, "vision_config":
            {"intermediate_size": 64}});
        let expected = json!({"model_type": "clip", "text_config": {"intermediate_size": 16}, "vision_config":
            {"intermediate_size": 64}});
        assert_eq!(child(config, &was, &is, &[0, 1, 2, 3, 4]), (expected, vec![]));
        let (config, told) = child(json!({"intermediate_size": 32}), &was, &is, &[0, 1, 2, 3, 4]);
        assert_eq!(config, json!({"intermediate_size": 32}));
        assert!(told.len() == 1 && told[0].contains("no section for the stack `text`"), "{told:?}");
    }

    #[test]
    fn pictures_keep_their_form() {
        let was = ModelSizes { image: Some([224; 2]), ..sizes(&[stack("vision", 2, [4, 8, 128, 32])]) };
        let is = ModelSizes { image: Some([160, 192]), ..sizes(&[stack("vision", 2, [4, 8, 96, 32])]) };
        let config = json!({"model_type": "dinov2", "image_size": 224, "mlp_ratio": 4});
        let expected = json!({"model_type": "dinov2", "image_size": [160, 192], "mlp_ratio": 3});
        assert_eq!(child(config, &was, &is, &[0, 1]), (expected, vec![]));
        let timm = json!({"architecture": "vit", "mlp_ratio": 4.0, "pretrained_cfg": {"input_size": [3, 224, 224]}});
        let expected = json!({"architecture": "vit", "mlp_ratio": 3, "pretrained_cfg": {"input_size": [3, 160, 192]}});
        assert_eq!(child(timm, &was, &is, &[0, 1]), (expected, vec![]));
        let Value::Object(mut config) =
            json!({"size": {"height": 224, "width": 224}, "crop_size": {"shortest_edge": 9}})
        else {
            panic!("no object")
        };
        let done = processor(&mut config, &was, &is);
        assert_eq!(config["size"], json!({"height": 160, "width": 192}));
        assert!(done.warnings.len() == 1 && done.warnings[0].contains("`crop_size` stays"), "{done:?}");
    }

    #[test]
    fn texts_are_as_long_as_the_child_takes_them() {
        let of = |positions, tokens| ModelSizes {
            positions: Some(positions),
            tokens: Some(tokens),
            ..ModelSizes::default()
        };
        let (was, is) = (of(514, 512), of(130, 128));
        let config = json!({"max_position_embeddings": 514, "vocab_size": 514});
        let expected = json!({"max_position_embeddings": 130, "vocab_size": 514});
        assert_eq!(child(config, &was, &is, &[]), (expected, vec![]));
        let config = json!({"text_config": {"max_position_embeddings": 514}});
        let expected = json!({"text_config": {"max_position_embeddings": 130}});
        assert_eq!(child(config, &was, &is, &[]), (expected, vec![]));
        let (_, told) = child(json!({"n_positions": 99}), &was, &is, &[]);
        assert!(told.len() == 1 && told[0].contains("`n_positions` stays 99: the child has 130 positions"), "{told:?}");
        let lengths = |config: Value, is: &ModelSizes| {
            let Value::Object(mut config) = config else { panic!("no object") };
            length(&mut config, &was, is);
            Value::Object(config)
        };
        assert_eq!(lengths(json!({"model_max_length": 512}), &is), json!({"model_max_length": 128}));
        assert_eq!(lengths(json!({"max_seq_length": 256}), &is), json!({"max_seq_length": 128}));
        assert_eq!(lengths(json!({"model_max_length": 64}), &is), json!({"model_max_length": 64}));
        assert_eq!(lengths(json!({"model_max_length": 512}), &of(1026, 1024)), json!({"model_max_length": 1024}));
        assert_eq!(lengths(json!({"max_seq_length": 256}), &of(1026, 1024)), json!({"max_seq_length": 256}));
        let unknown = json!({"model_max_length": 1e30});
        assert_eq!(lengths(unknown.clone(), &is), unknown);
        assert_eq!(lengths(json!({"model_max_length": 600}), &was), json!({"model_max_length": 600}));
    }

    #[test]
    fn classes_are_those_of_the_child() {
        let was = ModelSizes { classes: Some(2), ..ModelSizes::default() };
        let is = |names: Option<&[&str]>| ModelSizes {
            classes: Some(3),
            names: names.map(|names| names.iter().map(|name| name.to_string()).collect()),
            ..ModelSizes::default()
        };
        let config = json!({"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}, "num_labels": 2});
        let named = json!({"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2},
            "num_labels": 3});
        assert_eq!(child(config.clone(), &was, &is(Some(&["a", "b", "c"])), &[]), (named, vec![]));
        let (found, told) = child(config.clone(), &was, &is(None), &[]);
        assert_eq!((found, told.len()), (json!({"num_labels": 3}), 1));
        let timm = json!({"num_classes": 2, "pretrained_cfg": {"num_classes": 2}});
        let expected = json!({"num_classes": 3, "pretrained_cfg": {"num_classes": 3}});
        assert_eq!(child(timm, &was, &is(Some(&["a", "b", "c"])), &[]), (expected, vec![]));
        assert_eq!(child(config.clone(), &was, &was, &[]), (config, vec![]));
    }
}
