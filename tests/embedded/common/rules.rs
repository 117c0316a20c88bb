//! Every gradient rule against finite differences, on graphs of one operator each.

use std::collections::HashSet;
use std::sync::Arc;

use ndarray::{Array4, ArrayD};
use offshoot::axes::{Assumption, Typing};
use offshoot::graph::{float_attribute, int_attribute, ints_attribute, node, string_attribute};
use offshoot::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_from_i64, tensor_info};
use offshoot::runtime::{Runtime, RuntimeKind, differentiable};
use offshoot::training::{Gradients, Operators, kernels};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::surgery::run;

/// An operator with operands to be differentiated by, and others.
struct Case {
    node: NodeProto,
    before: Vec<NodeProto>,
    operands: Vec<(String, TensorProto)>,
    others: Vec<TensorProto>,
    opset: i64,
    only_onnxruntime: bool,
    only_embedded: bool,
    random: StdRng,
}

fn op(name: &str) -> Case {
    Case {
        node: node(name, &[], &["y"], vec![]),
        before: Vec::new(),
        operands: Vec::new(),
        others: Vec::new(),
        opset: 17,
        only_onnxruntime: false,
        only_embedded: false,
        random: StdRng::seed_from_u64(11),
    }
}

impl Case {
    /// Values from `low` to `high` in random order, all apart, so that no finite step crosses a kink or a tie.
    fn within(mut self, shape: &[usize], low: f32, high: f32) -> Self {
        let n: usize = shape.iter().product();
        let mut data: Vec<f32> = (0..n).map(|i| low + (high - low) * (i as f32 + 0.37) / n as f32).collect();
        data.shuffle(&mut self.random);
        let name = format!("operand_{}", self.node.input.len());
        self.node.input.push(format!("{name}_moved"));
        self.operands.push((name.clone(), tensor_from_f32(name, DataType::Float, shape, &data)));
        self
    }

    /// The last operand once more: its gradients add up.
    fn again(mut self) -> Self {
        self.node.input.push(self.node.input.last().unwrap().clone());
        self
    }

    fn x(self, shape: &[usize]) -> Self {
        self.within(shape, -2.0, 2.0)
    }

    fn positive(self, shape: &[usize]) -> Self {
        self.within(shape, 0.5, 2.0)
    }

    fn other(mut self, mut t: TensorProto) -> Self {
        let name = format!("other_{}", self.node.input.len());
        t.name = Some(name.clone());
        self.node.input.push(name);
        self.others.push(t);
        self
    }

    fn ints(self, values: &[i64]) -> Self {
        self.other(tensor_from_i64("", &[values.len()], values))
    }

    fn indices(self, shape: &[usize], values: &[i64]) -> Self {
        self.other(tensor_from_i64("", shape, values))
    }

    /// Integers that the graph computes.
    fn computed(mut self, shape: &[usize], values: &[i64]) -> Self {
        let floats: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        self = self.other(tensor_from_f32("", DataType::Float, shape, &floats));
        let name = self.node.input.pop().unwrap();
        let cast = format!("{name}_cast");
        self.before.push(node("Cast", &[&name], &[&cast], vec![int_attribute("to", DataType::Int64 as i64)]));
        self.node.input.push(cast);
        self
    }

    /// A condition that holds for every other element.
    fn condition(self, shape: &[usize]) -> Self {
        let raw: Vec<u8> = (0..shape.iter().product::<usize>()).map(|i| (i % 2) as u8).collect();
        self.other(offshoot::onnx::tensor_from_raw("", DataType::Bool, shape, raw.into()))
    }

    fn scalar(self, value: f32) -> Self {
        self.other(tensor_from_f32("", DataType::Float, &[], &[value]))
    }

    fn absent(mut self) -> Self {
        self.node.input.push(String::new());
        self
    }

    fn int(mut self, name: &str, value: i64) -> Self {
        self.node.attribute.push(int_attribute(name, value));
        self
    }

    fn list(mut self, name: &str, values: &[i64]) -> Self {
        self.node.attribute.push(ints_attribute(name, values));
        self
    }

    fn float(mut self, name: &str, value: f32) -> Self {
        self.node.attribute.push(float_attribute(name, value));
        self
    }

    fn string(mut self, name: &str, value: &str) -> Self {
        self.node.attribute.push(string_attribute(name, value));
        self
    }

    fn outputs(mut self, n: usize) -> Self {
        self.node.output = (0..n).map(|i| format!("y_{i}")).collect();
        self
    }

