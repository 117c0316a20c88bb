//! External data: tensors whose payload lies in another file.
//!
//! The path comes from the model, so it is not trusted: it must be relative and lie, after every link is followed,
//! inside the model's folder, and have no other name. In a cache of Hugging Face it may also lie where the cache keeps
//! the files of the model's repository.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use super::proto::tensor_proto::DataLocation;
use super::proto::{ModelProto, NodeProto, StringStringEntryProto, TensorProto};
use super::source::{MappedFile, map};
use super::tensor;
use crate::error::{Error, ErrorKind, Result};

/// Payloads below this stay in the message even when the weights are external: among them are all that shapes are
/// computed from.
const MIN_EXTERNAL: usize = 1024;

/// What to do with external data that a link leads outside the model's folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExternalLinks {
    /// An error.
    #[default]
    Refuse,
    /// Follow the link.
    Accept,
}

/// Takes the payload out of a tensor, if it has at least `MIN_EXTERNAL` bytes.
pub(super) fn take(t: &mut TensorProto) -> Option<Bytes> {
    t.raw_data.take_if(|raw| raw.len() >= MIN_EXTERNAL)
}

/// Says where the payload of a tensor lies.
pub(super) fn refer(t: &mut TensorProto, location: &str, offset: u64, length: usize) {
    let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
    t.external_data = vec![
        entry("location", location.to_string()),
        entry("offset", offset.to_string()),
        entry("length", length.to_string()),
    ];
    t.data_location = Some(DataLocation::External as i32);
}

/// Makes every external payload of the model a slice of its mapped file. Returns the bytes of the files.
pub(super) fn resolve(
    proto: &mut ModelProto,
    model: &Path,
    links: ExternalLinks,
    sources: &mut Vec<MappedFile>,
) -> Result<u64> {
    let folder = model.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut files: HashMap<PathBuf, Bytes> = HashMap::new();
    let graph = proto.graph.get_or_insert_default();
    let mut tensors: Vec<&mut TensorProto> = graph.initializer.iter_mut().collect();
    let functions = proto.functions.iter_mut().flat_map(|f| &mut f.node);
    graph.node.iter_mut().chain(functions).for_each(|node| collect_tensors(node, &mut tensors));
    for t in tensors {
        if !tensor::is_external(t) {
            continue;
        }
        resolve_tensor(t, folder, links, &mut files, sources).map_err(|e| e.at(model))?;
    }
    Ok(files.values().map(|b| b.len() as u64).sum())
}

/// The tensors that a node holds, and those of graphs inside it.
fn collect_tensors<'p>(node: &'p mut NodeProto, found: &mut Vec<&'p mut TensorProto>) {
    for a in &mut node.attribute {
        found.extend(a.t.as_mut());
        for graph in a.g.iter_mut().chain(&mut a.graphs) {
            found.extend(&mut graph.initializer);
            graph.node.iter_mut().for_each(|node| collect_tensors(node, found));
        }
    }
}

fn resolve_tensor(
    t: &mut TensorProto,
    folder: &Path,
    links: ExternalLinks,
    files: &mut HashMap<PathBuf, Bytes>,
    sources: &mut Vec<MappedFile>,
) -> Result<()> {
    let fail = |kind, what: String| Error::new(kind, format!("external data of tensor `{}`: {what}", t.name()));
    let entry = |key: &str| t.external_data.iter().find(|e| e.key() == key).map(|e| e.value());
    let number = |key: &str| -> Result<Option<usize>> {
        entry(key)
            .map(|v| v.parse().map_err(|_| fail(ErrorKind::Format, format!("{key} `{v}` is not a number"))))
            .transpose()
    };
    let location = entry("location").ok_or_else(|| fail(ErrorKind::Format, "no location".into()))?;
    let relative = Path::new(location);
    if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(fail(ErrorKind::Unsupported, format!("the path `{location}` leaves the model's folder"))
            .hint("external data must lie in the model's own folder"));
    }
    let path = folder.join(relative);
    if !files.contains_key(&path) {
        let real = path.canonicalize().map_err(|e| {
            fail(ErrorKind::Io, format!("`{location}`: {e}")).hint("keep the files of external data beside the model")
        })?;
        let inside = folder.canonicalize().map_err(|e| Error::io(folder, e))?;
        let own = real.starts_with(&inside) || blobs(&inside).is_some_and(|blobs| real.starts_with(blobs));
        if !own && links == ExternalLinks::Refuse {
            return Err(fail(ErrorKind::Unsupported, format!("`{location}` links outside the model's folder"))
                .hint("pass ⟦allow-external-links⟧ if you trust this model"));
        }
        let (bytes, source) = map(&real)?;
        if several_names(&source) && links == ExternalLinks::Refuse {
            return Err(fail(ErrorKind::Unsupported, format!("`{location}` is a hard link: the file has other names"))
                .hint("copy the file, or pass ⟦allow-external-links⟧ if you trust this model"));
        }
        files.insert(path.clone(), bytes);
        sources.push(source);
    }
    let data = &files[&path];
    let offset = number("offset")?.unwrap_or(0);
    let rest = data.len().checked_sub(offset).ok_or_else(|| {
        fail(ErrorKind::Format, format!("offset {offset} is past the end of `{location}` ({} bytes)", data.len()))
    })?;
    let length = match number("length")? {
        Some(n) => n,
        None => {
            let size = tensor::data_type(t).and_then(tensor::element_size).unwrap_or(1);
            tensor::element_count(t)?.saturating_mul(size)
        }
    };
    if length > rest {
        return Err(fail(
            ErrorKind::Format,
            format!("file `{location}` is too short: {length} bytes at {offset}, {rest} there"),
        ));
    }
    let slice = data.slice(offset..offset + length);
    t.raw_data = Some(slice);
    t.external_data.clear();
    t.data_location = None;
    Ok(())
}

