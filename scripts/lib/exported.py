# /// script
# requires-python = ">=3.10"
# dependencies = ["onnx==1.23.2"]
# ///
"""Takes out of an exported model what the exporter notes of the Python code: nine tenths of a small file."""

import onnx


def strip(path, everywhere=False):
    """Strips the model and its nodes, and `everywhere` all that is named in the graph, too."""
    model = onnx.load(path)
    graph = model.graph
    more = [graph, *graph.value_info, *graph.input, *graph.output, *graph.initializer] if everywhere else []
    for part in [model, *graph.node, *more]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)