    /// An output that nothing reads, so that no gradient comes for it.
    fn unread(mut self, i: usize) -> Self {
        self.node.output[i] = format!("unread_{i}");
        self
    }

    fn opset(mut self, version: i64) -> Self {
        self.opset = version;
        self
    }

    fn microsoft(mut self) -> Self {
        self.node.domain = Some("com.microsoft".into());
        self.only_onnxruntime()
    }

    /// tract 0.23 does not run the operator itself, or not in this form, or overlooks an attribute (Celu's and Swish's
    /// alpha).
    fn only_onnxruntime(mut self) -> Self {
        self.only_onnxruntime = true;
        self
    }

    /// ONNX Runtime 1.32 does not run the operator (SwiGLU is made of a Swish of operator set 24, which it has no
    /// kernel for).
    fn only_embedded(mut self) -> Self {
        self.only_embedded = true;
        self
    }

    fn describe(&self) -> String {
        let shapes: Vec<_> = self.operands.iter().map(|(_, t)| &t.dims).collect();
        let attributes: Vec<_> =
            self.node.attribute.iter().map(|a| format!("{}={:?}{:?}", a.name(), a.ints, a.i)).collect();
        format!("{} (opset {}) of {shapes:?} {attributes:?}", self.node.op_type(), self.opset)
    }

    /// The input has one number for each operand: how far it is moved along its direction.
    fn model(&mut self) -> (Model, Vec<TensorProto>) {
        let mut graph = GraphProto::default();
        let count = self.operands.len();
        graph.input.push(tensor_info("steps", DataType::Float, &[Some(1), Some(count), Some(1), Some(1)]));
        graph.initializer.push(tensor_from_i64("flat", &[1], &[-1]));
        graph.node.push(node("Reshape", &["steps", "flat"], &["list"], vec![]));
        let mut directions = Vec::new();
        for (j, (name, t)) in self.operands.iter().enumerate() {
            let n = t.dims.iter().product::<i64>() as usize;
            let shape = t.shape();
            let values: Vec<f32> = (0..n).map(|_| self.random.random_range(-1.0..1.0)).collect();
            let names = ["index", "step", "along", "way", "moved"].map(|s| format!("{name}_{s}"));
            let [index, step, along, way, moved] = names.each_ref().map(String::as_str);
            graph.initializer.push(t.clone());
            graph.initializer.push(tensor_from_i64(index, &[], &[j as i64]));
            directions.push(tensor_from_f32(along, DataType::Float, &shape, &values));
            graph.node.push(node("Gather", &["list", index], &[step], vec![int_attribute("axis", 0)]));
            graph.node.push(node("Mul", &[along, step], &[way], vec![]));
            graph.node.push(node("Add", &[name, way], &[moved], vec![]));
        }
        graph.initializer.extend(directions.iter().cloned());
        graph.initializer.extend(self.others.iter().cloned());
        graph.node.extend(self.before.iter().cloned());
        graph.node.push(self.node.clone());
        let rank = [None; 4];
        for output in self.node.output.iter().filter(|o| !o.is_empty() && !o.starts_with("unread")) {
            graph.output.push(tensor_info(output.clone(), DataType::Float, &rank));
        }
        let import = |domain: &str, version| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
        let ir = if self.opset > 23 { 13 } else { 10 };
        let mut model = Model::from_proto(ModelProto {
            ir_version: Some(ir),
            opset_import: vec![import("", self.opset), import("com.microsoft", 1)],
            graph: Some(graph),
            ..Default::default()
        });
        // Outputs declare their rank.
        let shapes: Vec<Vec<Option<usize>>> = {
            let typing = Typing::with(&model, Assumption { batch: 1, image: [1, 1] }).unwrap();
            let outputs = model.graph().output.iter();
            outputs.map(|o| typing.shape(o.name()).unwrap().into_iter().map(Some).collect()).collect()
        };
        for (info, shape) in model.graph_mut().output.iter_mut().zip(shapes) {
            *info = tensor_info(info.name().to_string(), DataType::Float, &shape);
        }
        (model, directions)
    }

