//! Records of launches on devices of CubeCL, and tensors that stay where they are.

use burn::{
    backend::DispatchDevice,
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Int, Shape, Tensor},
};
use burn_cubecl::{
    CubeBackend, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype,
    tensor::CubeTensor,
};
use cubecl::{
    client::{Client, Graph},
    server::BufferBinding,
};

use super::kernel::copy_words;
use crate::{
    cube::{MAX_CUBES, MultiTensorLaunch, UNITS},
    task::{Input, InputMapper},
};

/// Launches that the driver holds.
///
/// Burn has a record of its own, which owns the closure that it is made of, and so the model that the
/// optimiser needs; it also panics where a replay fails, and takes what is recorded on trust.
pub(super) struct Launches(Graph);

/// A record that is prepared or being made, and ended in any case: what is launched after it would be part
/// of it otherwise.
struct Window<'a>(&'a Client);

impl Drop for Window<'_> {
    fn drop(&mut self) {
        // Of a record that came to nothing there is an error that says more.
        let _ = self.0.stop_capture();
    }
}

impl Launches {
    /// Records what `compute` launches on a device, after `rehearse` did it often enough for all memory to
    /// be at hand; also returns what `compute` does, whose values are there after a replay.
    pub(super) fn record<R>(
        device: &Device,
        rehearse: impl FnOnce() -> Result<(), String>,
        compute: impl FnOnce() -> R,
    ) -> Result<(Self, R), String> {
        let device = device.clone().inner();
        let DispatchDevice::Cube(cube) = device.as_dispatch() else {
            return Err("the device has no launches".to_owned());
        };
        let client = cube.client();
        // What a record touches it holds, and evaluations need memory beside it.
        let held = device.memory_pool_usage().map_or(0, |pools| pools.bytes_reserved);
        if client.properties().memory.max_memory().is_some_and(|all| held > all / 2) {
            return Err("more than half of the memory of the device is in use".to_owned());
        }
        client.graph_prepare().map_err(|error| error.to_string())?;
        let window = Window(&client);
        rehearse()?;
        client.start_capture().map_err(|error| error.to_string())?;
        let computed = compute();
        std::mem::forget(window);
        let graph = client.stop_capture().map_err(|error| error.to_string())?;
        Ok((Self(graph), computed))
    }

    /// Launches everything again; says whether the driver does.
    ///
    /// # Safety
    /// Whatever the launches read and write is where it was, and this is the thread that recorded them.
    pub(super) unsafe fn replay(&self) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.0.replay() }.is_ok()
    }
}

/// Bytes of a word, which is what is copied.
const WORD: usize = 4;

/// Words that a launch copies of a tensor at most: a unit each, of as many cubes as every device takes.
const MOST_WORDS: usize = UNITS * MAX_CUBES;

/// The tensors of an input in row-major order.
#[derive(Default)]
pub(super) struct Rows {
    tensors: Vec<CubeTensor>,
    /// Whether one is on another device, empty, too long for a launch, or of a type that is no word.
    others: bool,
}

impl Rows {
    /// `None` of an input that cannot be copied.
    pub(super) fn of<I: Input>(input: &I) -> Option<Self> {
        let mut rows = Self::default();
        let _ = input.clone().map_tensors(&mut rows);
        (!rows.others && !rows.tensors.is_empty()).then_some(rows)
    }

    pub(super) fn shapes(&self) -> Vec<Vec<usize>> {
        self.tensors.iter().map(|tensor| tensor.meta.shape().to_vec()).collect()
    }

    fn push(&mut self, tensor: Option<CubeTensor>) {
        let lens = 1..=MOST_WORDS;
        let tensor = tensor.filter(|tensor| {
            tensor.dtype.size() == WORD && lens.contains(&tensor.meta.num_elements())
        });
        self.others |= tensor.is_none();
        self.tensors.extend(tensor.map(into_contiguous));
    }
}

impl InputMapper for Rows {
    fn float<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        self.push(tensor.clone().inner().try_into_primitive::<CubeBackend>().ok());
        tensor
    }

    fn int<const D: usize>(&mut self, tensor: Tensor<D, Int>) -> Tensor<D, Int> {
        self.push(tensor.clone().inner().try_into_primitive::<CubeBackend>().ok());
        tensor
    }
}

