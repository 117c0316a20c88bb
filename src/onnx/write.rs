//! Encoding: the structure through prost, tensor payloads streamed from their slices.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::proto::{GraphProto, ModelProto, TensorProto};
use super::source::MappedFile;
use super::{bounds, external};
use crate::error::{Error, ErrorKind, Result};

/// Protobuf messages end at 2 GB; weights move to external data a little before that.
const MAX_MESSAGE: u64 = (2 << 30) - (64 << 20);
/// A model whose weights lie beside it is smaller than this.
const MAX_STRUCTURE: u64 = 128 << 20;
/// ONNX asks for external data aligned to pages, so that readers can map it.
const ALIGNMENT: u64 = 4096;

/// What a written file has to pass before it is called what it is to be called.
pub(super) type Accept<'a> = &'a dyn Fn(&Path) -> Result<()>;

/// Bytes of the encoded model.
pub fn encoded_len(model: &ModelProto) -> u64 {
    model.encoded_len() as u64
}

/// Encodes the model, payloads last in each tensor.
pub(super) fn encode(model: &ModelProto, out: &mut impl Write) -> io::Result<()> {
    let graph = model.graph.as_ref();
    let shell = ModelProto {
        ir_version: model.ir_version,
        opset_import: model.opset_import.clone(),
        producer_name: model.producer_name.clone(),
        producer_version: model.producer_version.clone(),
        domain: model.domain.clone(),
        model_version: model.model_version,
        doc_string: model.doc_string.clone(),
        graph: None,
        metadata_props: model.metadata_props.clone(),
        training_info: model.training_info.clone(),
        functions: model.functions.clone(),
        configuration: model.configuration.clone(),
    };
    out.write_all(&shell.encode_to_vec())?;
    let Some(graph) = graph else { return Ok(()) };
    header(7, graph.encoded_len(), out)?;
    let mut scratch = Vec::new();
    for node in &graph.node {
        message(1, node, &mut scratch, out)?;
    }
    for tensor in &graph.initializer {
        header(5, tensor.encoded_len(), out)?;
        match &tensor.raw_data {
            Some(raw) => {
                let shell = TensorProto { raw_data: None, ..tensor.clone() };
                out.write_all(&shell.encode_to_vec())?;
                header(9, raw.len(), out)?;
                expect(raw);
                out.write_all(raw)?;
            }
            None => out.write_all(&tensor.encode_to_vec())?,
        }
    }
    // The rest is small: everything but nodes and initializers.
    let rest = GraphProto {
        node: Vec::new(),
        initializer: Vec::new(),
        name: graph.name.clone(),
        sparse_initializer: graph.sparse_initializer.clone(),
        doc_string: graph.doc_string.clone(),
        input: graph.input.clone(),
        output: graph.output.clone(),
        value_info: graph.value_info.clone(),
        quantization_annotation: graph.quantization_annotation.clone(),
        metadata_props: graph.metadata_props.clone(),
    };
    out.write_all(&rest.encode_to_vec())
}

/// Tells the kernel that a mapped payload is about to be read as a whole: one call instead of a page fault every few
/// pages.
#[cfg(target_os = "linux")]
fn expect(payload: &[u8]) {
    use rustix::mm::{Advice, madvise};
    const PAGE: usize = 4096;
    if payload.len() < 16 * PAGE {
        return;
    }
    let start = payload.as_ptr() as usize & !(PAGE - 1);
    let length = payload.as_ptr() as usize + payload.len() - start;
    // SAFETY: the advice only fills page tables; it changes no memory, and a range that cannot be filled is an error
    // that is not one here.
    let _ = unsafe { madvise(start as *mut _, length, Advice::LinuxPopulateRead) };
}

#[cfg(not(target_os = "linux"))]
fn expect(_: &[u8]) {}

fn header(field: u32, len: usize, out: &mut impl Write) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(8 + encoded_len_varint(len as u64));
    encode_key(field, WireType::LengthDelimited, &mut buffer);
    encode_varint(len as u64, &mut buffer);
    out.write_all(&buffer)
}

fn message(field: u32, message: &impl Message, scratch: &mut Vec<u8>, out: &mut impl Write) -> io::Result<()> {
    scratch.clear();
    header(field, message.encoded_len(), scratch)?;
    // A vector always has room.
    let _ = message.encode(scratch);
    out.write_all(scratch)
}