    fn check(mut self, runtime: &Arc<Runtime>, operators: Operators) -> Result<(), String> {
        let (model, directions) = self.model();
        let assumption = Assumption { batch: 1, image: [1, 1] };
        let steps = |values: Vec<f32>| Array4::from_shape_vec((1, values.len(), 1, 1), values).unwrap();
        let still = steps(vec![0.0; self.operands.len()]);
        let base = run(runtime, &model, &still)?;

        let mut backward = model.clone();
        let prepared = differentiable(&Typing::with(&model, assumption.clone()).unwrap()).map_err(|e| e.to_string())?;
        *backward.graph_mut() = prepared;
        if operators == Operators::Fused {
            let fused = kernels::fuse(&Typing::with(&backward, assumption.clone()).unwrap());
            *backward.graph_mut() = fused;
            backward.proto.opset_import.push(kernels::import());
        }
        let weights: Vec<Vec<f32>> =
            base.iter().map(|y| y.iter().map(|_| self.random.random_range(-1.0..1.0)).collect()).collect();
        let (mut seeds, mut constants) = (Vec::new(), Vec::new());
        for (i, (info, y)) in model.graph().output.iter().zip(&base).enumerate() {
            let name = format!("seed_{i}");
            constants.push(tensor_from_f32(name.clone(), DataType::Float, y.shape(), &weights[i]));
            seeds.push((info.name().to_string(), name));
        }
        let trained: HashSet<String> = self.operands.iter().map(|(name, _)| name.clone()).collect();
        let gradients = {
            let typing = Typing::with(&backward, assumption).unwrap();
            Gradients::new(&typing, &trained, &seeds, (vec![], constants), operators).map_err(|e| e.to_string())?
        };
        *backward.graph_mut() = gradients.graph;
        backward.graph_mut().output = self
            .operands
            .iter()
            .map(|(name, t)| {
                let dims: Vec<Option<usize>> = t.dims.iter().map(|&d| Some(d as usize)).collect();
                let gradient = gradients.of.get(name).ok_or_else(|| format!("no gradient for `{name}`"))?;
                Ok(tensor_info(gradient.clone(), DataType::Float, &dims))
            })
            .collect::<Result<_, String>>()?;
        let found = run(runtime, &backward, &still).map_err(|e| format!("the backward graph does not run: {e}"))?;

        let loss = |j: usize, step: f32| -> Result<f64, String> {
            let mut at = vec![0.0; self.operands.len()];
            at[j] = step;
            let outputs: Vec<ArrayD<f32>> = run(runtime, &model, &steps(at))?;
            Ok(outputs
                .iter()
                .zip(&weights)
                .flat_map(|(y, w)| y.iter().zip(w))
                .map(|(y, w)| *y as f64 * *w as f64)
                .sum())
        };
        for (j, gradient) in found.iter().enumerate() {
            let along = offshoot::onnx::to_f32(&directions[j]).unwrap();
            let slope = |h: f32| -> Result<f64, String> { Ok((loss(j, h)? - loss(j, -h)?) / (2.0 * h as f64)) };
            let truth = (4.0 * slope(0.004)? - slope(0.008)?) / 3.0;
            let projected: f64 = gradient.iter().zip(&along).map(|(g, d)| *g as f64 * *d as f64).sum();
            let size = gradient.iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
            let error = (projected - truth).abs() / size.max(1e-3);
            if error.is_nan() || error > 1e-3 || size < 1e-6 {
                return Err(format!("operand {j}: slope {truth}, gradient {projected}, its length {size}"));
            }
        }
        Ok(())
    }
}

fn elementwise() -> Vec<Case> {
    let s = &[2, 3, 4];
    let mut cases: Vec<Case> = ["Add", "Sub", "Mul", "Max", "Min"].iter().map(|o| op(o).x(s).x(&[3, 1])).collect();
    cases.extend([
        op("Sum").x(s).x(&[4]).x(&[2, 1, 1]),
        op("Sum").x(s).again().again(),
        op("Mul").x(s).again(),
        op("Max").x(&[5]),
        op("Min").x(&[3, 2]).x(&[2]).x(&[3, 1]),
        op("Mean").x(s).x(&[4]),
        op("Div").x(s).positive(&[3, 1]),
        op("Pow").positive(s).scalar(2.0),
        op("Pow").positive(s).scalar(-1.5),
        op("Pow").positive(s).x(&[3, 1]),
        op("PRelu").x(s).positive(&[3, 1]),
        op("Where").condition(s).x(&[4]).x(s),
        op("Expand").x(&[3, 1]).ints(&[2, 3, 4]),
        op("Clip").x(s).scalar(-0.7).scalar(1.1),
        op("Elu").x(s).float("alpha", 0.7),
        op("Selu").x(s),
        op("Celu").x(s).float("alpha", 1.3).only_onnxruntime(),
        op("LeakyRelu").x(s).float("alpha", 0.2),
        op("ThresholdedRelu").x(s).float("alpha", 0.6),
        op("HardSigmoid").x(s).float("alpha", 0.3),
        op("Mish").x(s).opset(18),
        op("Gelu").x(s).opset(20),
        op("Gelu").x(s).opset(20).string("approximate", "tanh"),
        op("Swish").x(s).opset(24),
        op("SwiGLU").x(s).x(s).float("alpha", 1.4).opset(28).only_embedded(),
        op("Swish").x(s).opset(24).float("alpha", 1.4).only_onnxruntime(),
        op("Gelu").x(s).microsoft(),
        op("QuickGelu").x(s).microsoft().float("alpha", 1.2),
        op("FastGelu").x(s).x(&[4]).microsoft(),
        op("BiasGelu").x(s).x(&[4]).microsoft(),
        op("Cast").x(s).int("to", 1),
        op("Identity").x(s),
        op("Dropout").x(s),
    ]);
    let plain = [
        "Neg",
        "Exp",
        "Sin",
        "Cos",
        "Atan",
        "Abs",
        "Erf",
        "Tanh",
        "Sigmoid",
        "Relu",
        "Softplus",
        "Softsign",
        "HardSwish",
        "HardSigmoid",
    ];
    cases.extend(plain.iter().map(|o| op(o).within(s, -4.0, 4.0)));
    cases.extend(["Log", "Sqrt", "Reciprocal"].iter().map(|o| op(o).positive(s)));
    cases.push(op("Tan").within(s, -1.0, 1.0));
    cases
}

