//! Models that lead out of their folder, lie about their sizes, or have no end.

use super::*;
use offshoot::onnx::proto::{AttributeProto, attribute_proto::AttributeType};
use prost::encoding::{WireType, encode_key, encode_varint};

/// CVE-2022-25882, CVE-2024-27318: `location` leaves the model's folder.
#[test]
fn external_data_does_not_leave_the_folder() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("model");
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    let secret = outer.path().join("secret");
    std::fs::write(&secret, [7; 256]).unwrap();
    let path = folder.join("model.onnx");
    let climbing =
        ["../secret", "sub/../../secret", "./../secret", "sub/./../../secret", text(&secret), "..", "/etc/passwd"];
    for location in climbing {
        write(&path, &model_with_external_data(location));
        refused_as_a_model(&path, &["external data of tensor `w`", "leaves the model's folder"]);
        // In the value of a Constant, and of a node in a subgraph, it leads nowhere either.
        let external = model_with_external_data(location).graph.unwrap().initializer.remove(0);
        let value = AttributeProto { t: Some(external), ..attribute("value", AttributeType::Tensor) };
        let constant = NodeProto { attribute: vec![value], ..offshoot::graph::node("Constant", &[], &["w"], vec![]) };
        let mut inside = model();
        let graph = inside.graph.as_mut().unwrap();
        graph.initializer.clear();
        graph.node.insert(0, constant.clone());
        write(&path, &inside);
        refused_as_a_model(&path, &["leaves the model's folder"]);
        let body = GraphProto { node: vec![constant], ..Default::default() };
        let branch = AttributeProto { g: Some(body), ..attribute("then_branch", AttributeType::Graph) };
        let mut nested = model();
        nested.graph.as_mut().unwrap().node[0].attribute.push(branch);
        nested.graph.as_mut().unwrap().node[0].op_type = Some("If".into());
        write(&path, &nested);
        refused_as_a_model(&path, &[]);
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(kind as i32), ..Default::default() }
}

