//! Programs: graphs of any inputs that work on tensors which stay on the device from run to run.
//!
//! A training step reads parameters and moments and makes their next values. [`DeviceTensors`] keeps two buffers of
//! each such tensor; a program reads the front one, writes the back one, and the two change places, because a weight
//! may still be read by the backward pass when its next value is made. A tensor that a program declares as written in
//! place needs no second buffer. On ONNX Runtime the buffers are bound once for each order in which they can stand;
//! tract, which binds nothing, passes the values on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ndarray::{ArrayD, ArrayViewD, CowArray, IxDyn};
use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session as OrtSession, SessionInputValue};
use ort::value::{DynValue, Tensor, TensorRef, TensorValueType};

use super::session::{Purpose, float_borders, guarded, to_float};
use super::start::{Device, Runtime, RuntimeKind};
use super::tract::for_tract;
use crate::axes::Assumption;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{declared_dims, declared_type};
use crate::onnx::proto::ValueInfoProto;
use crate::onnx::{DataType, Model};
use crate::parallel;

/// Tensors on the device, by name.
#[derive(Default)]
pub struct DeviceTensors {
    tensors: HashMap<String, Buffers>,
    /// Counts insertions: bindings made before the last one hold buffers that are gone.
    generation: u64,
}

/// The front buffer holds the value; the other one, made when a program first asks for it, takes the next.
struct Buffers {
    both: [Option<DynValue>; 2],
    front: usize,
    shape: Vec<usize>,
}

/// Which of a program's inputs and outputs are tensors of the state.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    /// Inputs of the graph and the tensors that they read.
    pub reads: Vec<(String, String)>,
    /// Outputs of the graph and the tensors whose next values they are. What is written is read as well, so that its
    /// shape is known.
    pub writes: Vec<(String, String)>,
    /// Tensors whose next value is written over the last one: the graph has read it by then, and leaves it as it is
    /// where a run is to be [undone](DeviceTensors::undo).
    pub in_place: HashSet<String>,
}

/// A graph that was loaded into the runtime, to be run with values that are fed and a state that stays.
pub struct Program {
    inner: OrtSession,
    runtime: Arc<Runtime>,
    ports: Ports,
    feeds: Vec<String>,
    results: Vec<String>,
    /// Host memory for each result, where the graph declares all of their shapes.
    received: Option<Vec<DynValue>>,
    bindings: HashMap<Vec<bool>, IoBinding>,
    generation: u64,
}

fn failed(kind: RuntimeKind, e: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Runtime, format!("{} failed: {e}", kind.name()))
}

fn unreadable(tensor: &str, e: ort::Error) -> Error {
    Error::new(ErrorKind::Runtime, format!("`{tensor}` cannot be read back: {e}"))
}

/// Another handle of the same buffer.
fn handle(value: &DynValue) -> std::result::Result<DynValue, String> {
    value.view().try_upgrade().map_err(|_| "a value of the state is not owned".to_string())
}