fn normalisation() -> Vec<Case> {
    let s = &[2, 4, 6];
    let mut cases = vec![
        op("Softmax").x(s).int("axis", 1),
        op("Softmax").x(s).int("axis", 1).opset(11),
        op("LogSoftmax").x(s),
        op("LogSoftmax").x(s).int("axis", 2).opset(11),
        op("LayerNormalization").x(s).x(&[6]).x(&[6]),
        op("LayerNormalization").x(s).x(&[4, 6]).int("axis", 1).only_onnxruntime(),
        op("LayerNormalization").x(&[70, 2, 6]).x(&[6]).x(&[6]).float("epsilon", 1e-3),
        op("RMSNormalization").x(s).x(&[6]).opset(23),
        op("SimplifiedLayerNormalization").x(s).x(&[6]).only_onnxruntime(),
        op("SkipLayerNormalization").x(s).x(s).x(&[6]).x(&[6]).x(&[6]).microsoft(),
        op("SkipSimplifiedLayerNormalization").x(s).x(s).x(&[6]).x(&[6]).microsoft(),
        op("InstanceNormalization").x(&[2, 3, 4]).x(&[3]).x(&[3]),
        op("GroupNormalization").x(&[2, 4, 2, 3]).x(&[2]).x(&[2]).int("num_groups", 2).opset(18).only_onnxruntime(),
        op("GroupNormalization").x(&[2, 4, 2, 3]).x(&[4]).x(&[4]).int("num_groups", 2).opset(21),
        op("MeanVarianceNormalization").x(&[2, 3, 2, 2]),
        op("MeanVarianceNormalization").x(s).list("axes", &[2]).only_onnxruntime(),
        op("LpNormalization").x(s).int("axis", 1).int("p", 1),
        op("LpNormalization").x(s),
        op("BatchNormalization").x(&[2, 3, 4]).x(&[3]).x(&[3]).fixed(&[3], 0.1).fixed(&[3], 1.5).only_onnxruntime(),
        op("BatchNormalization").x(&[2, 3, 4]).x(&[3]).x(&[3]).x(&[3]).positive(&[3]).only_onnxruntime(),
        op("GlobalAveragePool").x(&[2, 3, 2, 2]),
        op("GlobalMaxPool").x(&[2, 3, 2, 2]),
    ];
    for o in [
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceLogSumExp",
    ] {
        cases.push(op(o).x(s).ints(&[0, -1]).int("keepdims", 0).opset(18));
        cases.push(op(o).x(s).opset(18));
        if o == "ReduceSum" {
            cases.push(op(o).x(s).list("axes", &[1]).opset(11));
        } else {
            cases.push(op(o).x(s).list("axes", &[1]).opset(13));
        }
    }
    cases.push(op("ReduceLogSum").positive(s).ints(&[1]).opset(18));
    cases
}

impl Case {
    fn fixed(self, shape: &[usize], value: f32) -> Self {
        let n = shape.iter().product();
        let data: Vec<f32> = (0..n).map(|i| value + 0.1 * i as f32).collect();
        self.other(tensor_from_f32("", DataType::Float, shape, &data))
    }
}

