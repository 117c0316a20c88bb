//! The ONNX Runtime group: what other tests check on tract, checked on ONNX Runtime as well.
//!
//! The group runs where the shared library is found (`scripts/fetch/onnxruntime.sh`) and says so where it is left out.
//! With `OFFSHOOT_REQUIRE_ONNXRUNTIME=1` a missing library is a failure.

#[path = "embedded/common/mod.rs"]
mod common;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};

use ndarray::{Array1, Array4, ArrayD};
use ndarray_npy::{NpzReader, NpzWriter};
use offshoot::axes::Typing;
use offshoot::onnx::{Model, to_f32};
use offshoot::rounding::{Dtype, convert};
use offshoot::runtime::{Options, Runtime, RuntimeKind};
use offshoot::training::{Loss, Operators, Precision, Recipe, Term, Trainer};

static RUNTIME: LazyLock<Result<Arc<Runtime>, String>> = LazyLock::new(|| {
    Runtime::start(&Options { kind: RuntimeKind::Onnxruntime, ..Options::default() }).map_err(|e| e.to_string())
});

/// Says something that the test harness does not keep to itself.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The runtime, or `None` where the group is left out.
fn runtime() -> Option<&'static Arc<Runtime>> {
    match &*RUNTIME {
        Ok(runtime) => {
            say(&format!("ONNX Runtime group: {}", runtime.describe()));
            Some(runtime)
        }
        Err(why) if std::env::var_os("OFFSHOOT_REQUIRE_ONNXRUNTIME").is_some() => {
            panic!("the ONNX Runtime group was asked for and cannot run: {why}")
        }
        Err(why) => {
            say(&format!("ONNX Runtime group LEFT OUT: {why}"));
            None
        }
    }
}

#[test]
fn surgery_on_every_fixture_equals_its_oracle() {
    if let Some(runtime) = runtime() {
        common::surgery::check_all(runtime);
    }
}

#[test]
fn texts_of_any_length_are_run_rightly() {
    if let Some(runtime) = runtime() {
        common::texts::lengths_are_any(runtime);
        common::texts::a_text_alone_equals_itself_in_a_batch(runtime);
        common::texts::cut_texts_train_like_padded_ones(runtime);
        common::texts::what_sees_padding_is_not_cut(runtime);
        common::surgery::check_texts(runtime);
        common::lengths::children_of_fixed_lengths_are_their_ancestors(runtime);
        common::lengths::longer_children_have_rows_between_those_of_their_ancestors(runtime);
    }
}

#[test]
fn children_of_another_image_size_equal_timms() {
    if let Some(runtime) = runtime() {
        common::image_size::check_all(runtime);
        common::image_size::check_masks_that_hide_nothing(runtime);
    }
}

#[test]
fn data_as_people_hold_them_are_read_rightly() {
    if runtime().is_some() {
        use common::reports::{classes, pictures, tars};
        let checks: [fn(&str); 8] = [
            classes::folders_are_matched_by_name,
            classes::missing_classes_are_named,
            classes::numbers_are_sorted_as_numbers,
            classes::tuned_models_have_the_names_of_their_labels,
            pictures::truncated_files_are_counted,
            pictures::files_are_told_by_their_content,
            pictures::empty_classes_are_errors,
            tars::bare_extensions_come_first,
        ];
        checks.iter().for_each(|check| check("onnxruntime"));
    }
}

