# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "onnx==1.23.2", "torch==2.15.0"]
# ///
"""An ONNX graph as a PyTorch function in double precision, so that autograd gives the gradient of every weight that the graph holds.

Exporters fold batch norms into convolutions, gather tables into place and multiply constants together: then no parameter of the exporting
model is a weight of the graph any more, and its gradients say nothing exact. Here the graph's own floating point initializers and
`Constant` nodes are the leaves. Operators on values that depend on data or on a weight run in PyTorch; shape arithmetic on integers runs in
the reference evaluator of `onnx`. Nothing here is shared with Offshoot: it is an independent source of gradients.
"""

import math

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

TYPES = {onnx.TensorProto.FLOAT: torch.float64, onnx.TensorProto.DOUBLE: torch.float64, onnx.TensorProto.FLOAT16: torch.float64,
         onnx.TensorProto.INT64: torch.int64, onnx.TensorProto.INT32: torch.int32, onnx.TensorProto.BOOL: torch.bool}


def ints(t):
    return None if t is None else [int(v) for v in t.reshape(-1)]


def attributes(node):
    """An attribute's tensor stays a TensorProto, strings become text."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def padded(x, a, rank, value=0.0):
    """`x` with the padding of a convolution or a pool, which may differ between the two ends of an axis."""
    pads = a.get("pads", [0] * 2 * rank)
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        sizes, strides, dilations = x.shape[2:], a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
        total = [max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n) for n, s, k, d in zip(sizes, strides, a["kernel_shape"], dilations)]
        low = [t // 2 for t in total] if a["auto_pad"] == "SAME_UPPER" else [t - t // 2 for t in total]
        pads = low + [t - l for t, l in zip(total, low)]
    flat = [p for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])]
    return F.pad(x, flat, value=value) if any(flat) else x


def conv(a, x, w, b=None):
    rank = w.ndim - 2
    a = {"kernel_shape": list(w.shape[2:]), **a}
    function = [F.conv1d, F.conv2d, F.conv3d][rank - 1]
    return function(padded(x, a, rank), w, b, stride=a.get("strides", 1), dilation=a.get("dilations", 1), groups=a.get("group", 1))


def conv_transpose(a, x, w, b=None):
    rank = w.ndim - 2
    pads = a.get("pads", [0] * 2 * rank)
    assert pads[:rank] == pads[rank:] and "output_shape" not in a
    function = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d][rank - 1]
    return function(x, w, b, stride=a.get("strides", 1), padding=pads[:rank], output_padding=a.get("output_padding", 0), groups=a.get("group", 1), dilation=a.get("dilations", 1))


def max_pool(a, x):
    rank = len(a["kernel_shape"])
    assert not a.get("ceil_mode")
    return F.max_pool2d(padded(x, a, rank, -math.inf), a["kernel_shape"], a.get("strides", [1] * rank), dilation=a.get("dilations", 1))


def average_pool(a, x):
    rank, kernel = len(a["kernel_shape"]), a["kernel_shape"]
    pads, strides = a.get("pads", [0] * 2 * rank), a.get("strides", [1] * rank)
    ceil = bool(a.get("ceil_mode"))
    if pads[:rank] == pads[rank:]:
        return F.avg_pool2d(x, kernel, strides, pads[:rank], ceil, bool(a.get("count_include_pad")))
    assert not ceil
    ones = torch.ones_like(x) if not a.get("count_include_pad") else None
    mean = F.avg_pool2d(padded(x, a, rank), kernel, strides)
    return mean if ones is None else mean / F.avg_pool2d(padded(ones, a, rank), kernel, strides)


def batch_norm(a, x, scale, bias, mean, variance):
    shape = [1, -1] + [1] * (x.ndim - 2)
    if a.get("training_mode"):
        axes = [k for k in range(x.ndim) if k != 1]
        mean, variance = x.mean(axes), x.var(axes, unbiased=False)
    return (x - mean.view(shape)) / torch.sqrt(variance.view(shape) + a.get("epsilon", 1e-5)) * scale.view(shape) + bias.view(shape)


def layer_norm(a, x, scale, bias=None):
    axis = a.get("axis", -1) % x.ndim
    return F.layer_norm(x, x.shape[axis:], scale, bias, a.get("epsilon", 1e-5))


def rms_norm(a, x, scale):
    axes = list(range(a.get("axis", -1) % x.ndim, x.ndim))
    return x / torch.sqrt((x * x).mean(axes, keepdim=True) + a.get("epsilon", 1e-5)) * scale


def instance_norm(a, x, scale, bias):
    return F.instance_norm(x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5))


def group_norm(a, x, scale, bias):
    return F.group_norm(x, a["num_groups"], scale, bias, a.get("epsilon", 1e-5))


def gemm(a, x, w, b=None):
    x, w = x.T if a.get("transA") else x, w.T if a.get("transB") else w
    y = a.get("alpha", 1.0) * (x @ w)
    return y if b is None else y + a.get("beta", 1.0) * b


def reshape(a, x, shape):
    shape = [x.shape[k] if n == 0 and not a.get("allowzero") else n for k, n in enumerate(ints(shape))]
    return x.reshape(shape)


def expand(a, x, shape):
    return x.expand(torch.broadcast_shapes(x.shape, ints(shape)))


def slices(a, x, starts, ends, axes=None, steps=None):
    axes = ints(axes) if axes is not None else range(len(starts))
    steps = ints(steps) if steps is not None else [1] * len(starts)
    for start, end, axis, step in zip(ints(starts), ints(ends), axes, steps):
        places = range(*slice(start, end, step).indices(x.shape[axis])) if step > 0 or end > -(2**31) else range(x.shape[axis])[start::step]
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def split(a, x, sizes=None):
    axis = a.get("axis", 0)
    if sizes is None and "split" not in a:
        n = a["num_outputs"] if "num_outputs" in a else a["outputs"]
        return x.split(math.ceil(x.shape[axis] / n), axis)
    return x.split(ints(sizes) if sizes is not None else a["split"], axis)


def axes_of(a, axes, x):
    axes = ints(axes) if axes is not None else a.get("axes")
    return list(range(x.ndim)) if axes is None else [k % x.ndim for k in axes]


def reduce(function):
    def run(a, x, axes=None):
        if axes is None and "axes" not in a and a.get("noop_with_empty_axes"):
            return x
        return function(x, axes_of(a, axes, x), bool(a.get("keepdims", 1)))
    return run


def squeeze(a, x, axes=None):
    axes = ints(axes) if axes is not None else a.get("axes")
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def unsqueeze(a, x, axes=None):
    axes = ints(axes) if axes is not None else a["axes"]
    rank = x.ndim + len(axes)
    for axis in sorted(k % rank for k in axes):
        x = x.unsqueeze(axis)
    return x


def gather(a, x, indices):
    axis = a.get("axis", 0) % x.ndim
    n = x.shape[axis]
    flat = torch.where(indices < 0, indices + n, indices).reshape(-1).long()
    return x.index_select(axis, flat).reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1:])


def gather_nd(a, x, indices):
    assert not a.get("batch_dims")
    return x[tuple(indices.long().unbind(-1))]


def gather_elements(a, x, indices):
    axis = a.get("axis", 0)
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())


def scatter_nd(a, x, indices, updates):
    assert a.get("reduction", "none") == "none"
    return x.index_put(tuple(indices.long().unbind(-1)), updates)


def scatter_elements(a, x, indices, updates):
    axis = a.get("axis", 0)
    indices = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    if a.get("reduction", "none") == "add":
        return x.scatter_add(axis, indices, updates)
    assert a.get("reduction", "none") == "none"
    return x.scatter(axis, indices, updates)


def pad(a, x, pads=None, value=None, axes=None):
    pads = ints(pads) if pads is not None else a["pads"]
    axes = [k % x.ndim for k in ints(axes)] if axes is not None else list(range(x.ndim))
    ends = {k: (pads[i], pads[i + len(axes)]) for i, k in enumerate(axes)}
    mode = a.get("mode", "constant")
    for k, (low, high) in ends.items():
        if not low and not high:
            continue
        if mode == "constant":
            flat = [0, 0] * (x.ndim - 1 - k) + [low, high]
            x = F.pad(x, flat, value=value.item() if value is not None else 0.0)
        else:
            n = x.shape[k]
            wrap = {"edge": lambda i: min(max(i, 0), n - 1), "reflect": lambda i: n - 1 - abs(n - 1 - abs(i)), "wrap": lambda i: i % n}[mode]
            x = x.index_select(k, torch.tensor([wrap(i) for i in range(-low, n + high)]))
    return x


def resize(a, x, _roi=None, scales=None, sizes=None):
    """Any resizing is linear in each axis by itself: its matrix is what the reference evaluator makes of the axis's unit vectors."""
    target = ints(sizes) if sizes is not None else None
    assert "axes" not in a and a.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    for axis in range(x.ndim):
        n = x.shape[axis]
        factor = None if scales is None or not len(scales) else scales.reshape(-1)[axis].item()
        m = target[axis] if target else math.floor(n * factor)
        if m == n and (factor is None or factor == 1):
            continue
        size = [np.array([n, m], np.int64)] if target else [np.array([1, factor], np.float32)]
        names = ["x", "", "", "s"] if target else ["x", "", "s"]
        node = helper.make_node("Resize", names, ["y"], **{k: v for k, v in a.items() if k != "outputs"})
        matrix = reference(node, 18, [np.eye(n), *size])[0]
        x = torch.tensordot(x, torch.from_numpy(np.ascontiguousarray(matrix)).double(), ([axis], [0])).movedim(-1, axis)
    return x