fn movement() -> Vec<Case> {
    let s = &[2, 3, 4];
    vec![
        op("Reshape").x(s).ints(&[4, 6]),
        op("Flatten").x(s).int("axis", 2),
        op("Squeeze").x(&[2, 1, 3]).ints(&[1]),
        op("Unsqueeze").x(s).ints(&[0, 2]),
        op("Transpose").x(s).list("perm", &[1, 2, 0]),
        op("Transpose").x(s),
        op("Tile").x(s).ints(&[2, 1, 3]),
        op("Concat").x(s).x(&[2, 2, 4]).int("axis", 1),
        op("Split").x(s).ints(&[1, 2]).int("axis", 1).outputs(2),
        op("Split").x(s).int("axis", 2).list("split", &[1, 3]).outputs(2).opset(11),
        op("Split").x(&[2, 6]).ints(&[1, 2, 3]).int("axis", 1).outputs(3).unread(1),
        op("Split").x(&[2, 6]).ints(&[1, 2, 3]).int("axis", 1).outputs(3).unread(0).unread(2),
        op("Slice").x(s).ints(&[1]).ints(&[3]).ints(&[1]),
        op("Slice").x(s).list("starts", &[1]).list("ends", &[3]).list("axes", &[1]).opset(9),
        op("Slice").x(s).ints(&[1, -3]).ints(&[9, -1]).ints(&[0, 2]).ints(&[1, 1]),
        op("Slice").x(&[2, 7]).ints(&[1]).ints(&[7]).ints(&[1]).ints(&[3]),
        op("Slice").x(&[2, 7]).ints(&[-2]).ints(&[i64::MIN + 1]).ints(&[1]).ints(&[-2]),
        op("Gather").x(s).indices(&[], &[1]).int("axis", 1),
        op("Gather").x(&[5, 3]).indices(&[2, 3], &[4, 0, 0, -1, 2, 0]),
        op("Gather").x(s).indices(&[4], &[2, 2, 2, 0]).int("axis", 1),
        op("Gather").x(s).indices(&[3], &[2, 0, 1]).int("axis", 1),
        op("Gather").x(&[70, 2]).indices(&[9], &[3; 9]),
        op("Gather").x(&[5, 3]).computed(&[4], &[4, 0, 0, 2]),
        op("Gather").x(s).computed(&[2, 2], &[2, 0, 1, 2]).int("axis", 1).opset(13),
        op("GatherND").x(s).indices(&[3, 2], &[0, 1, 1, 2, 0, 1]),
        op("GatherND").x(s).indices(&[2, 2, 1], &[0, 2, 1, 1]).int("batch_dims", 1),
        op("GatherND").x(s).computed(&[3, 2], &[0, 1, 1, 2, 0, 1]),
        op("GatherElements").x(&[3, 4]).indices(&[2, 4], &[0, 1, 2, 0, 2, 1, 2, 0]),
        op("GatherElements").x(&[3, 4]).computed(&[3, 2], &[0, 0, 3, 1, -1, 2]).int("axis", 1),
        op("ScatterND").x(s).indices(&[2, 2], &[0, 1, 1, 2]).x(&[2, 4]),
        op("ScatterND").x(s).indices(&[2, 2], &[0, 1, 0, 1]).x(&[2, 4]).string("reduction", "add"),
        op("ScatterElements").x(&[3, 4]).indices(&[1, 4], &[0, 2, 1, 2]).x(&[1, 4]),
        op("ScatterElements")
            .x(&[3, 4])
            .indices(&[3, 1], &[3, 0, 2])
            .x(&[3, 1])
            .int("axis", 1)
            .string("reduction", "add"),
        op("Pad").x(s).ints(&[0, 1, 2, 0, 0, 1]),
        op("Pad").x(s).ints(&[0, -1, 2, 0, 0, -2]).only_onnxruntime(),
        op("Pad").x(s).ints(&[0, 2, 1, 0, 1, 3]).string("mode", "reflect"),
        op("Pad").x(s).ints(&[1, 2, 1, 0, 1, 3]).string("mode", "edge"),
        op("Pad").x(s).ints(&[0, 2, 0, 0, 1, 0]).string("mode", "wrap").opset(19).only_onnxruntime(),
        op("Pad").x(s).ints(&[2, 1]).absent().ints(&[2]).opset(18).only_onnxruntime(),
        op("DepthToSpace").x(&[1, 8, 2, 3]).int("blocksize", 2),
        op("DepthToSpace").x(&[1, 8, 2, 3]).int("blocksize", 2).string("mode", "CRD"),
        op("SpaceToDepth").x(&[1, 2, 4, 6]).int("blocksize", 2),
        op("Trilu").x(&[3, 4]).indices(&[], &[1]).int("upper", 0),
        op("Trilu").x(&[2, 4, 4]),
        op("CumSum").x(s).indices(&[], &[1]),
        op("CumProd").x(s).indices(&[], &[1]).opset(26),
        op("CumProd").x(s).indices(&[], &[-1]).int("reverse", 1).int("exclusive", 1).opset(26),
        op("CumSum").x(s).indices(&[], &[2]).int("reverse", 1).int("exclusive", 1),
    ]
}