impl Runtime {
    /// Loads a graph whose every shape is fixed. Its inputs are those of `ports` and others, which are fed (all of
    /// f32).
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`] where the runtime cannot load it.
    pub fn load_program(self: &Arc<Self>, model: &Model, ports: Ports) -> Result<Program> {
        let mut model = model.clone();
        if self.kind == RuntimeKind::Tract {
            // Every shape is fixed: nothing is assumed.
            for_tract(&mut model, Assumption::default())?;
        }
        float_borders(model.graph_mut());
        let of_state = |list: &[(String, String)], n: &str| list.iter().any(|(port, _)| port == n);
        let feeds = crate::graph::data_inputs(model.graph())
            .iter()
            .map(|v| v.name().to_string())
            .filter(|n| !of_state(&ports.reads, n))
            .collect();
        let outputs: Vec<_> = model.graph().output.iter().filter(|o| !of_state(&ports.writes, o.name())).collect();
        let results = outputs.iter().map(|o| o.name().to_string()).collect();
        let received = match self.kind {
            RuntimeKind::Tract => None,
            _ => outputs.iter().map(|o| host_tensor(o)).collect(),
        };
        let inner = guarded(self.kind, || self.build(model, Purpose::Training))?;
        Ok(Program {
            inner,
            runtime: self.clone(),
            ports,
            feeds,
            results,
            received,
            bindings: HashMap::new(),
            generation: 0,
        })
    }
}

/// Memory for an output of float32 whose shape is declared.
fn host_tensor(info: &ValueInfoProto) -> Option<DynValue> {
    let dims: Vec<usize> = declared_dims(info)?.into_iter().collect::<Option<_>>()?;
    if declared_type(info) != Some(DataType::Float as i32) {
        return None;
    }
    Tensor::from_array(ArrayD::<f32>::zeros(IxDyn(&dims))).ok().map(Tensor::into_dyn)
}

impl DeviceTensors {
    /// Names of the tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Puts a tensor on the device of a program, in place of one of the same name.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`], for instance where the device's memory is too small.
    pub fn insert(&mut self, program: &Program, tensor: &str, value: ArrayD<f32>) -> Result<()> {
        let kind = program.runtime.kind;
        let shape = value.shape().to_vec();
        let make = || -> std::result::Result<DynValue, ort::Error> {
            let value = Tensor::from_array(value)?;
            match program.runtime.device {
                Device::Cuda => Ok(value.to(AllocationDevice::CUDA, 0)?.into_dyn()),
                Device::Cpu => Ok(value.into_dyn()),
            }
        };
        let front = make().map_err(|e| failed(kind, format!("`{tensor}` does not fit the device: {e}")))?;
        let both = [Some(front), None];
        self.tensors.insert(tensor.to_string(), Buffers { both, front: 0, shape });
        self.generation += 1;
        Ok(())
    }

    /// Reads a tensor back.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] where there is no such tensor, [`ErrorKind::Runtime`] where it cannot be read.
    pub fn get(&self, tensor: &str) -> Result<ArrayD<f32>> {
        let Some(buffers) = self.tensors.get(tensor) else { bail!(Internal, "the state has no tensor `{tensor}`") };
        let value = buffers.value(tensor)?;
        let read = || -> std::result::Result<ArrayD<f32>, ort::Error> {
            let view = value.downcast_ref::<TensorValueType<f32>>()?;
            if view.memory_info().is_cpu_accessible() {
                return Ok(view.extract_array().to_owned());
            }
            Ok(view.to(AllocationDevice::CPU, 0)?.extract_array().to_owned())
        };
        read().map_err(|e| unreadable(tensor, e))
    }

    /// The shape of a tensor.
    pub fn shape(&self, tensor: &str) -> Option<&[usize]> {
        self.tensors.get(tensor).map(|b| b.shape.as_slice())
    }

    /// Takes the last run of a program back: what it wrote is forgotten, apart from what it wrote in place.
    pub fn undo(&mut self, program: &Program) {
        self.turn(&program.ports);
    }

    /// Makes tensors, in this order, their sums over all processes: from GPU to GPU where NCCL is there, else over the
    /// host.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] where there is no such tensor, [`ErrorKind::Runtime`] where it cannot be read or
    /// written.
    pub fn sum(&mut self, tensors: &[String]) -> Result<()> {
        let mut sizes = Vec::with_capacity(tensors.len());
        let mut on_gpu = Vec::new();
        for tensor in tensors {
            let value = self.tensors.get_mut(tensor).and_then(|b| b.both[b.front].as_mut());
            let Some(value) = value else { bail!(Internal, "the state has no tensor `{tensor}`") };
            let mut value = value.downcast_mut::<TensorValueType<f32>>().map_err(|e| unreadable(tensor, e))?;
            let elements = value.shape().num_elements();
            if !value.memory_info().is_cpu_accessible() {
                on_gpu.push((value.data_ptr_mut(), elements));
            }
            sizes.push((tensor.as_str(), elements));
        }
        if !on_gpu.is_empty() && on_gpu.len() == tensors.len() && parallel::between_gpus()? {
            // SAFETY: the addresses are those of live tensors of so many floats on device 0, which are borrowed
            // mutably, and every run of a program has ended.
            return unsafe { parallel::sum_on_gpu(&on_gpu) };
        }
        parallel::sum_all(sizes.into_iter(), |tensor, change| self.change(tensor, change))
    }

    /// Gives tensors, in this order, the values that they have in the first process.
    ///
    /// # Errors
    /// Those of [`DeviceTensors::sum`].
    pub fn broadcast(&mut self, tensors: &[String]) -> Result<()> {
        tensors.iter().try_for_each(|tensor| self.change(tensor, &mut parallel::broadcast_values))
    }

    /// Lets values of a tensor be changed, in place.
    fn change(&mut self, tensor: &str, change: &mut dyn FnMut(&mut [f32])) -> Result<()> {
        let value = self.tensors.get_mut(tensor).and_then(|b| b.both[b.front].as_mut());
        let Some(value) = value else { bail!(Internal, "the state has no tensor `{tensor}`") };
        let mut work = || -> std::result::Result<(), ort::Error> {
            let mut value = value.downcast_mut::<TensorValueType<f32>>()?;
            if value.memory_info().is_cpu_accessible() {
                change(value.extract_tensor_mut().1);
                return Ok(());
            }
            let mut host = value.to(AllocationDevice::CPU, 0)?;
            change(host.extract_tensor_mut().1);
            host.copy_into(&mut value)
        };
        work().map_err(|e| unreadable(tensor, e))
    }

    fn turn(&mut self, ports: &Ports) {
        for (_, tensor) in ports.writes.iter().filter(|(_, t)| !ports.in_place.contains(t)) {
            if let Some(b) = self.tensors.get_mut(tensor) {
                b.front = 1 - b.front;
            }
        }
    }

    fn buffers(&self, tensor: &str) -> Result<&Buffers> {
        match self.tensors.get(tensor) {
            Some(b) => Ok(b),
            None => bail!(Internal, "the state has no tensor `{tensor}`"),
        }
    }
}