/// Writes a model, with external data beside it where it is too large for one message. Returns the bytes written.
/// Nothing is replaced where one of the `sources` of payloads was written over meanwhile, or where `accept` refuses the
/// file under its temporary name, beside which its external data lies.
pub(super) fn write(model: &ModelProto, path: &Path, sources: &[MappedFile], accept: Accept) -> Result<u64> {
    write_within(model, path, MAX_MESSAGE, sources, accept)
}

/// [`write`], with the size above which weights move out.
fn write_within(model: &ModelProto, path: &Path, limit: u64, sources: &[MappedFile], accept: Accept) -> Result<u64> {
    let unchanged = || sources.iter().try_for_each(MappedFile::unchanged);
    let check = |file: &Path| accept(file).and_then(|()| unchanged());
    let mut before = own_data(path);
    let real = |p: &Path| p.canonicalize().ok();
    before.retain(|f| sources.iter().all(|s| real(&s.path) != real(f)));
    if encoded_len(model) <= limit {
        let bytes = replace_checked(path, |out| encode(model, out), check)?;
        remove(before);
        return Ok(bytes);
    }
    // A name that no file has: a model that is being replaced keeps its weights until it is.
    let data_path = (0..)
        .map(|n: usize| sibling(path, &if n == 0 { ".data".to_string() } else { format!(".{n}.data") }))
        .find(|p| p.as_ref().map_or(true, |p| fs::symlink_metadata(p).is_err()))
        .unwrap_or_else(|| sibling(path, ".data"))?;
    let location = data_path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
    let mut model = model.clone();
    let graph = model.graph.get_or_insert_with(GraphProto::default);
    let mut offset = 0u64;
    let fill = |out: &mut BufWriter<&File>| {
        for t in &mut graph.initializer {
            let Some(raw) = external::take(t) else { continue };
            let padding = offset.next_multiple_of(ALIGNMENT) - offset;
            out.write_all(&vec![0; padding as usize])?;
            offset += padding;
            expect(&raw);
            out.write_all(&raw)?;
            external::refer(t, &location, offset, raw.len());
            offset += raw.len() as u64;
        }
        Ok(())
    };
    let data = replace_checked(&data_path, fill, |_| unchanged())?;
    match replace_checked(path, |out| encode(&model, out), check) {
        Ok(bytes) => {
            remove(before);
            Ok(data + bytes)
        }
        Err(e) => {
            remove(vec![data_path]);
            Err(e)
        }
    }
}

/// The files of weights that an earlier [`write`] put beside the model at `path`.
fn own_data(path: &Path) -> Vec<PathBuf> {
    let small = fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= MAX_STRUCTURE);
    let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|_| small) else { return Vec::new() };
    let read = fs::read(path).ok().filter(|bytes| bounds::check(bytes).is_ok());
    let Some(old) = read.and_then(|bytes| ModelProto::decode(&bytes[..]).ok()) else { return Vec::new() };
    let tensors = old.graph.iter().flat_map(|g| &g.initializer).flat_map(|t| &t.external_data);
    let mut names: Vec<&str> = tensors.filter(|e| e.key() == "location").map(|e| e.value()).collect();
    names.sort_unstable();
    names.dedup();
    let ours = |n: &&&str| {
        let middle = n.strip_prefix(name).and_then(|n| n.strip_suffix(".data"));
        middle.is_some_and(|m| m.is_empty() || m.strip_prefix('.').is_some_and(|m| m.parse::<usize>().is_ok()))
    };
    names.iter().filter(ours).map(|n| path.with_file_name(n)).collect()
}

/// Removes files that nothing names any more; one that cannot be removed stays.
fn remove(files: Vec<PathBuf>) {
    files.iter().for_each(|f| drop(fs::remove_file(f)));
}

fn sibling(path: &Path, suffix: &str) -> Result<PathBuf> {
    let mut name = path
        .file_name()
        .ok_or_else(|| Error::new(ErrorKind::Usage, "the output path has no file name").at(path))?
        .to_os_string();
    name.push(suffix);
    Ok(path.with_file_name(name))
}

