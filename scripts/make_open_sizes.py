"""Makes fixtures/reports/sizes: small models of random weights whose graphs leave the image size open.

    python3 scripts/make_open_sizes.py        needs torch, transformers, onnx and onnx_ir (made with torch 2.15, transformers 5.24)

dinov3-open.onnx         DINOv3 for 64 pixels, patches of 8, four register tokens, by PyTorch's exporter; no table has a size
dinov2-hf-exporter.onnx  DINOv2 for 32 pixels, patches of 8, by transformers' own exporter: open input, positions of one size
beit-hf-exporter.onnx    BEiT for 112 pixels, patches of 16, by the same: its bias tables hold offsets between 7 x 7 patches
"""

import pathlib

import onnx
import onnx_ir
import torch
import transformers
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "fixtures/reports/sizes"
SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)


class Hidden(torch.nn.Module):
    """The last hidden state alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixel_values=pixels).last_hidden_state


def by_transformers(model, side, name):
    """Exports a model whose input stays open, with images of one size as the example."""
    images = {"pixel_values": torch.rand(2, 3, side, side)}
    exported = OnnxExporter().export(model, images, config=OnnxConfig(dynamic=True))
    onnx_ir.save(exported.program, FOLDER / name)


def strip(path):
    """Takes out what the exporter notes of the Python code: nine tenths of a small file."""
    model = onnx.load(path)
    graph = model.graph
    for part in [model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(**SMALL, intermediate_size=16, image_size=64, patch_size=8, num_register_tokens=4)
    model = Hidden(transformers.DINOv3ViTModel(config)).eval()
    auto = torch.export.Dim.AUTO
    torch.onnx.export(
        model, (torch.rand(2, 3, 64, 64),), FOLDER / "dinov3-open.onnx", dynamo=True, external_data=False, input_names=["x"],
        output_names=["y"], dynamic_shapes=({0: torch.export.Dim("b"), 2: auto, 3: auto},),
    )
    model = transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, mlp_ratio=1, image_size=32, patch_size=8)).eval()
    by_transformers(model, 32, "dinov2-hf-exporter.onnx")
    config = transformers.BeitConfig(
        **SMALL, intermediate_size=16, image_size=112, patch_size=16, num_labels=2, use_relative_position_bias=True
    )
    by_transformers(transformers.BeitForImageClassification(config).eval(), 112, "beit-hf-exporter.onnx")
    for path in FOLDER.glob("*.onnx"):
        strip(path)
