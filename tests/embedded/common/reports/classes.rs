//! Class folders against the model's own names: pictures of one class were counted, and printed, as those of another.

use std::fs;
use std::path::Path;

use offshoot::onnx::Model;
use serde_json::{Value, json};

use super::fashion::{self, ANCESTOR, NAMES};
use crate::common::binary::{done, json, offshoot, refused, text};
use crate::common::root;

const CLASSES: &str = "offshoot.classes";

/// What `eval` prints of a data set.
fn evaluated(runtime: &str, model: &str, data: &Path) -> Value {
    json(&["eval", model, "--data", text(data), "--runtime", runtime, "--json"])
}

fn stderr(arguments: &[&str]) -> String {
    String::from_utf8(offshoot(arguments).stderr).unwrap()
}

fn names_of(model: &Path) -> Option<Vec<String>> {
    Model::open(model).unwrap().metadata(CLASSES).map(|names| serde_json::from_str(names).unwrap())
}

/// Folders named like the classes are these, in any spelling, and some of the classes are enough. IDX files, whose
/// labels are numbers, are what they are compared with.
pub fn folders_are_matched_by_name(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let spelt = |class: u8| match NAMES[usize::from(class)] {
        // A slash cannot be in the name of a folder.
        "T-shirt/top" => "t_shirt_top".to_owned(),
        name => name.to_owned(),
    };
    for classes in [&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9][..], &[8, 3, 0]] {
        let data = folder.path().join(format!("folders-{}", classes.len()));
        classes.iter().for_each(|&class| fashion::folder(&data.join(spelt(class)), class, 4));
        let found = evaluated(runtime, ANCESTOR, &data);
        let expected = evaluated(runtime, ANCESTOR, &fashion::idx(folder.path(), classes, 4));
        assert!(expected["top1"].as_f64().unwrap() > 0.7);
        for key in ["top1", "top5", "loss", "images"] {
            let close = (found[key].as_f64().unwrap() - expected[key].as_f64().unwrap()).abs() < 1e-6;
            assert!(close, "{key}: {} for {}", found[key], expected[key]);
        }
        assert_eq!(found["classes"], expected["classes"]);
        assert_eq!((&found["classes_by"], &expected["classes_by"]), (&json!("names"), &json!("labels")));
        assert_eq!(found["notes"], json!([]));
    }
    // Names that the model has in another order.
    let renamed = folder.path().join("renamed.onnx");
    let mut names = NAMES.map(|name| name.replace('/', "-"));
    names.swap(1, 8);
    fashion::with_metadata(root().join(ANCESTOR), CLASSES, Some(&json!(names).to_string()), &renamed);
    let data = folder.path().join("two");
    fashion::folder(&data.join("Bag"), 1, 5);
    fashion::folder(&data.join("Trouser"), 8, 5);
    let found = evaluated(runtime, text(&renamed), &data);
    assert_eq!((&found["classes"][1]["name"], &found["classes"][1]["images"]), (&json!("Bag"), &json!(5)));
    assert!(found["top1"].as_f64().unwrap() > 0.7, "{found}");
}