/// Writes a file through a temporary one in the same folder, which replaces it only when all is written. Returns its
/// bytes.
///
/// # Errors
/// [`ErrorKind::Io`]; the temporary file is gone then and an older file at `path` is untouched.
pub fn replace_file(path: &Path, fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> Result<u64> {
    replace_checked(path, fill, |_| Ok(()))
}

/// [`replace_file`], which replaces nothing where `check` fails on the temporary file when all is written.
fn replace_checked(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<u64> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fail = |e: io::Error| Error::io(path, e).hint("check that the folder exists, is writable and has room");
    // Renaming over a device or a pipe would replace it for everybody.
    if path.exists() && !path.is_file() {
        return Err(Error::new(ErrorKind::Io, "the output is no regular file").at(path).hint("name a file"));
    }
    let temporary = tempfile::Builder::new().prefix(".offshoot-").suffix(".tmp").tempfile_in(folder).map_err(fail)?;
    let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file());
    fill(&mut out).and_then(|()| out.flush()).map_err(fail)?;
    drop(out);
    let bytes = temporary.as_file().metadata().map_err(fail)?.len();
    // Temporary files are private; an output gets the mode that any new file would get.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = match fs::metadata(path) {
            Ok(old) => old.permissions().mode(),
            Err(_) => 0o644,
        };
        temporary.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(fail)?;
    }
    check(temporary.path())?;
    temporary.persist(path).map_err(|e| fail(e.error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{DataType, Model, tensor_from_f32, to_f32};

    fn model() -> ModelProto {
        let data: Vec<f32> = (0..1000).map(|v| v as f32).collect();
        ModelProto {
            ir_version: Some(8),
            graph: Some(GraphProto {
                initializer: vec![
                    tensor_from_f32("large", DataType::Float, &[10, 100], &data),
                    tensor_from_f32("small", DataType::Float, &[2], &[1.0, 2.0]),
                    tensor_from_f32("other", DataType::Float, &[1000], &data),
                ],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn encoding_is_what_prost_decodes() {
        let model = model();
        let mut bytes = Vec::new();
        encode(&model, &mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, encoded_len(&model));
        assert_eq!(ModelProto::decode(&bytes[..]).unwrap(), model);
    }

    #[test]
    fn large_models_keep_their_weights_beside_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        write_within(&model(), &path, 1000, &[], &|_| Ok(())).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 1000);
        assert_eq!(fs::metadata(folder.path().join("model.onnx.data")).unwrap().len(), 4096 + 4000);
        let read = Model::open(&path).unwrap();
        for (a, b) in read.graph().initializer.iter().zip(&model().graph.unwrap().initializer) {
            assert_eq!((a.name(), &a.dims, to_f32(a).unwrap()), (b.name(), &b.dims, to_f32(b).unwrap()));
        }
    }

    #[test]
    fn a_large_model_replaces_another_and_its_weights() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let names = || {
            let mut names: Vec<String> =
                fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        write_within(&model(), &path, 1000, &[], &|_| Ok(())).unwrap();
        // Weights of the model that is replaced stay until it is.
        let old = Model::open(&path).unwrap();
        write_within(&model(), &path, 1000, &[], &|_| Ok(())).unwrap();
        assert_eq!(names(), ["model.onnx", "model.onnx.1.data"]);
        assert_eq!(to_f32(&old.graph().initializer[2]).unwrap()[999], 999.0);
        assert_eq!(to_f32(&Model::open(&path).unwrap().graph().initializer[2]).unwrap()[999], 999.0);
        // What the weights come from stays.
        write_within(&model(), &path, 1000, &Model::open(&path).unwrap().sources, &|_| Ok(())).unwrap();
        assert_eq!(names(), ["model.onnx", "model.onnx.1.data", "model.onnx.data"]);
        write_within(&model(), &path, 1 << 20, &[], &|_| Ok(())).unwrap();
        assert_eq!(names(), ["model.onnx", "model.onnx.1.data"]);
    }

    #[test]
    fn what_is_no_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        assert!(replace_file(folder.path(), |_| Ok(())).is_err());
        #[cfg(unix)]
        {
            let link = folder.path().join("null");
            std::os::unix::fs::symlink("/dev/null", &link).unwrap();
            assert!(replace_file(&link, |_| Ok(())).is_err());
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        fs::write(&path, b"old").unwrap();
        let error = replace_file(&path, |out| {
            out.write_all(b"new")?;
            Err(io::Error::other("disk full"))
        });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_accepted_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        fs::write(&path, b"old").unwrap();
        for limit in [1000, 1 << 20] {
            // The file is whole when it is judged, weights beside it and all.
            let refuse = |file: &Path| {
                let read = Model::open(file)?;
                assert_eq!(to_f32(&read.graph().initializer[2])?[999], 999.0);
                Err(Error::new(ErrorKind::Runtime, "does not open"))
            };
            let error = write_within(&model(), &path, limit, &[], &refuse).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Runtime);
            assert_eq!(fs::read(&path).unwrap(), b"old");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
}
