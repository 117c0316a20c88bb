//! Other image sizes, on the embedded runtime.

use offshoot::axes::Typing;
use offshoot::error::ErrorKind;
use offshoot::graph::{data_inputs, declared_dims};
use offshoot::metadata::IMAGE_SIZE;
use offshoot::onnx::{data_type, tensor_from_f32, to_f32};

use crate::common::image_size::{at_size, image, open};
use crate::common::{surgery, tract};

#[test]
fn children_of_another_image_size_equal_timms() {
    let runtime = tract();
    crate::common::image_size::check_all(&runtime);
}

#[test]
fn masks_that_hide_nothing_hide_nothing_at_any_size() {
    let runtime = tract();
    crate::common::image_size::check_masks_that_hide_nothing(&runtime);
}

#[test]
fn folded_fixtures_give_the_same_outputs() {
    let runtime = tract();
    crate::common::image_size::check_folding(&runtime);
}

#[test]
fn a_model_that_takes_any_size_goes_on_doing_so() {
    let runtime = tract();
    for graph in ["graphs/hf-vit-dynamic-size-ts17.onnx", "graphs/hf-vit-dynamic-size-dynamo18.onnx"] {
        let model = open(graph);
        let child = at_size(&model, [24, 20]).unwrap();
        let declared = declared_dims(data_inputs(child.graph())[0]).unwrap();
        assert_eq!(declared[2..], [None, None], "{graph}");
        assert_eq!(child.metadata(IMAGE_SIZE), Some("24x20"));
        assert_eq!(Typing::new(&child).unwrap().image_size(), [24, 20]);
        for size in [[24, 20], [16, 16]] {
            let [a, b] = [&model, &child].map(|m| surgery::run(&runtime, m, &image(size)).unwrap());
            assert!(surgery::error(&b, &a) < 1e-6, "{graph} at {size:?}");
        }
    }
}

#[test]
fn sizes_that_fit_no_grid_are_refused() {
    let refused = |graph: &str, size: [usize; 2], says: &str, hint: &str| {
        let error = at_size(&open(graph), size).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(error.hint_text().unwrap_or_default().contains(hint), "{:?}", error.hint_text());
    };
    refused("graphs/timm-vit-unfused-ts17.onnx", [18, 16], "no multiple of the patch of 4", "a multiple of 4");
    refused("graphs/timm-swin-ts17.onnx", [40, 32], "10 elements cannot be made of parts", "windows");
    // In pixels, the nearest on either side.
    refused("graphs/timm-vit-unfused-ts17.onnx", [18, 16], "", "such as 16 or 20x16 pixels");
    refused("graphs/timm-vit-unfused-ts17.onnx", [18, 30], "", "such as 16x28 or 20x32 pixels");
    refused("graphs/timm-swin-ts17.onnx", [40, 32], "", "such as 32 or 48x32 pixels");
    refused("graphs/timm-vit-unfused-ts17.onnx", [0, 16], "cannot be", "");
}

#[test]
fn a_table_of_unknown_origin_is_refused() {
    let mut model = open("graphs/timm-beit-ts13.onnx");
    let table = model.graph_mut().initializer.iter_mut().find(|t| t.dims == [1, 4, 17, 17]).unwrap();
    let mut elements = to_f32(table).unwrap();
    // One pair of patches no longer has the bias of its offset.
    elements[5 * 17 + 9] += 1.0;
    *table = tensor_from_f32(table.name().to_string(), data_type(table).unwrap(), &[1, 4, 17, 17], &elements);
    let name = table.name().to_string();
    let error = at_size(&model, [24, 24]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains(&name) && error.to_string().contains("not understood"), "{error}");
    assert!(error.hint_text().unwrap().contains("export the model for the new size"));
}