def col2im(a, x, image, block):
    rank = len(ints(image))
    pads = a.get("pads", [0] * 2 * rank)
    assert pads[:rank] == pads[rank:]
    return F.fold(x, ints(image), ints(block), dilation=a.get("dilations", 1), padding=pads[:rank], stride=a.get("strides", 1))


def where(a, condition, x, y):
    return torch.where(condition, x, y)


def gelu(a, x):
    return F.gelu(x, approximate=a.get("approximate", "none"))


def clip(a, x, low=None, high=None):
    low = low if low is not None else torch.tensor(a.get("min", -math.inf), dtype=x.dtype)
    high = high if high is not None else torch.tensor(a.get("max", math.inf), dtype=x.dtype)
    return torch.minimum(torch.maximum(x, low.to(x.dtype)), high.to(x.dtype))


def flatten(a, x):
    axis = a.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def softmax(a, x):
    return torch.softmax(x, a.get("axis", -1))


def product(a, x, y):
    return x @ y


def divide(a, x, y):
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def attention(a, q, k, v, mask=None):
    """`ai.onnx` Attention of four axes, without a cache."""
    assert q.ndim == 4 and not a.get("softcap") and not a.get("is_causal")
    k, v = [t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v)]
    return F.scaled_dot_product_attention(q, k, v, mask, scale=a.get("scale"))