#[test]
fn models_as_people_hold_them_are_run_rightly() {
    if let Some(runtime) = runtime() {
        use common::reports::{
            batches, branches, classifiers, inputs, joined, listed, masks, models, ranges, studies, windows,
        };
        let checks: [fn(&str); 13] = [
            inputs::what_needs_other_inputs_is_cut_away,
            classifiers::losses_take_the_logits,
            classifiers::cross_entropy_behind_a_sigmoid_is_refused,
            classifiers::activations_are_found_in_any_form,
            batches::batches_are_of_the_size_asked_for,
            batches::batches_that_are_not_open_are_found,
            studies::batches_that_are_not_open_are_found,
            studies::transforms_beside_the_model_are_read,
            studies::texts_are_samples_of_a_study,
            models::dequantised_weights_get_the_hint,
            models::tensors_of_other_ranks_are_named,
            listed::listed_weights_are_weights,
            ranges::large_neurons_stay_float32,
        ];
        checks.iter().for_each(|check| check("onnxruntime"));
        classifiers::new_classifiers_keep_what_is_behind_them(runtime);
        batches::children_get_an_open_batch(runtime);
        batches::tokens_that_are_repeated_are_opened(runtime);
        batches::open_batches_of_all_exports_are_believed(runtime);
        masks::masks_stay_finite(runtime);
        branches::children_have_their_branches_inlined(runtime);
        joined::every_batch_is_right(runtime);
        windows::children_of_other_sizes_are_right(runtime);
    }
}

#[test]
fn inputs_are_fed_and_outputs_picked() {
    if let Some(runtime) = runtime() {
        use common::reports::feeds;
        feeds::children_keep_what_was_fed(runtime, "onnxruntime");
        feeds::commands_run_with_what_is_fed("onnxruntime");
        feeds::one_output_of_several_counts(runtime, "onnxruntime");
        feeds::inputs_that_decide_shapes_are_fed(runtime, "onnxruntime");
    }
}

#[test]
fn arrays_are_fed_by_name() {
    if let Some(runtime) = runtime() {
        use common::reports::{arrays, learned, meeting, texts};
        arrays::texts_are_condensed("onnxruntime");
        arrays::heads_differ_by_real_tokens(runtime);
        arrays::children_are_verified_on_arrays("onnxruntime");
        learned::texts_are_judged_and_tuned("onnxruntime");
        learned::texts_learn_from_a_teacher("onnxruntime");
        texts::densities_are_those_of_real_tokens("onnxruntime");
        texts::models_are_compared_on_real_tokens("onnxruntime");
        texts::images_may_be_arrays("onnxruntime");
        texts::children_are_fitted_on_real_tokens("onnxruntime");
        texts::padding_changes_no_child("onnxruntime", &common::texts::tried(runtime));
        meeting::samples_that_meet_are_run_one_by_one("onnxruntime", &["placed"]);
        meeting::images_that_meet_are_run_one_by_one("onnxruntime");
    }
}

#[test]
fn texts_are_cut_into_tokens() {
    if let Some(runtime) = runtime() {
        use common::reports::{scored, sentences};
        scored::scores_of_pairs_are_learned("onnxruntime");
        scored::pairs_stay_pairs("onnxruntime");
        sentences::texts_are_the_arrays_of_their_tokens("onnxruntime");
        sentences::a_text_alone_is_itself_in_a_batch(runtime);
        sentences::states_are_pooled_over_real_tokens(runtime);
        sentences::padding_is_on_the_left_where_that_is_the_same("onnxruntime");
    }
}

#[test]
fn surgery_is_right_or_says_what_is_not() {
    if let Some(runtime) = runtime() {
        use common::reports::{blocks, both_towers, heads, shared, stacks, towers, unknown};
        towers::one_tower_changes(runtime);
        both_towers::each_tower_is_that_of_its_own(runtime);
        both_towers::one_command_shrinks_both("onnxruntime");
        stacks::norms_behind_a_stack_stay(runtime);
        unknown::what_is_known_is_resized(runtime);
        stacks::layers_are_those_of_a_stack(runtime);
        blocks::layers_go_whole(runtime);
        blocks::every_ffn_of_a_layer_is_resized(runtime);
        shared::a_block_is_resized_once(runtime);
        heads::heads_that_something_else_takes_are_named(runtime);
        heads::a_last_top_k_is_no_classifier("onnxruntime");
    }
}