/// Memory of its own for each of several tensors.
pub(super) struct Kept {
    /// Rows without space behind them.
    rows: Vec<CubeTensor>,
    shapes: Vec<Shape>,
}

impl Kept {
    /// Memory for tensors like these, which holds nothing yet.
    pub(super) fn like(rows: &Rows) -> Self {
        let kept = rows.tensors.iter().map(|tensor| {
            let (client, device) = (tensor.client.clone(), tensor.device.clone());
            let len = Shape::from([tensor.meta.num_elements()]);
            empty_device_contiguous_dtype(client, device, len, tensor.dtype)
        });
        let shapes = rows.tensors.iter().map(|tensor| tensor.meta.shape().clone());
        Self { rows: kept.collect(), shapes: shapes.collect() }
    }

    /// `input` with this memory in place of its own.
    pub(super) fn input<I: Input>(&self, input: I) -> I {
        input.map_tensors(&mut Replace { rows: self.rows.iter() })
    }

    /// Whether tensors fit into this memory.
    pub(super) fn fits(&self, rows: &Rows) -> bool {
        let fits = |((kept, shape), tensor): ((&CubeTensor, &Shape), &CubeTensor)| {
            shape == tensor.meta.shape() && kept.dtype == tensor.dtype
        };
        let kept = self.rows.iter().zip(&self.shapes);
        self.rows.len() == rows.tensors.len() && kept.zip(&rows.tensors).all(fits)
    }

    /// Writes the values of tensors that fit.
    pub(super) fn fill(&self, rows: Rows) {
        let pairs = rows.tensors.into_iter().zip(&self.rows);
        let mut pairs: Vec<_> = pairs.map(|(from, to)| [from, to.clone()]).collect();
        for launch in MultiTensorLaunch::launches_of_elements(&mut pairs) {
            let (count, dim) = launch.grid();
            let [from, to] = [0, 1].map(|n| launch.tensors(n));
            // SAFETY: units check their place against the length of their tensors, which `fits` found to
            // be equal; both are contiguous and their elements are words.
            unsafe {
                copy_words::launch_unchecked(launch.client(), count, dim, from, to, launch.lens());
            }
        }
    }
}

/// Puts memory in the place of tensors of as many elements.
struct Replace<'a> {
    rows: std::slice::Iter<'a, CubeTensor>,
}

impl Replace<'_> {
    fn next(&mut self) -> CubeTensor {
        // As many as `Rows` found in the same input.
        self.rows.next().cloned().unwrap_or_else(|| unreachable!("a row for each tensor"))
    }
}

impl InputMapper for Replace<'_> {
    fn float<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        let row = Tensor::<1>::from_primitive::<CubeBackend>(self.next());
        Tensor::from_inner(row.reshape(tensor.shape()))
    }

    fn int<const D: usize>(&mut self, tensor: Tensor<D, Int>) -> Tensor<D, Int> {
        let row = Tensor::<1, Int>::from_primitive::<CubeBackend>(self.next());
        Tensor::from_inner(row.reshape(tensor.shape()))
    }
}

/// Where the float parameters of a model are in memory; others are not trained.
///
/// A binding keeps memory from being given to others, and does not count as a use of the tensor: an
/// optimiser still finds that it may step in place.
pub(super) struct Places(Vec<BufferBinding>);

impl Places {
    /// `None` if a parameter is not on a device of CubeCL.
    pub(super) fn of<M: Module>(model: &M) -> Option<Self> {
        struct Visitor(Option<Vec<BufferBinding>>);
        impl ModuleVisitor for Visitor {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let tensor = param.val().inner().try_into_primitive::<CubeBackend>().ok();
                let place = tensor.map(|tensor| tensor.handle.binding());
                self.0 = self.0.take().zip(place).map(|(mut places, place)| {
                    places.push(place);
                    places
                });
            }
        }
        let mut visitor = Visitor(Some(Vec::new()));
        model.visit(&mut visitor);
        visitor.0.map(Self)
    }
}

impl PartialEq for Places {
    fn eq(&self, other: &Self) -> bool {
        let ids =
            |places: &Self| places.0.iter().map(|place| place.memory.id()).collect::<Vec<_>>();
        ids(self) == ids(other)
    }
}