impl Buffers {
    fn value(&self, tensor: &str) -> Result<&DynValue> {
        match &self.both[self.front] {
            Some(value) => Ok(value),
            None => bail!(Internal, "the tensor `{tensor}` of the state has no value"),
        }
    }
}

impl Program {
    /// Names of the inputs that are fed.
    pub fn feeds(&self) -> &[String] {
        &self.feeds
    }

    /// Names of the outputs that every run returns, in order.
    pub fn results(&self) -> &[String] {
        &self.results
    }

    /// Runs the program once: returns its [results](Program::results) and moves the state on.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`]; the state is as it was then.
    pub fn run(&mut self, state: &mut DeviceTensors, feeds: &[(&str, ArrayViewD<f32>)]) -> Result<Vec<ArrayD<f32>>> {
        let kind = self.runtime.kind;
        let results = guarded(kind, || match kind {
            RuntimeKind::Tract => self.run_passing(state, feeds),
            _ => self.run_bound(state, feeds),
        })?;
        state.turn(&self.ports);
        Ok(results)
    }

    /// Values are passed in and out.
    fn run_passing(
        &mut self,
        state: &mut DeviceTensors,
        feeds: &[(&str, ArrayViewD<f32>)],
    ) -> Result<Vec<ArrayD<f32>>> {
        let kind = self.runtime.kind;
        let mut inputs: Vec<(String, SessionInputValue)> = Vec::new();
        for (port, tensor) in &self.ports.reads {
            inputs.push((port.clone(), state.buffers(tensor)?.value(tensor)?.into()));
        }
        let fed: Vec<ArrayD<f32>> = feeds.iter().map(|(_, v)| v.as_standard_layout().into_owned()).collect();
        for ((name, _), value) in feeds.iter().zip(&fed) {
            let tensor = TensorRef::from_array_view(value).map_err(|e| failed(kind, e))?;
            inputs.push((name.to_string(), tensor.into()));
        }
        let mut outputs = self.inner.run(inputs).map_err(|e| failed(kind, e))?;
        let mut next = Vec::new();
        for (port, tensor) in &self.ports.writes {
            let value = outputs.remove(port).ok_or_else(|| failed(kind, format!("no output `{port}`")))?;
            next.push((tensor, value));
        }
        let results = self
            .results
            .iter()
            .map(|o| {
                let value = outputs.get(o).ok_or_else(|| failed(kind, format!("no output `{o}`")))?;
                to_float(value).map_err(|e| failed(kind, format!("output `{o}`: {e}")))
            })
            .collect::<Result<Vec<_>>>()?;
        for (tensor, value) in next {
            if let Some(b) = state.tensors.get_mut(tensor) {
                let place = if self.ports.in_place.contains(tensor) { b.front } else { 1 - b.front };
                b.both[place] = Some(value);
            }
        }
        Ok(results)
    }