/// The folder `models--NAME/blobs` of a cache of Hugging Face, for a folder in `models--NAME/snapshots/REVISION`. Both
/// belong to the one repository, and the files of a snapshot are links that the cache made into the other, never a link
/// itself.
fn blobs(inside: &Path) -> Option<PathBuf> {
    let snapshots = inside.ancestors().skip(1).find(|folder| folder.ends_with("snapshots"))?;
    let repository = snapshots.parent()?;
    let is_cache = repository.file_name()?.as_encoded_bytes().starts_with(b"models--");
    let blobs = repository.join("blobs");
    (is_cache && blobs.canonicalize().is_ok_and(|real| real == blobs)).then_some(blobs)
}

/// True for a file that has other names, which may lie outside the model's folder.
fn several_names(source: &MappedFile) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        source.file.metadata().is_ok_and(|m| m.nlink() > 1)
    }
    #[cfg(not(unix))]
    {
        let _ = source;
        false
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::onnx::Model;
    use crate::onnx::proto::{GraphProto, StringStringEntryProto, tensor_proto::DataLocation};

    /// Writes a model whose only tensor of two floats lies at `location`.
    fn model(folder: &Path, entries: &[(&str, &str)]) -> PathBuf {
        let tensor = TensorProto {
            name: Some("w".into()),
            dims: vec![2],
            data_type: Some(1),
            data_location: Some(DataLocation::External as i32),
            external_data: entries
                .iter()
                .map(|(k, v)| StringStringEntryProto { key: Some(k.to_string()), value: Some(v.to_string()) })
                .collect(),
            ..Default::default()
        };
        let proto = ModelProto {
            ir_version: Some(8),
            graph: Some(GraphProto { initializer: vec![tensor], ..Default::default() }),
            ..Default::default()
        };
        let path = folder.join("model.onnx");
        fs::write(&path, prost::Message::encode_to_vec(&proto)).unwrap();
        path
    }

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("model");
        fs::create_dir(&folder).unwrap();
        let secret = outer.path().join("secret.bin");
        fs::write(&secret, [0; 8]).unwrap();
        for location in ["../secret.bin", "a/../../secret.bin", secret.to_str().unwrap()] {
            let error = Model::open(model(&folder, &[("location", location)])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{location}: {error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_that_leave_the_folder_are_followed_only_when_asked() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("model");
        fs::create_dir(&folder).unwrap();
        fs::write(outer.path().join("blob"), 1.5f32.to_le_bytes().repeat(2)).unwrap();
        std::os::unix::fs::symlink("../blob", folder.join("weights.bin")).unwrap();
        let path = model(&folder, &[("location", "weights.bin")]);
        let error = Model::open(&path).unwrap_err();
        assert!(error.hint_text().unwrap().contains("`allow_external_links`"), "{error}");
        let opened = Model::open_with(&path, ExternalLinks::Accept).unwrap();
        assert_eq!(crate::onnx::to_f32(&opened.graph().initializer[0]).unwrap(), [1.5, 1.5]);
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("w.bin"), [0; 8]).unwrap();
        let open = |entries: &[(&str, &str)]| Model::open(model(folder.path(), entries));
        assert!(open(&[("location", "w.bin"), ("offset", "0"), ("length", "8")]).is_ok());
        for entries in [
            &[("location", "w.bin"), ("offset", "9")][..],
            &[("location", "w.bin"), ("offset", "4"), ("length", "8")],
            &[("location", "w.bin"), ("length", "18446744073709551615")],
            &[("location", "w.bin"), ("length", "4")],
            &[("location", "w.bin"), ("offset", "-1")],
            &[("location", "missing.bin")],
            &[],
        ] {
            assert!(open(entries).is_err(), "{entries:?}");
        }
    }
}