/// What the model does not have is named, and the hint names no flag that `eval` lacks.
pub fn missing_classes_are_named(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    ["Bag", "Hat", "Coat"].iter().zip(0..).for_each(|(name, class)| fashion::folder(&data.join(name), class, 1));
    let arguments = ["eval", ANCESTOR, "--data", text(&data), "--runtime", runtime];
    refused(&arguments, &["class named `Hat`;", "`Coat` and 5 more", "hint: ", "`offshoot tune --classes 3`"]);
    let training = ["tune", ANCESTOR, "--data", text(&data), "--batch-size", "2", "--runtime", runtime];
    let output = folder.path().join("tuned.onnx");
    refused(&[&training[..], &["-o", text(&output)]].concat(), &["`Hat`"]);

    let unnamed = folder.path().join("unnamed.onnx");
    fashion::with_metadata(root().join(ANCESTOR), CLASSES, None, &unnamed);
    refused(
        &["eval", text(&unnamed), "--data", text(&data), "--runtime", runtime],
        &["3 classes", "tells 10 apart", "`offshoot tune --classes 3`"],
    );

    // Names of which the model has none: their order is all that there is, and that is said.
    fs::rename(data.join("Bag"), data.join("Cap")).unwrap();
    fs::rename(data.join("Coat"), data.join("Wig")).unwrap();
    let three = folder.path().join("three.onnx");
    done(&["grow", ANCESTOR, "--no-images", "--classes", "3", "-o", text(&three)]);
    assert_eq!(names_of(&three), None, "names of a classifier that is gone");
    let named = folder.path().join("named.onnx");
    fashion::with_metadata(&three, CLASSES, Some(r#"["zebra", "apple", "mango"]"#), &named);
    let found = evaluated(runtime, text(&named), &data);
    assert_eq!(found["classes_by"], "order");
    assert!(found["notes"][0].as_str().unwrap().contains("`Cap` for `zebra`"), "{found}");
    assert_eq!(found["classes"][0]["name"], "Cap");
    assert!(stderr(&["eval", text(&named), "--data", text(&data), "--runtime", runtime]).contains("`Cap` for `zebra`"));
}

/// Folders 0 to 11: index 2 is folder 2, not 10. Some of the numbers are indices.
pub fn numbers_are_sorted_as_numbers(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let twelve = folder.path().join("twelve.onnx");
    done(&["grow", ANCESTOR, "--no-images", "--classes", "12", "-o", text(&twelve)]);
    let data = folder.path().join("data");
    (0..12).for_each(|number: u8| fashion::folder(&data.join(number.to_string()), 0, usize::from(number) + 1));
    let found = evaluated(runtime, text(&twelve), &data);
    let counts: Vec<u64> = (0..12).map(|class| found["classes"][class]["images"].as_u64().unwrap()).collect();
    assert_eq!(counts, (1..13).collect::<Vec<u64>>());
    assert_eq!(found["classes"][2]["name"], "2");
    assert!(found["notes"][0].as_str().unwrap().contains("sorted as numbers"), "{found}");

    for number in [0, 1, 2, 4, 5, 6, 7, 8, 9, 10] {
        fs::remove_dir_all(data.join(number.to_string())).unwrap();
    }
    let found = evaluated(runtime, text(&twelve), &data);
    let counts: Vec<u64> = (0..12).map(|class| found["classes"][class]["images"].as_u64().unwrap()).collect();
    assert_eq!(counts, [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 12]);
    assert_eq!(found["classes_by"], "numbers");
    assert!(found["notes"].to_string().contains("`3` is the output of that number"), "{found}");
    // The same for a model with names that are no numbers.
    fs::remove_dir_all(data.join("11")).unwrap();
    let found = evaluated(runtime, ANCESTOR, &data);
    assert_eq!((&found["classes"][3]["images"], &found["classes"][3]["name"]), (&json!(4), &json!("Dress")));
    assert!(found["notes"][0].as_str().unwrap().contains("`3` is `Dress`"), "{found}");
}

/// `tune` leaves the names in the order of the labels that it trained with, and validates in the same.
pub fn tuned_models_have_the_names_of_their_labels(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let [data, validation] = ["data", "validation"].map(path);
    for (name, class) in [("zebra", 0), ("apple", 7), ("mango", 8)] {
        fashion::folder(&data.join(name), class, 8);
    }
    fashion::folder(&validation.join("mango"), 8, 4);
    fashion::folder(&validation.join("zebra"), 0, 4);
    let child = path("child.onnx");
    done(&["grow", ANCESTOR, "--no-images", "--layers", "even:2", "--classes", "3", "-o", text(&child)]);
    // A model without names gets those of the folders, and one with names keeps its own order.
    let named = path("named.onnx");
    fashion::with_metadata(&child, CLASSES, Some(r#"["zebra", "apple", "mango"]"#), &named);
    for (model, expected) in [(&child, ["apple", "mango", "zebra"]), (&named, ["zebra", "apple", "mango"])] {
        let tuned = path("tuned.onnx");
        let flags = ["--epochs", "12", "--batch-size", "8", "--lr", "3e-3", "--augment", "none", "--runtime", runtime];
        let command = ["tune", text(model), "--data", text(&data), "--val", text(&validation), "--json", "--force"];
        let report = json(&[&command[..], &["-o", text(&tuned)], &flags].concat());
        assert_eq!(names_of(&tuned).unwrap(), expected);
        // Shirts, sneakers and bags are soon told apart, unless labels of training and validation differ.
        let best = report["best"]["val_top1"].as_f64().unwrap();
        assert!(best > 0.8, "{report}");
        let found = evaluated(runtime, text(&tuned), &validation);
        assert_eq!(found["top1"].as_f64().unwrap(), best);
        assert_eq!(found["classes_by"], "names");
    }
}