#[test]
fn children_are_verified() {
    if let Some(runtime) = runtime() {
        use common::reports::verified;
        verified::faults_are_found(runtime);
        verified::one_run_finds_what_does_not_run(runtime);
        verified::outputs_of_each_head_are_left_out(runtime);
        verified::half_precision_is_run_where_it_is_computed(runtime);
        verified::children_of_every_fixture_pass(runtime);
        let checks: [fn(&str); 4] = [
            verified::children_are_verified,
            verified::what_is_wrong_is_not_written,
            verified::what_is_not_run_is_said,
            verified::children_of_another_size_are_run,
        ];
        checks.iter().for_each(|check| check("onnxruntime"));
    }
}

#[test]
fn images_are_fed_as_the_model_takes_them() {
    if runtime().is_some() {
        use common::reports::{configs, sizes, values};
        let checks: [fn(&str); 8] = [
            configs::transforms_beside_the_model_are_read,
            configs::the_strongest_source_wins,
            configs::what_cannot_be_used_is_named,
            sizes::a_size_that_is_said_is_used,
            values::inputs_are_fed_what_they_declare,
            values::children_take_what_their_ancestor_takes,
            values::colours_come_in_the_order_of_the_flag,
            values::normalising_twice_is_said,
        ];
        checks.iter().for_each(|check| check("onnxruntime"));
    }
}

#[test]
fn training_as_people_start_it_is_right() {
    if runtime().is_some() {
        use common::reports::{constants, starts, teachers};
        let checks: [fn(&str); 11] = [
            starts::the_start_counts,
            starts::a_resumed_run_knows_its_start,
            starts::few_images_are_held_out,
            starts::the_start_decides_the_rate,
            constants::merged_constants_are_trained_apart,
            teachers::teachers_have_their_own_normalisation,
            teachers::teachers_are_known_by_their_folder,
            teachers::teachers_have_their_own_size,
            teachers::teachers_of_other_classes_are_refused,
            teachers::teachers_of_another_order_are_matched_by_name,
            teachers::teachers_of_a_whole_run_get_its_image_size,
        ];
        checks.iter().for_each(|check| check("onnxruntime"));
    }
}

#[test]
fn every_fixture_in_half_precision_says_what_it_said() {
    if let Some(runtime) = runtime() {
        common::precision::check_all(runtime);
    }
}

#[test]
fn every_fixture_in_int8_says_what_its_integers_stand_for() {
    if let Some(runtime) = runtime() {
        common::int8::check_all(runtime);
    }
}

/// ONNX Runtime crashed on a Transpose of the batch in float16 before a product. A file that does not open is not
/// written.
#[test]
fn float16_opens_in_a_plain_session() {
    let Some(runtime) = runtime() else { return };
    let library = runtime.library.as_ref().unwrap().path.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for model in ["torchvision-vit-ts17", "torchvision-vit-dynamo23"] {
        let (ancestor, child) = (format!("fixtures/graphs/{model}.onnx"), folder.path().join(format!("{model}.onnx")));
        let half = ["--no-images", "--no-verify", "--dtype", "fp16", "--onnxruntime", library, "-o"];
        let grown = common::binary::done(&[&["grow", &ancestor][..], &half, &[common::binary::text(&child)]].concat());
        assert!(!String::from_utf8_lossy(&grown.stderr).contains("not checked"));
        common::binary::done(&["doctor", "--opens", common::binary::text(&child), "--onnxruntime", library]);
    }
}

#[test]
fn folded_fixtures_give_the_same_outputs() {
    if let Some(runtime) = runtime() {
        common::image_size::check_folding(runtime);
    }
}

