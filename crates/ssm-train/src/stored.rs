//! What the files of a checkpoint say of their tensors, compared to what is expected before Burn reads
//! them: it panics at files that are whole and wrong, as at integers in the place of floats.

use std::{collections::BTreeMap, fmt};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Bool, Bytes, DType, Int, Shape, Tensor},
};
use burn_pack::Reader;

/// Type and shape of a tensor.
#[derive(Clone, Debug, PartialEq)]
struct Kind {
    dtype: &'static str,
    shape: Vec<usize>,
}

impl Kind {
    fn new(dtype: &'static str, shape: &Shape) -> Self {
        Self { dtype, shape: shape.to_vec() }
    }

    fn of(tensor: &burn_pack::Tensor) -> Self {
        let dtype = match tensor.dtype {
            DType::F32 => FLOAT,
            dtype if dtype.is_int() || dtype.is_uint() => INT,
            dtype if dtype.is_bool() => BOOL,
            dtype => dtype.name(),
        };
        Self::new(dtype, &tensor.shape)
    }

    fn expect(&self, name: &str, tensor: &burn_pack::Tensor) -> Result<(), String> {
        if Self::of(tensor) == *self {
            return Ok(());
        }
        let got = Self::new(tensor.dtype.name(), &tensor.shape);
        Err(format!("`{name}`: expected {self}, got {got}"))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
    }
}

/// Parameters and optimiser state are f32 for every precision of a run.
const FLOAT: &str = "f32";
const INT: &str = "integers";
const BOOL: &str = "truth values";

/// Whether `bytes` hold the parameters of `model`, and nothing else.
pub(crate) fn fits_model<M: Module>(bytes: &Bytes, model: &M) -> Result<(), String> {
    let mut expected = Expected::default();
    model.visit(&mut expected);
    let (tensors, _) = read(bytes)?;
    let mut owners = BTreeMap::new();
    for tensor in &tensors {
        let name = &tensor.name;
        let kind = expected.kinds.remove(name);
        kind.ok_or_else(|| format!("the model has no `{name}`"))?.expect(name, tensor)?;
        let id = tensor.param_id.ok_or_else(|| format!("`{name}` has no identity"))?;
        if let Some(other) = owners.insert(id, name) {
            return Err(format!("`{name}` has the identity of `{other}`"));
        }
    }
    match expected.kinds.keys().next() {
        Some(name) => Err(format!("it has no `{name}`")),
        None => Ok(()),
    }
}

/// Whether `bytes` hold the state of an optimiser for the parameters in the bytes `model`: tensors of
/// the shape of a parameter, named by its identity.
pub(crate) fn fits_optimizer(bytes: &Bytes, model: &Bytes) -> Result<(), String> {
    let (parameters, _) = read(model)?;
    let kinds: BTreeMap<u64, Kind> =
        parameters.iter().filter_map(|tensor| Some((tensor.param_id?, Kind::of(tensor)))).collect();
    let kind_of = |name: &str| {
        let id: Option<u64> = name.split_once('.').and_then(|(id, _)| id.parse().ok());
        let found = id.and_then(|id| Some((id, kinds.get(&id)?)));
        found.ok_or_else(|| format!("`{name}` belongs to no parameter of `model.bpk`"))
    };
    let (tensors, scalars) = read(bytes)?;
    for tensor in &tensors {
        let (id, kind) = kind_of(&tensor.name)?;
        kind.expect(&tensor.name, tensor)?;
        if tensor.param_id != Some(id) {
            return Err(format!("`{}` belongs to another parameter", tensor.name));
        }
    }
    for (name, value) in &scalars {
        let Some(owner) = name.strip_suffix("__rank") else { continue };
        let rank = kind_of(owner)?.1.shape.len();
        if usize::try_from(*value) != Ok(rank) {
            return Err(format!("`{name}`: expected {rank}, got {value:?}"));
        }
    }
    Ok(())
}

type Scalars = BTreeMap<String, burn_pack::Scalar>;

/// Tensors of a file, none of which begins where its numbers cannot be read.
fn read(bytes: &Bytes) -> Result<(Vec<burn_pack::Tensor>, Scalars), String> {
    let text = |error: burn_pack::Error| error.to_string();
    let reader = Reader::from_bytes(bytes.clone()).map_err(text)?;
    let scalars = reader.scalars().clone();
    let tensors = reader.into_tensors().map_err(text)?;
    for tensor in &tensors {
        let place = tensor.to_bytes().map_err(text)?.as_ptr().addr();
        if !place.is_multiple_of(tensor.dtype.size().max(1)) {
            return Err(format!("`{}` begins in the middle of a number", tensor.name));
        }
    }
    Ok((tensors, scalars))
}

/// Every parameter of a model by its path.
#[derive(Default)]
struct Expected {
    path: Vec<String>,
    kinds: BTreeMap<String, Kind>,
}

impl Expected {
    fn add(&mut self, dtype: &'static str, shape: &Shape) {
        self.kinds.insert(self.path.join("."), Kind::new(dtype, shape));
    }
}

impl ModuleVisitor for Expected {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.add(FLOAT, &param.lazy_shape());
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.add(INT, &param.lazy_shape());
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.add(BOOL, &param.lazy_shape());
    }
}

#[cfg(test)]
mod tests {
    use burn_pack::Writer;

    use super::*;

    /// A file with one tensor of zeros.
    fn file(name: &str, shape: [usize; 2], id: u64) -> Bytes {
        let zeros = Bytes::from_bytes_vec(vec![0; 4 * shape[0] * shape[1]]);
        let tensor = burn_pack::Tensor::new(name.into(), DType::F32, shape, Some(id), zeros);
        Writer::new(vec![tensor]).into_bytes().unwrap()
    }

    #[test]
    fn state_of_another_optimizer_is_refused_by_name() {
        let model = file("out.weight", [2, 3], 7);
        let refused =
            |name: &str, shape: [usize; 2], id: u64| fits_optimizer(&file(name, shape, id), &model);
        assert_eq!(refused("7.moment_1", [2, 3], 7), Ok(()));
        for (name, shape, id, message) in [
            ("9.moment_1", [2, 3], 9, "`9.moment_1` belongs to no parameter of `model.bpk`"),
            ("moment_1", [2, 3], 7, "`moment_1` belongs to no parameter of `model.bpk`"),
            ("7.moment_1", [3, 2], 7, "`7.moment_1`: expected f32 [2, 3], got f32 [3, 2]"),
            ("7.moment_1", [2, 3], 8, "`7.moment_1` belongs to another parameter"),
        ] {
            assert_eq!(refused(name, shape, id), Err(message.to_owned()));
        }
    }
}