/// CVE-2026-27489, CVE-2026-34447: a link inside the folder leads out of it, as a file, as a folder, and as a second
/// name of one file.
#[cfg(unix)]
#[test]
fn external_data_does_not_follow_links_out() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("model.onnx");
    std::fs::create_dir(outer.path().join("private")).unwrap();
    let secret = outer.path().join("private/secret");
    std::fs::write(&secret, [0; 256]).unwrap();
    std::os::unix::fs::symlink(&secret, folder.join("file")).unwrap();
    std::os::unix::fs::symlink("../private", folder.join("folder")).unwrap();
    std::os::unix::fs::symlink("file", folder.join("chain")).unwrap();
    std::fs::hard_link(&secret, folder.join("second")).unwrap();
    for (location, says) in [
        ("file", "links outside"),
        ("folder/secret", "links outside"),
        ("chain", "links outside"),
        ("second", "hard link"),
    ] {
        write(&path, &model_with_external_data(location));
        refused_as_a_model(&path, &[says, "--allow-external-links"]);
    }
    // A loop of links, a folder, a device and a pipe are no files of weights.
    std::os::unix::fs::symlink("loop", folder.join("loop")).unwrap();
    std::fs::create_dir(folder.join("weights")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", folder.join("zero")).unwrap();
    let pipe = folder.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for location in ["loop", "weights", "zero", "pipe"] {
        write(&path, &model_with_external_data(location));
        let output = bounded(&["inspect", text(&path)]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{location}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Links of a Hugging Face cache into its own folder of the same model are followed, and no others.
#[cfg(unix)]
#[test]
fn links_stay_in_the_cache_of_the_model() {
    use std::os::unix::fs::symlink;
    let outer = tempfile::tempdir().unwrap();
    let [own, other] = ["models--one--vit", "models--other--vit"].map(|name| outer.path().join(name));
    let folder = own.join("snapshots/0123abcd/onnx");
    std::fs::create_dir_all(&folder).unwrap();
    for (blobs, file) in [(own.join("blobs"), "weights"), (other.join("blobs"), "secret"), (own.join("refs"), "main")] {
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(file), [0; 256]).unwrap();
    }
    let path = folder.join("model.onnx");
    symlink("../../../blobs/model", &path).unwrap();
    for (name, target) in [
        ("model.onnx_data", "../../../blobs/weights"),
        ("other", "../../../../models--other--vit/blobs/secret"),
        ("refs", "../../../refs/main"),
    ] {
        symlink(target, folder.join(name)).unwrap();
    }
    let refused = |location: &str| {
        write(&own.join("blobs/model"), &model_with_external_data(location));
        refused_as_a_model(&path, &["links outside", "--allow-external-links"]);
    };
    refused("other");
    refused("refs");
    write(&own.join("blobs/model"), &model_with_external_data("model.onnx_data"));
    offshoot::onnx::Model::open(&path).unwrap();
    // Where the folder of the files is itself a link, it may be any folder.
    std::fs::rename(own.join("blobs"), outer.path().join("elsewhere")).unwrap();
    symlink(outer.path().join("elsewhere"), own.join("blobs")).unwrap();
    refused_as_a_model(&path, &["links outside", "--allow-external-links"]);
    // A folder of the same layout that is no cache of models.
    std::fs::remove_file(own.join("blobs")).unwrap();
    std::fs::rename(outer.path().join("elsewhere"), own.join("blobs")).unwrap();
    std::fs::rename(&own, outer.path().join("one")).unwrap();
    refused_as_a_model(&outer.path().join("one/snapshots/0123abcd/onnx/model.onnx"), &["links outside"]);
}

#[test]
fn dims_whose_product_overflows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    for dims in [vec![i64::MAX, 2], vec![1 << 32, 1 << 32], vec![1 << 62, 4, 1], vec![-1, 64], vec![i64::MIN; 3]] {
        let mut spoiled = model();
        spoiled.graph.as_mut().unwrap().initializer[0].dims = dims;
        write(&path, &spoiled);
        refused_as_a_model(&path, &["tensor `w` has impossible dims"]);
    }
}

#[test]
fn lengths_that_lie() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    for dims in [vec![8, 9], vec![1 << 40], vec![0]] {
        let mut spoiled = model();
        spoiled.graph.as_mut().unwrap().initializer[0].dims = dims;
        write(&path, &spoiled);
        refused_as_a_model(&path, &["tensor `w`", "needs"]);
    }
    // A field that says it is longer than the file, for every field of the model and of the graph.
    for (tag, length) in (1..27).flat_map(|t| [(t, 1u64 << 20), (t, u64::MAX), (t, u64::from(u32::MAX))]) {
        let mut bytes = model().encode_to_vec();
        encode_key(tag, WireType::LengthDelimited, &mut bytes);
        encode_varint(length, &mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        assert!(Model::open(&path).is_err(), "field {tag} of {length} bytes");
    }
    refused_as_a_model(&path, &["not an ONNX model, or truncated"]);
    // A number without an end.
    std::fs::write(&path, [0xff; 64]).unwrap();
    refused_as_a_model(&path, &["not an ONNX model, or truncated"]);
    // Every beginning of a whole file.
    let whole = model().encode_to_vec();
    for end in 0..whole.len() {
        std::fs::write(&path, &whole[..end]).unwrap();
        let _ = Model::open(&path).map(|m| offshoot::axes::Typing::new(&m).map(|_| ()));
    }
}

/// A graph in an attribute of a node of a graph, and so on.
#[test]
fn deep_nesting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    for depth in [50, 200, 5_000] {
        // Written from the inside: a message is a key, a length and the message before.
        let mut inner = Vec::new();
        for _ in 0..depth {
            // The graph of an attribute, the attribute of a node, the node of a graph.
            for tag in [6, 5, 1] {
                let mut outer = Vec::with_capacity(inner.len() + 12);
                encode_key(tag, WireType::LengthDelimited, &mut outer);
                encode_varint(inner.len() as u64, &mut outer);
                outer.extend(&inner);
                inner = outer;
            }
        }
        let mut bytes = vec![8, 8];
        encode_key(7, WireType::LengthDelimited, &mut bytes);
        encode_varint(inner.len() as u64, &mut bytes);
        bytes.extend(inner);
        std::fs::write(&path, &bytes).unwrap();
        refused_as_a_model(&path, &[]);
    }
}