/// Runs a program in the repository's folder and returns what it prints.
fn printed(command: &mut Command) -> Vec<u8> {
    let output = command.current_dir(common::root()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Runs the binary on a runtime and reads the JSON that it prints.
fn json_on(runtime: &str, arguments: &[&str]) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
    let output = printed(command.args(arguments).args(["--runtime", runtime, "--json"]));
    serde_json::from_slice(&output).unwrap()
}

fn json(arguments: &[&str]) -> serde_json::Value {
    json_on("onnxruntime", arguments)
}

/// ONNX Runtime's own builds write an identity and events to the user's cache folder as they start, unless told not to.
#[test]
fn the_library_leaves_nothing_in_the_users_home() {
    if runtime().is_none() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let density =
        ["density", "models/fashion-vit.onnx", "--images", "fixtures/fashion-images.idx3-ubyte", "--limit", "2"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
    command.args(density).args(["--runtime", "onnxruntime"]).current_dir(common::root());
    let output = command.env("HOME", home.path()).env_remove("XDG_CACHE_HOME").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

fn largest_relative_difference(found: &serde_json::Value, golden: &str) -> f64 {
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(common::root().join(golden)).unwrap()).unwrap();
    let flat = |v: &serde_json::Value| -> Vec<f64> {
        v["densities"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|l| l.as_array().unwrap())
            .map(|d| d.as_f64().unwrap())
            .collect()
    };
    let (a, b) = (flat(found), flat(&golden));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max)
}

#[test]
fn densities_of_every_fixture_equal_their_attention_maps() {
    if let Some(runtime) = runtime() {
        common::densities::check_all(runtime);
    }
}

#[test]
fn densities_of_the_bundled_ancestor_equal_an_independent_computation() {
    if runtime().is_none() {
        return;
    }
    let found = json(&[
        "density",
        "models/fashion-vit.onnx",
        "--images",
        "fixtures/fashion-images.idx3-ubyte",
        "--limit",
        "100",
    ]);
    let difference = largest_relative_difference(&found, "fixtures/density/fashion-vit.json");
    assert!(difference < 1e-5, "{difference}");
}

/// The real pretrained model and photographs that `scripts/fetch/models.sh` fetches; `OFFSHOOT_REQUIRE_MODELS=1` makes
/// it a failure that they are missing.
#[test]
fn the_real_model_goes_the_whole_path() {
    let (model, photographs) = (".cache/dinov2-small-saliency.onnx", ".cache/photographs");
    let missing = [model, photographs].iter().any(|p| !common::root().join(p).exists());
    if runtime().is_none() || missing {
        assert!(!missing || std::env::var_os("OFFSHOOT_REQUIRE_MODELS").is_none(), "run scripts/fetch/models.sh");
        say("real model LEFT OUT: it needs ONNX Runtime and scripts/fetch/models.sh");
        return;
    }
    let found = json(&["density", model, "--images", photographs]);
    let difference = largest_relative_difference(&found, "fixtures/density/dinov2-small.json");
    assert!(difference < 1e-3, "densities differ by {difference}");

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (gene, child) = (path("gene.onnx"), path("child.onnx"));
    let condensed = json(&["condense", model, "--images", photographs, "-o", &gene]);
    assert_eq!(condensed["layers"].as_array().unwrap().len(), 12);
    let plan = json(&["grow", &gene, "--layers", "even:6", "--heads", "3", "--verify", "-o", &child]);
    let compared = json(&["compare", model, &child, "--images", photographs, "--limit", "4", "--runs", "3"]);
    assert_eq!(compared["parameters"]["b"], plan["parameters"]);
    for key in ["parameters", "bytes", "macs"] {
        let value = |m: &str| compared[key][m].as_f64().unwrap();
        assert!(value("b") < 0.6 * value("a"), "{key}: {} and {}", value("a"), value("b"));
    }
    // With nothing clustered and nothing left out the child is the ancestor.
    json(&["grow", model, "--no-images", "--heads", "6", "-o", &child, "--force"]);
    let same = json(&[
        "compare",
        model,
        &child,
        "--images",
        photographs,
        "--limit",
        "2",
        "--runs",
        "1",
        "--tolerance",
        "1e-5",
    ]);
    assert!(same["correlation"].as_f64().unwrap() > 0.999999);
}

#[test]
fn half_precision_goes_through_every_command() {
    use offshoot::onnx::DataType;
    if runtime().is_some() {
        common::forms::check(common::forms::Form::Precision(DataType::Float16), "onnxruntime");
        common::forms::check(common::forms::Form::Precision(DataType::Bfloat16), "onnxruntime");
        common::forms::check(common::forms::Form::FixedBatch, "onnxruntime");
    }
}

/// Other people's files: a text recogniser with two attention layers behind a convolutional stem, every weight a
/// Constant node; and a CLIP tower that was quantised, which is refused.
#[test]
fn hybrid_and_quantised_files_of_other_people() {
    let (hybrid, photographs) = (".cache/ppocr-v4-rec.onnx", ".cache/photographs");
    let missing = [hybrid, photographs].iter().any(|p| !common::root().join(p).exists());
    if runtime().is_none() || missing {
        assert!(!missing || std::env::var_os("OFFSHOOT_REQUIRE_MODELS").is_none(), "run scripts/fetch/models.sh");
        say("text recogniser LEFT OUT: it needs ONNX Runtime and scripts/fetch/models.sh");
        return;
    }
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_offshoot")).args(arguments).current_dir(common::root()).output().unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let inspected = printed(Command::new(env!("CARGO_BIN_EXE_offshoot")).args(["inspect", hybrid, "--json"]));
    let inspected: serde_json::Value = serde_json::from_slice(&inspected).unwrap();
    let layers = inspected["layers"].as_array().unwrap();
    assert_eq!(layers.iter().map(|l| l["heads"].as_u64().unwrap()).collect::<Vec<_>>(), [8, 8]);
    let density = run(&["density", hybrid, "--images", photographs]);
    let why = String::from_utf8_lossy(&density.stderr);
    assert_eq!(density.status.code(), Some(2));
    assert!(why.contains("no known place on the image") && why.contains("--no-images"), "{why}");

    let (same, half, step) = (path("same.onnx"), path("half.onnx"), path("step.onnx"));
    json(&["grow", hybrid, "--no-images", "-o", &same]);
    let compare =
        |child: &str| json(&["compare", hybrid, child, "--images", photographs, "--limit", "2", "--runs", "1"]);
    assert!(compare(&same)["relative_error"].as_f64().unwrap() < 1e-5);
    let plan = json(&["grow", hybrid, "--no-images", "--heads", "4", "--ffn-width", "50%", "--verify", "-o", &half]);
    assert_eq!(compare(&half)["parameters"]["b"], plan["parameters"]);
    let tune = |extra: &[&str]| {
        let given = ["tune", &half, "--data", photographs, "--teacher", hybrid];
        let output = run(&[&given[..], extra].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    tune(&["--dry-run"]);
    tune(&["--emit-step", &step]);
    assert!(Path::new(&step).exists());

    // Only where it was fetched: 78 MB.
    let quantised = ".cache/clip-int8.onnx";
    if common::root().join(quantised).exists() {
        let output = run(&["inspect", quantised]);
        let why = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2));
        assert!(why.contains("the model is quantised") && why.contains("hint: "), "{why}");
    }
}

/// Both runtimes give the same densities.
#[test]
fn runtimes_agree() {
    if runtime().is_none() {
        return;
    }
    let arguments = ["density", "models/fashion-vit.onnx", "--images", "fixtures/fashion-png"];
    let a = json(&arguments);
    let b = json_on("tract", &arguments);
    for (x, y) in a["densities"].as_array().unwrap().iter().zip(b["densities"].as_array().unwrap()) {
        for (x, y) in x.as_array().unwrap().iter().zip(y.as_array().unwrap()) {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            assert!((x - y).abs() < 1e-4 * y, "{x} and {y}");
        }
    }
}

#[test]
fn gradients_of_every_fixture_equal_pytorch() {
    let Some(runtime) = runtime() else { return };
    for operators in [Operators::Standard, Operators::Contrib, Operators::Fused] {
        common::gradients::check_all(runtime, operators, &[]);
    }
}

#[test]
fn every_gradient_rule_equals_finite_differences() {
    if let Some(runtime) = runtime() {
        common::rules::check_all(runtime);
    }
}

#[test]
fn gradients_in_half_precision_are_those_in_single_precision() {
    if let Some(runtime) = runtime() {
        common::gradients::check_half(runtime);
    }
}

/// 50 steps of AdamW on every fixture and on the bundled ancestor.
#[test]
fn loss_curves_equal_pytorch() {
    let Some(runtime) = runtime() else { return };
    let entries = common::curves::golden();
    assert_eq!(entries.len(), common::fixtures().len() + 1);
    for (operators, recompute) in
        [(Operators::Standard, false), (Operators::Contrib, true), (Operators::Fused, false), (Operators::Fused, true)]
    {
        let wrong = common::curves::check_all(runtime, &entries, operators, recompute);
        assert!(wrong.is_empty(), "{operators:?}, recompute {recompute}: {wrong:#?}");
    }
}

#[test]
fn parts_of_a_step_are_what_they_are_by_hand() {
    let Some(runtime) = runtime() else { return };
    for operators in [Operators::Contrib, Operators::Fused] {
        common::steps::accumulation(runtime, operators);
        common::steps::updates_by_hand(runtime, operators);
        common::steps::stochastic_depth(runtime, operators);
        common::steps::distillation(runtime, operators);
        common::steps::not_finite(runtime, operators);
    }
}

/// Tens of thousands of steps take no more memory than the first: runtimes and their bindings lose little things at
/// every call.
#[cfg(target_os = "linux")]
#[test]
fn memory_stays_flat_over_thousands_of_steps() {
    if runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log.jsonl");
    let tuned = folder.path().join("tuned.onnx");
    let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
    command.args([
        "tune",
        "fixtures/graphs/timm-vit-fused-ts17.onnx",
        "--data",
        "fixtures/fashion-images.idx3-ubyte",
        "--classes",
        "10",
    ]);
    command.args([
        "--val-split",
        "0",
        "--batch-size",
        "2",
        "--epochs",
        "100000",
        "--runtime",
        "onnxruntime",
        "--threads",
        "1",
    ]);
    command.arg("--metrics").arg(&log).arg("-o").arg(&tuned);
    command.current_dir(common::root()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut resident_after = |steps: usize| -> u64 {
        loop {
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(child.try_wait().unwrap().is_none(), "tune ended before {steps} steps");
            if std::fs::read_to_string(&log).unwrap_or_default().lines().count() >= steps {
                let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
                let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
                return line.split_whitespace().nth(1).unwrap().parse().unwrap();
            }
        }
    };
    let (early, late) = (resident_after(2000), resident_after(20000));
    child.kill().unwrap();
    child.wait().unwrap();
    // A type description lost with every tensor of a fused operator would be 40 kB a step.
    assert!(late < early + 12_000, "{early} kB after 2,000 steps, {late} kB after 20,000");
}

#[test]
fn half_precision_follows_single_precision() {
    if let Some(runtime) = runtime() {
        common::steps::half_precision(runtime);
    }
}

/// For one batch weights are not packed. They may lie at any address and end before the session does.
#[test]
fn a_session_for_few_images_says_what_one_for_many_says() {
    let Some(runtime) = runtime() else { return };
    let mut model = Model::open("models/fashion-vit.onnx").unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    let mut count = 0;
    for tensor in &mut model.graph_mut().initializer {
        let Some(raw) = tensor.raw_data.as_mut().filter(|raw| raw.len() >= 1024) else { continue };
        // Every other one at an address that is no float's.
        let offset = count % 2;
        let mut bytes = vec![0; raw.len() + offset];
        bytes[offset..].copy_from_slice(raw);
        *raw = bytes::Bytes::from(bytes).slice(offset..);
        assert_eq!((raw.as_ptr() as usize).is_multiple_of(4), offset == 0);
        count += 1;
    }
    assert!(count > 20, "{count}");
    let x = Array4::from_shape_fn((3, 1, 28, 28), |(n, _, y, x)| ((n + 3 * y + 5 * x) % 17) as f32 / 17.0);
    let expected = common::surgery::run(runtime, &model, &x).unwrap();
    let mut session = runtime.load_for(3, &model, [28, 28]).unwrap();
    drop(model);
    for _ in 0..2 {
        let found = session.run(x.view()).unwrap();
        assert!(common::surgery::error(&found, &expected) < 1e-5);
    }
}

/// Weights in int8 are packed for one batch, too: without that the library does not round what they meet.
#[test]
fn a_session_for_few_images_rounds_as_one_for_many() {
    let Some(runtime) = runtime() else { return };
    let mut model = Model::open("models/fashion-vit.onnx").unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    let x = Array4::from_shape_fn((3, 1, 28, 28), |(n, _, y, x)| ((n + 3 * y + 5 * x) % 17) as f32 / 17.0);
    let wide = common::surgery::run(runtime, &model, &x).unwrap();
    convert(&mut model, Dtype::Int8).unwrap();
    let many = common::surgery::run(runtime, &model, &x).unwrap();
    let few = runtime.load_for(3, &model, [28, 28]).unwrap().run(x.view()).unwrap();
    assert!(common::surgery::error(&few, &many) < 1e-5);
    assert!(common::surgery::error(&few, &wide) > 1e-3);
}

/// The processor has no kernels for bfloat16, but the library checks the types of a graph before it looks for any.
#[test]
fn steps_of_every_fixture_load_in_half_precision() {
    let Some(runtime) = runtime() else { return };
    let mut wrong = Vec::new();
    for fixture in common::all_fixtures() {
        let model = fixture.open();
        let image = Typing::new(&model).unwrap().image_size();
        let output = model.graph().output[0].name().to_string();
        let loss =
            Loss { terms: vec![(1.0, Term::Imitation { student: output.clone(), teacher: output })], output: None };
        for precision in [Precision::Fp16, Precision::Bf16] {
            let recipe = Recipe { batch: 2, loss: loss.clone(), precision, ..Recipe::default() };
            let said = Trainer::new(runtime, &model, image, &recipe, &[], &[]).err().map(|e| e.to_string());
            let right = match (precision, said.as_deref()) {
                (Precision::Bf16, Some(e)) if model.opset() < 13 => e.contains("has no bfloat16"),
                (Precision::Bf16, Some(e)) => e.contains("Could not find an implementation"),
                (_, said) => said.is_none(),
            };
            if !right {
                wrong.push(format!("{} in {precision:?}: {}", fixture.name(), said.unwrap_or_default()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_same_command_writes_the_same_bytes() {
    if runtime().is_some() {
        common::determinism::same_bytes("onnxruntime");
    }
}

/// A Python that has ONNX Runtime and NumPy: `OFFSHOOT_PYTHON`, or else `python3` where it has them.
fn python() -> Option<OsString> {
    let named = std::env::var_os("OFFSHOOT_PYTHON");
    let python = named.clone().unwrap_or_else(|| "python3".into());
    let found = Command::new(&python).args(["-c", "import numpy, onnxruntime"]).output();
    if found.is_ok_and(|o| o.status.success()) {
        return Some(python);
    }
    assert!(named.is_none(), "OFFSHOOT_PYTHON names {python:?}, which cannot import numpy and onnxruntime");
    say("step graph from Python LEFT OUT: it needs a python3, or OFFSHOOT_PYTHON, with numpy and onnxruntime");
    None
}

/// Compiles the C example with the headers in `ONNXRUNTIME_INCLUDE`. The library gets the names that linker and loader
/// look for.
fn c_example(library: &Path, folder: &Path) -> Option<Command> {
    let include = std::env::var_os("ONNXRUNTIME_INCLUDE").map(PathBuf::from);
    let compiler = Command::new("cc").arg("--version").output();
    let (Some(include), true) = (include, compiler.is_ok_and(|o| o.status.success())) else {
        say("step graph from C LEFT OUT: it needs cc, and the folder of onnxruntime_c_api.h in ONNXRUNTIME_INCLUDE");
        return None;
    };
    #[cfg(unix)]
    for name in ["libonnxruntime.so", "libonnxruntime.so.1"] {
        std::os::unix::fs::symlink(library.canonicalize().unwrap(), folder.join(name)).unwrap();
    }
    let program = folder.join("train_step");
    let mut compile = Command::new("cc");
    compile.args(["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-I"]).arg(include);
    compile.args(["docs/examples/train_step.c", "-o"]).arg(&program);
    printed(compile.arg("-L").arg(folder).args(["-lonnxruntime", "-lm"]));
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", folder);
    Some(command)
}

/// The losses in the JSON lines that a run printed.
fn losses(lines: &[u8]) -> Vec<f64> {
    let lines = std::str::from_utf8(lines).unwrap().lines();
    lines.map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["loss"].as_f64().unwrap()).collect()
}

#[track_caller]
fn same_losses(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() < 1e-4 * b.abs(), "{found:?} and {expected:?}");
    }
}

/// The examples of docs/examples, without Offshoot, make the updates that `tune` makes.
#[test]
fn the_step_graph_trains_from_python_and_c() {
    let Some(runtime) = runtime() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (data, step, tuned, log) = (path("data.npz"), path("step.onnx"), path("tuned.onnx"), path("log.jsonl"));
    let mut writer = NpzWriter::new(std::fs::File::create(&data).unwrap());
    let x = Array4::from_shape_fn((40, 1, 28, 28), |(n, _, i, j)| ((n * 5 + i * 3 + j * 7) % 11) as f32 / 5.0 - 1.0);
    writer.add_array("x", &x).unwrap();
    writer.add_array("y", &Array1::from_shape_fn(40, |n| n as i64 * 3 % 10)).unwrap();
    writer.finish().unwrap();
    let tune = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.args([
            "tune",
            "models/fashion-vit.onnx",
            "--data",
            &data,
            "--batch-size",
            "8",
            "--label-smoothing",
            "0",
        ]);
        printed(command.args(["--val-split", "0", "--runtime", "onnxruntime"]).args(more));
    };
    tune(&["--emit-step", &step]);

    let python = python();
    let from_python = |more: &[&str]| {
        let mut command = Command::new(python.as_ref()?);
        command.args(["docs/examples/train_step.py", &step, "--steps", "5", "--lr", "1e-3"]);
        Some(losses(&printed(command.args(more))))
    };
    if let Some(found) = from_python(&["--data", &data, "-o", &path("trained.npz")]) {
        let matched = ["--no-shuffle", "--augment", "none", "--schedule", "constant", "--warmup", "0", "--lr", "1e-3"];
        tune(&[&matched[..], &["--epochs", "1", "--metrics", &log, "-o", &tuned]].concat());
        let expected = losses(&std::fs::read(&log).unwrap());
        assert_eq!(expected.len(), 5);
        same_losses(&found, &expected);
        let mut trained = NpzReader::new(std::fs::File::open(path("trained.npz")).unwrap()).unwrap();
        let trained: ArrayD<f32> = trained.by_name("head.weight").unwrap();
        let tuned = Model::open(&tuned).unwrap();
        let tuned = tuned.graph().initializer.iter().find(|t| t.name() == "head.weight").unwrap();
        let tuned = to_f32(tuned).unwrap();
        assert_eq!(trained.len(), tuned.len());
        let largest = trained.iter().zip(&tuned).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest < 1e-5, "weights differ by {largest}");
    }

    if let Some(mut command) = c_example(&runtime.library.as_ref().unwrap().path, folder.path()) {
        let found = losses(&printed(command.args([step.as_str(), "5", "1e-3"])));
        assert_eq!(found.len(), 5);
        assert!(found.iter().all(|l| l.is_finite()) && found.windows(2).all(|w| w[1] < w[0]), "{found:?}");
        if let Some(expected) = from_python(&["--pseudo-random"]) {
            same_losses(&found, &expected);
        }
    }
}