fn contraction() -> Vec<Case> {
    let image = &[2, 4, 7, 6];
    let rotary = |c: Case| c.fixed(&[5, 3], 0.3).fixed(&[5, 3], 0.7);
    vec![
        op("MatMul").x(&[3, 4]).x(&[4, 5]),
        op("MatMul").x(&[4, 4]).again(),
        op("MatMul").x(&[2, 3, 4]).x(&[4, 5]),
        op("MatMul").x(&[2, 3, 4]).x(&[2, 4, 5]),
        op("MatMul").x(&[2, 1, 3, 4]).x(&[3, 4, 5]),
        op("MatMul").x(&[3, 4]).x(&[2, 4, 5]),
        op("MatMul").x(&[4]).x(&[2, 4, 5]),
        op("MatMul").x(&[2, 3, 4]).x(&[4]),
        op("MatMul").x(&[4]).x(&[4]).only_onnxruntime(),
        op("MatMul").x(&[4]).x(&[4, 3]),
        op("Gemm").x(&[3, 4]).x(&[4, 5]).x(&[5]),
        op("Gemm")
            .x(&[4, 3])
            .x(&[5, 4])
            .x(&[3, 1])
            .int("transA", 1)
            .int("transB", 1)
            .float("alpha", 0.5)
            .float("beta", 1.5),
        op("Gemm").x(&[4, 3]).x(&[4, 5]).int("transA", 1),
        // As many rows as the fused operators want.
        op("MatMul").x(&[2, 17, 6]).x(&[6, 5]),
        op("MatMul").x(&[2, 17, 6]).x(&[6]),
        op("Gemm").x(&[40, 6]).x(&[6, 5]).x(&[1, 5]),
        op("Gemm").x(&[40, 6]).x(&[5, 6]).x(&[5]).int("transB", 1),
        op("Gemm").x(&[40, 6]).x(&[5, 6]).x(&[40, 1]).int("transB", 1),
        op("Gemm").x(&[3, 4]).x(&[5, 4]).x(&[]).int("transB", 1),
        op("FusedMatMul").x(&[2, 3, 4]).x(&[2, 5, 4]).int("transB", 1).float("alpha", 0.3).microsoft(),
        op("FusedMatMul").x(&[2, 4, 3]).x(&[2, 4, 5]).int("transA", 1).microsoft(),
        op("FusedMatMul").x(&[2, 4, 3]).x(&[5, 4]).int("transA", 1).int("transB", 1).microsoft(),
        op("FusedMatMul").x(&[2, 3, 4]).x(&[5, 4]).int("transB", 1).microsoft(),
        op("Einsum").x(&[2, 3]).x(&[3, 4]).string("equation", "ab,bc->ac"),
        op("Einsum").x(&[2, 3]).x(&[3, 4]).string("equation", "ab,bc->ac").opset(28),
        op("Einsum").x(&[2, 3, 4]).x(&[2, 5, 4]).string("equation", "bhd, bkd -> bhk"),
        op("Einsum").x(&[2, 3, 4]).string("equation", "abc->ca"),
        op("Einsum").x(&[2, 3, 4]).x(&[4]).string("equation", "abc,c->a"),
        op("Einsum").x(&[2, 3]).x(&[3]).x(&[2]).string("equation", "ab,b,a->b").only_onnxruntime(),
        op("Conv").x(image).x(&[3, 4, 3, 2]).x(&[3]),
        op("Conv").x(image).x(&[3, 4, 3, 3]).list("pads", &[1, 0, 2, 1]).list("strides", &[2, 3]),
        op("Conv").x(image).x(&[3, 4, 2, 3]).list("dilations", &[3, 2]).list("strides", &[2, 1]),
        op("Conv")
            .x(image)
            .x(&[6, 2, 3, 3])
            .x(&[6])
            .int("group", 2)
            .list("strides", &[2, 2])
            .list("pads", &[1, 1, 1, 1]),
        op("Conv").x(image).x(&[4, 1, 3, 3]).int("group", 4).list("pads", &[1, 1, 1, 1]),
        op("Conv").x(image).x(&[3, 4, 3, 3]).string("auto_pad", "SAME_UPPER").list("strides", &[2, 2]),
        op("Conv").x(image).x(&[3, 4, 2, 2]).string("auto_pad", "SAME_LOWER"),
        op("Conv").x(image).x(&[3, 4, 2, 2]).string("auto_pad", "VALID").list("strides", &[2, 2]),
        op("Conv").x(&[2, 3, 4, 6]).x(&[5, 3, 2, 3]).x(&[5]).list("strides", &[2, 3]),
        op("Conv").x(&[2, 3, 8]).x(&[5, 3, 3]).list("pads", &[1, 1]).list("strides", &[2]),
        op("Conv").x(&[2, 3, 8]).x(&[5, 3, 4]).list("strides", &[4]),
        op("Conv").x(&[2, 3, 8]).x(&[5, 3, 1]),
        op("Conv").x(image).x(&[3, 4, 1, 1]).list("strides", &[3, 4]),
        op("ConvTranspose").x(&[2, 4, 3, 4]).x(&[4, 3, 3, 2]).x(&[3]),
        op("ConvTranspose").x(&[2, 4, 3, 4]).x(&[4, 3, 2, 2]).list("strides", &[2, 2]),
        op("ConvTranspose")
            .x(&[2, 4, 3, 4])
            .x(&[4, 3, 3, 3])
            .list("strides", &[2, 3])
            .list("pads", &[1, 0, 1, 2])
            .list("output_padding", &[1, 2]),
        op("ConvTranspose").x(&[2, 4, 3, 4]).x(&[4, 2, 3, 3]).int("group", 2).list("dilations", &[2, 1]),
        op("ConvTranspose")
            .x(&[2, 4, 3, 4])
            .x(&[4, 3, 3, 3])
            .string("auto_pad", "SAME_UPPER")
            .list("strides", &[2, 2])
            .only_onnxruntime(),
        op("ConvTranspose").x(&[2, 4, 5]).x(&[4, 3, 3]).list("strides", &[2]),
        op("AveragePool").x(image).list("kernel_shape", &[2, 3]),
        op("AveragePool").x(image).list("kernel_shape", &[2, 2]).list("strides", &[2, 2]),
        op("AveragePool").x(image).list("kernel_shape", &[3, 3]).list("pads", &[1, 1, 1, 1]).list("strides", &[2, 2]),
        op("AveragePool")
            .x(image)
            .list("kernel_shape", &[3, 3])
            .list("pads", &[1, 1, 1, 1])
            .int("count_include_pad", 1),
        op("AveragePool")
            .x(image)
            .list("kernel_shape", &[2, 2])
            .list("strides", &[2, 2])
            .int("ceil_mode", 1)
            .only_onnxruntime(),
        op("MaxPool").x(image).list("kernel_shape", &[2, 2]).list("strides", &[2, 2]),
        op("MaxPool").x(image).list("kernel_shape", &[3, 2]).list("pads", &[1, 0, 1, 1]).list("strides", &[2, 1]),
        op("MaxPool").x(&[2, 3, 9]).list("kernel_shape", &[3]).list("dilations", &[2]).only_onnxruntime(),
        op("Col2Im").x(&[2, 12, 9]).ints(&[6, 6]).ints(&[2, 2]).list("strides", &[2, 2]).opset(18).only_onnxruntime(),
        op("Col2Im")
            .x(&[1, 12, 6])
            .ints(&[3, 4])
            .ints(&[3, 2])
            .list("strides", &[2, 2])
            .list("pads", &[1, 1, 1, 1])
            .opset(18)
            .only_onnxruntime(),
        op("Resize").x(&[1, 2, 3, 4]).absent().absent().ints(&[1, 2, 6, 5]).string("mode", "linear"),
        op("Resize").x(&[1, 2, 3, 4]).absent().absent().ints(&[1, 2, 5, 7]).string("mode", "cubic").only_onnxruntime(),
        op("Resize").x(&[1, 2, 3, 4]).absent().absent().ints(&[1, 2, 6, 5]),
        op("Resize")
            .x(&[1, 2, 3, 4])
            .absent()
            .other(tensor_from_f32("", DataType::Float, &[4], &[1.0, 1.0, 2.0, 0.5]))
            .string("coordinate_transformation_mode", "asymmetric")
            .string("nearest_mode", "floor"),
        op("Attention").x(&[1, 2, 3, 4]).x(&[1, 2, 5, 4]).x(&[1, 2, 5, 4]).opset(23),
        op("Attention").x(&[1, 4, 3, 4]).x(&[1, 2, 3, 4]).x(&[1, 2, 3, 4]).int("is_causal", 1).opset(23),
        op("Attention")
            .x(&[1, 2, 5, 4])
            .x(&[1, 2, 5, 4])
            .x(&[1, 2, 5, 4])
            .int("left_window_size", 2)
            .int("right_window_size", 1)
            .opset(25),
        op("LinearAttention")
            .x(&[1, 4, 8])
            .x(&[1, 4, 4])
            .x(&[1, 4, 6])
            .string("update_rule", "linear")
            .int("q_num_heads", 4)
            .int("kv_num_heads", 2)
            .outputs(2)
            .unread(1)
            .opset(27),
        op("LinearAttention")
            .x(&[1, 4, 8])
            .x(&[1, 4, 4])
            .x(&[1, 4, 6])
            .x(&[1, 2, 2, 3])
            .x(&[1, 4, 2])
            .positive(&[1, 4, 1])
            .int("q_num_heads", 4)
            .int("kv_num_heads", 2)
            .outputs(2)
            .opset(27),
        op("CausalConvWithState").x(&[2, 3, 6]).x(&[3, 1, 3]).x(&[3]).outputs(2).unread(1).opset(27),
        op("CausalConvWithState")
            .x(&[2, 3, 6])
            .x(&[3, 1, 3])
            .x(&[3])
            .x(&[2, 3, 2])
            .string("activation", "silu")
            .outputs(2)
            .opset(27),
        op("Attention")
            .x(&[1, 2, 3, 4])
            .x(&[1, 2, 5, 4])
            .x(&[1, 2, 5, 4])
            .x(&[3, 5])
            .float("softcap", 2.0)
            .opset(23)
            .only_onnxruntime(),
        op("Attention")
            .x(&[1, 3, 8])
            .x(&[1, 5, 4])
            .x(&[1, 5, 4])
            .condition(&[3, 5])
            .int("q_num_heads", 4)
            .int("kv_num_heads", 2)
            .float("scale", 0.6)
            .opset(23),
        op("Attention").x(&[1, 3, 4]).x(&[4, 12]).x(&[12]).int("num_heads", 2).microsoft(),
        op("Attention").x(&[1, 3, 4]).x(&[4, 12]).x(&[12]).int("num_heads", 2).int("unidirectional", 1).microsoft(),
        op("MultiHeadAttention").x(&[1, 3, 4]).x(&[1, 5, 4]).x(&[1, 5, 4]).x(&[12]).int("num_heads", 2).microsoft(),
        op("MultiHeadAttention")
            .x(&[1, 3, 4])
            .x(&[1, 5, 4])
            .x(&[1, 5, 4])
            .absent()
            .absent()
            .x(&[1, 2, 3, 5])
            .int("num_heads", 2)
            .microsoft(),
        rotary(op("RotaryEmbedding").x(&[1, 2, 3, 6])).indices(&[1, 3], &[0, 2, 4]).opset(23),
        rotary(op("RotaryEmbedding").x(&[1, 3, 12]))
            .indices(&[1, 3], &[0, 2, 4])
            .int("num_heads", 2)
            .int("interleaved", 1)
            .opset(23),
        op("RotaryEmbedding")
            .x(&[1, 2, 3, 6])
            .fixed(&[1, 3, 2], 0.3)
            .fixed(&[1, 3, 2], 0.6)
            .int("rotary_embedding_dim", 4)
            .opset(23),
        rotary(op("RotaryEmbedding").x(&[1, 3, 12]).indices(&[1, 3], &[1, 2, 0])).int("num_heads", 2).microsoft(),
    ]
}

/// Checks every case that the runtime knows the operators of.
pub fn check_all(runtime: &Arc<Runtime>) {
    let (mut checked, mut failures) = (0, Vec::new());
    for operators in [Operators::Standard, Operators::Contrib, Operators::Fused] {
        if operators != Operators::Standard && runtime.kind == RuntimeKind::Tract {
            continue;
        }
        for case in [elementwise(), normalisation(), movement(), contraction()].into_iter().flatten() {
            let other = if runtime.kind == RuntimeKind::Tract { case.only_onnxruntime } else { case.only_embedded };
            if other {
                continue;
            }
            checked += 1;
            let name = case.describe();
            if let Err(e) = case.check(runtime, operators) {
                failures.push(format!("{name}: {e}"));
            }
        }
    }
    assert!(checked > 150, "only {checked} cases were checked");
    assert!(failures.is_empty(), "{} of {checked} failed:\n{}", failures.len(), failures.join("\n"));
}