#[test]
fn cyclic_graphs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let node = offshoot::graph::node;
    for nodes in [
        vec![node("Add", &["y", "x"], &["y"], vec![])],
        vec![
            node("Add", &["x", "b"], &["a"], vec![]),
            node("Add", &["a", "a"], &["b"], vec![]),
            node("Relu", &["b"], &["y"], vec![]),
        ],
    ] {
        let mut spoiled = model();
        spoiled.graph.as_mut().unwrap().node = nodes;
        write(&path, &spoiled);
        refused_as_a_model(&path, &["hint: "]);
    }
    // Functions that call themselves.
    let mut spoiled = model();
    spoiled.functions = vec![offshoot::onnx::proto::FunctionProto {
        name: Some("F".into()),
        domain: Some("d".into()),
        input: vec!["x".into()],
        output: vec!["y".into()],
        node: vec![NodeProto { domain: Some("d".into()), ..node("F", &["x"], &["y"], vec![]) }],
        opset_import: vec![OperatorSetIdProto { domain: Some("d".into()), version: Some(1) }],
        ..Default::default()
    }];
    spoiled.opset_import.push(OperatorSetIdProto { domain: Some("d".into()), version: Some(1) });
    spoiled.graph.as_mut().unwrap().node[0] =
        NodeProto { domain: Some("d".into()), ..node("F", &["x"], &["y"], vec![]) };
    write(&path, &spoiled);
    refused_as_a_model(&path, &["hint: "]);
}

#[test]
fn duplicate_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let mut spoiled = model();
    let graph = spoiled.graph.as_mut().unwrap();
    graph.initializer.push(graph.initializer[0].clone());
    write(&path, &spoiled);
    refused_as_a_model(&path, &["two initializers are called `w`"]);
    let mut spoiled = model();
    let graph = spoiled.graph.as_mut().unwrap();
    graph.node.push(graph.node[0].clone());
    write(&path, &spoiled);
    refused_as_a_model(&path, &["two nodes make a value called `y`"]);
}

/// Two bytes in the file for each of millions of nodes, tensors, names, attributes and dims, which take hundreds in
/// memory.
#[test]
fn huge_repeated_fields() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    // Paths of fields from the model inwards.
    let many: [&[u32]; 10] = [
        &[7, 1],
        &[7, 5],
        &[7, 12],
        &[7, 13],
        &[7, 15],
        &[7, 1, 5],
        &[7, 1, 1],
        &[7, 1, 5, 10],
        &[25],
        &[7, 11, 2, 1, 2, 1],
    ];
    for fields in many {
        let (last, outer) = fields.split_last().unwrap();
        let mut inner = Vec::new();
        encode_key(*last, WireType::LengthDelimited, &mut inner);
        inner.push(0);
        let mut inner = inner.repeat((64 << 20) / inner.len());
        for &tag in outer.iter().rev() {
            let mut message = Vec::new();
            encode_key(tag, WireType::LengthDelimited, &mut message);
            encode_varint(inner.len() as u64, &mut message);
            message.extend(&inner);
            inner = message;
        }
        let mut bytes = model().encode_to_vec();
        bytes.extend(inner);
        std::fs::write(&path, &bytes).unwrap();
        let output = offshoot(&["inspect", text(&path)]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{fields:?}: {stderr}");
        assert!(stderr.contains("MB of memory"), "{fields:?}: {stderr}");
    }
}

/// The description of a learngene says what is not so.
#[test]
fn learngenes_that_lie() {
    let folder = tempfile::tempdir().unwrap();
    let (gene, path, out) =
        (folder.path().join("gene.onnx"), folder.path().join("spoiled.onnx"), folder.path().join("out.onnx"));
    let images = root().join("fixtures/fashion-images.idx3-ubyte");
    let made = offshoot(&[
        "condense",
        text(&ancestor()),
        "--images",
        text(&images),
        "--limit",
        "4",
        "--runtime",
        "tract",
        "-o",
        text(&gene),
    ]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let description = Model::open(&gene).unwrap().metadata("offshoot.learngene").unwrap().to_string();
    let spoil = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = serde_json::from_str(&description).unwrap();
        change(&mut value);
        let mut model = Model::open(&gene).unwrap();
        model.set_metadata("offshoot.learngene", value.to_string());
        model.write(&path).unwrap();
        refused(&["grow", text(&path), "--heads", "2", "-o", text(&out)], &["hint: "]);
        assert!(!out.exists());
    };
    spoil(&|v| v["layers"][0][0]["centroid"] = 99.into());
    spoil(&|v| v["layers"][0][0]["members"] = serde_json::json!([0, 1u64 << 40]));
    spoil(&|v| v["layers"] = serde_json::json!([]));
    spoil(&|v| v["ffn_groups"] = serde_json::json!([[0, 77]]));
    spoil(&|v| v["densities"] = serde_json::json!([[1.0]]));
    spoil(&|v| v["neurons"] = serde_json::json!([[{"members": [0, 1, 3], "centroid": 0}]]));
    spoil(&|v| v["neurons"] = serde_json::json!([[{"members": [0, 1], "centroid": 0}]]));
    spoil(&|v| v["removals"] = serde_json::json!({"blocks": [], "layers": [null], "views": 1, "seed": 0}));
}