def elementwise(function):
    return lambda a, *x: function(*x)


OPERATORS = {
    "Conv": conv, "ConvTranspose": conv_transpose, "MaxPool": max_pool, "AveragePool": average_pool, "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm, "RMSNormalization": rms_norm, "InstanceNormalization": instance_norm, "GroupNormalization": group_norm,
    "Gemm": gemm, "MatMul": product, "Reshape": reshape, "Expand": expand, "Slice": slices, "Split": split, "Squeeze": squeeze, "Unsqueeze": unsqueeze,
    "Gather": gather, "GatherND": gather_nd, "GatherElements": gather_elements, "ScatterND": scatter_nd, "ScatterElements": scatter_elements,
    "Pad": pad, "Resize": resize, "Col2Im": col2im, "Where": where, "Gelu": gelu, "Clip": clip, "Flatten": flatten, "Softmax": softmax, "Div": divide,
    "Attention": attention,
    "Identity": elementwise(lambda x: x), "Add": elementwise(torch.add), "Sub": elementwise(torch.sub), "Mul": elementwise(torch.mul),
    "Neg": elementwise(torch.neg), "Reciprocal": elementwise(torch.reciprocal), "Sqrt": elementwise(torch.sqrt), "Exp": elementwise(torch.exp),
    "Log": elementwise(torch.log), "Abs": elementwise(torch.abs), "Erf": elementwise(torch.erf), "Tanh": elementwise(torch.tanh), "Sigmoid": elementwise(torch.sigmoid),
    "Relu": elementwise(torch.relu), "HardSwish": elementwise(F.hardswish), "Softplus": elementwise(F.softplus), "Sin": elementwise(torch.sin), "Cos": elementwise(torch.cos),
    "Ceil": elementwise(torch.ceil), "Floor": elementwise(torch.floor), "Pow": elementwise(torch.pow), "Max": elementwise(torch.maximum), "Min": elementwise(torch.minimum),
    "Equal": elementwise(torch.eq), "Greater": elementwise(torch.gt), "Less": elementwise(torch.lt), "Not": elementwise(torch.logical_not), "IsNaN": elementwise(torch.isnan),
    "GreaterOrEqual": elementwise(torch.ge), "LessOrEqual": elementwise(torch.le), "And": elementwise(torch.logical_and), "Or": elementwise(torch.logical_or),
    "HardSigmoid": lambda a, x: torch.clamp(x * a.get("alpha", 0.2) + a.get("beta", 0.5), 0, 1),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Transpose": lambda a, x: x.permute(a.get("perm", list(reversed(range(x.ndim))))),
    "Concat": lambda a, *x: torch.cat([v.double() if any(w.is_floating_point() for w in x) else v for v in x], a["axis"]),
    "Cast": lambda a, x: x.to(TYPES[a["to"]]),
    "Tile": lambda a, x, repeats: x.repeat(ints(repeats)),
    "Einsum": lambda a, *x: torch.einsum(a["equation"], *x),
    "Shape": lambda a, x: torch.tensor(list(x.shape)[slice(a.get("start", 0), a.get("end"))], dtype=torch.int64),
    "Size": lambda a, x: torch.tensor(x.numel(), dtype=torch.int64),
    "GlobalAveragePool": lambda a, x: x.mean(list(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda a, x: x.amax(list(range(2, x.ndim)), keepdim=True),
    "ReduceMean": reduce(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceSum": reduce(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceMax": reduce(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceL2": reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
}


def reference(node, opset, values):
    """What `onnx` itself makes of one node."""
    model = helper.make_model(helper.make_graph([node], "node", [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                              for n, v in zip([i for i in node.input if i], values)], [helper.make_empty_tensor_value_info(o) for o in node.output if o]),
                              opset_imports=[helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model).run(None, dict(zip([i for i in node.input if i], values)))


def run(model, feeds):
    """The outputs of a graph and its leaves: every floating point weight by name."""
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    values, leaves = {"": None}, {}

    def tensor(name, proto):
        array = numpy_helper.to_array(proto)
        value = torch.from_numpy(np.array(array))
        if value.is_floating_point():
            value = leaves[name] = value.double().requires_grad_(True)
        values[name] = value
    for t in model.graph.initializer:
        tensor(t.name, t)
    for name, array in feeds.items():
        values[name] = torch.from_numpy(array).double()
    for node in model.graph.node:
        a = attributes(node)
        inputs = [values[i] for i in node.input]
        if node.op_type == "Constant":
            proto = a.get("value")
            if proto is None:
                proto = numpy_helper.from_array(np.array(next(iter(a.values()))))
            tensor(node.output[0], proto)
            continue
        function = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if function is None:
            known = [v.detach().numpy() for v in inputs if v is not None]
            known = [v.astype(np.float32) if v.dtype == np.float64 else v for v in known]
            if any(v.requires_grad and v.numel() > 1 for v in inputs if v is not None):
                raise NotImplementedError(f"no gradient of {node.op_type}")
            results = [torch.from_numpy(np.array(r)) for r in reference(node, opset, known)]
            results = [r.double() if r.is_floating_point() else r for r in results]
        else:
            if node.op_type == "Split":
                a["outputs"] = len(node.output)
            result = function(a, *inputs)
            results = result if isinstance(result, (tuple, list)) else [result]
        values.update(zip(node.output, results))
    return [values[o.name] for o in model.graph.output], leaves


def gradients(model, images, labels):
    """The mean cross-entropy of the first output, and its gradient for every floating point weight of the graph."""
    (logits, *_), leaves = run(model, {model.graph.input[0].name: images})
    loss = F.cross_entropy(logits, torch.tensor(labels))
    loss.backward()
    return loss.item(), {n: w.grad.numpy() for n, w in leaves.items() if w.grad is not None}
