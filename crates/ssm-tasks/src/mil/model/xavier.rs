//! The published program's last initialisation: every linear layer anew, whatever it is for.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::Tensor,
};
use ssm_core::init::Init;

/// Draws the weight of every linear layer from Xavier's normal distribution and sets its bias to 0.
///
/// The projection of Mamba's step size is a linear layer too. Its bias, which should make the step
/// size log-uniform in `[0.001, 0.1]`, becomes 0, so that the step size starts at softplus(0) = 0.69.
///
/// # Source
/// `initialize_weights`, isyangshu/MambaMIL@9aea39e; Glorot & Bengio 2010 for the distribution.
pub(super) fn reinitialise<M: Module>(model: M, init: &mut Init) -> M {
    model.map(&mut Xavier { init, containers: Vec::new(), name: String::new() })
}

struct Xavier<'a> {
    init: &'a mut Init,
    /// Kinds of the modules around the parameter, the innermost last.
    containers: Vec<bool>,
    name: String,
}

impl ModuleMapper for Xavier<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.containers.push(container_type == "Struct:Linear");
        name.clone_into(&mut self.name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.containers.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.containers.last() != Some(&true) {
            return param;
        }
        let dims = param.dims();
        let fresh = if self.name == "weight" {
            let deviation = (2.0 / dims.iter().sum::<usize>() as f64).sqrt();
            self.init.normal(dims, 0.0, deviation)
        } else {
            Tensor::zeros(dims, self.init.device())
        };
        // A new parameter: mapping the old one would leave a value that nothing differentiates.
        Param::from_tensor(fresh)
    }
}