    /// Buffers are bound; nothing but what is fed and returned leaves or enters the device.
    fn run_bound(&mut self, state: &mut DeviceTensors, feeds: &[(&str, ArrayViewD<f32>)]) -> Result<Vec<ArrayD<f32>>> {
        let kind = self.runtime.kind;
        let fail = |e: String| failed(kind, e);
        if self.generation != state.generation {
            self.bindings.clear();
            self.generation = state.generation;
        }
        let mut key = Vec::with_capacity(self.ports.reads.len() + self.ports.writes.len());
        for (_, tensor) in self.ports.reads.iter().chain(&self.ports.writes) {
            key.push(state.buffers(tensor)?.front == 1);
        }
        if !self.bindings.contains_key(&key) {
            let binding = self.bind(state).map_err(fail)?;
            self.bindings.insert(key.clone(), binding);
        }
        let Some(binding) = self.bindings.get_mut(&key) else { bail!(Internal, "a binding is gone") };
        if let Some(name) = self.feeds.iter().find(|f| feeds.iter().all(|(n, _)| n != f)) {
            bail!(Internal, "nothing is fed to `{name}`");
        }
        // Bound where they lie: every run binds all of its own before the library looks at them again.
        let fed: Vec<(&str, CowArray<f32, IxDyn>)> = feeds.iter().map(|(n, v)| (*n, v.as_standard_layout())).collect();
        for (name, value) in &fed {
            let lent = TensorRef::from_array_view(value).map_err(|e| fail(e.to_string()))?;
            binding.bind_input(*name, &lent).map_err(|e| fail(format!("input `{name}`: {e}")))?;
        }
        let read = |o: &str, value: &DynValue| to_float(value).map_err(|e| fail(format!("output `{o}`: {e}")));
        let Some(received) = &self.received else {
            let outputs = self.inner.run_binding(binding).map_err(|e| fail(e.to_string()))?;
            return self
                .results
                .iter()
                .map(|o| read(o, outputs.get(o).ok_or_else(|| fail(format!("no output `{o}`")))?))
                .collect();
        };
        // Every output is bound to memory of ours. `Session::run_binding` would make a new handle of each of them, some
        // hundreds a step, and lose a type description with each. SAFETY: the session and the binding live through the
        // call, the binding was made for this session, and both are borrowed mutably or owned here, so that nobody else
        // uses them.
        let status = unsafe {
            let run = ort::api().RunWithBinding;
            ort::Error::result_from_status(run(self.inner.ptr().cast_mut(), std::ptr::null(), binding.ptr()))
        };
        status.map_err(|e: ort::Error| fail(e.to_string()))?;
        self.results.iter().zip(received).map(|(o, value)| read(o, value)).collect()
    }

    fn bind(&self, state: &mut DeviceTensors) -> std::result::Result<IoBinding, String> {
        let text = |e: ort::Error| e.to_string();
        let host =
            MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput).map_err(text)?;
        let mut binding = self.inner.create_binding().map_err(text)?;
        for (_, tensor) in self.ports.writes.iter().filter(|(_, t)| !self.ports.in_place.contains(t)) {
            if let Some(b) = state.tensors.get_mut(tensor)
                && b.both[1 - b.front].is_none()
            {
                let back = self.buffer(&b.shape).map_err(|e| format!("`{tensor}` does not fit the device: {e}"))?;
                b.both[1 - b.front] = Some(back);
            }
        }
        let text_of = |e: Error| e.to_string();
        for (port, tensor) in &self.ports.reads {
            let value = state.buffers(tensor).and_then(|b| b.value(tensor)).map_err(text_of)?;
            binding.bind_input(port, value).map_err(text)?;
        }
        for (port, tensor) in &self.ports.writes {
            let b = state.buffers(tensor).map_err(text_of)?;
            let place = if self.ports.in_place.contains(tensor) { b.front } else { 1 - b.front };
            let value = b.both[place].as_ref().ok_or("a buffer is missing")?;
            binding.bind_output(port, handle(value)?).map_err(text)?;
        }
        for (i, o) in self.results.iter().enumerate() {
            match self.received.as_ref().and_then(|r| r.get(i)) {
                Some(value) => binding.bind_output(o, handle(value)?).map_err(text)?,
                None => binding.bind_output_to_device(o, &host).map_err(text)?,
            }
        }
        Ok(binding)
    }

    /// Memory of the device for a tensor of the state.
    fn buffer(&self, shape: &[usize]) -> ort::Result<DynValue> {
        if self.runtime.device == Device::Cuda {
            let memory = MemoryInfo::new(AllocationDevice::CUDA, 0, AllocatorType::Device, MemoryType::Default)?;
            let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
            return Ok(Tensor::<f32>::new(&Allocator::new(&self.inner, memory)?, dims)?.into_dyn());
        }
        Ok(Tensor::from_array(ArrayD::<f32>::zeros(IxDyn(shape)))?.into_dyn())
    }
}
