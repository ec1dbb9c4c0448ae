//! From `[optim]` to a Burn optimiser with parameter groups.

use burn::{
    module::{Module, ModuleVisitor, Param, ParamGroup},
    optim::{GradientsParams, ModuleOptimizer},
    tensor::{Device, Tensor},
};

use crate::{
    adam::{Adam, Decay, Route, together},
    config::Optim,
};

/// Builds the optimiser of a run; its state is empty and is loaded afterwards.
///
/// Weight decay reaches only what [`decayed_parameters`] lists.
pub fn build<M: Module>(config: &Optim, model: &M, device: &Device) -> ModuleOptimizer {
    let route = Route::of(device);
    let (betas, eps, decay, no_decay) = match *config {
        Optim::Adam { betas, eps, weight_decay, .. } => {
            (betas, eps, Decay::L2(weight_decay), Decay::L2(0.0))
        }
        Optim::AdamW { betas, eps, weight_decay, .. } => {
            (betas, eps, Decay::Decoupled(weight_decay), Decay::Decoupled(0.0))
        }
    };
    let rest = Adam { betas, eps, decay: no_decay, route };
    let optimizer = ModuleOptimizer::from(rest);
    if decay == no_decay {
        return optimizer;
    }
    let group = ParamGroup::from_paths(decayed_parameters(model));
    optimizer.with_group(group, Adam { decay, ..rest }, None)
}

/// A step of every parameter that has a gradient; on devices of CubeCL small ones share launches.
pub fn step<M: Module>(
    optimizer: &mut ModuleOptimizer,
    lr: f64,
    model: M,
    gradient: GradientsParams,
) -> M {
    together(|| optimizer.step(lr, model, gradient))
}

/// Paths of the parameters that weight decay applies to: matrices and larger, named `weight`,
/// outside normalisation layers.
///
/// Biases, gains and the parameters of a recurrence (`a_log`, `d`) have a meaning at their own
/// scale, and pulling them to zero changes the model; this is the rule of nanoGPT with names.
pub fn decayed_parameters<M: Module>(model: &M) -> Vec<String> {
    let mut selection = Selection::default();
    model.visit(&mut selection);
    selection.paths
}

#[derive(Default)]
struct Selection {
    path: Vec<String>,
    paths: Vec<String>,
}

impl ModuleVisitor for Selection {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
        let Some((name, modules)) = self.path.split_last() else { return };
        let in_norm = modules.iter().any(|module| module.to_lowercase().contains("norm"));
        if D >= 2 && name == "weight" && !in_norm {
            self.paths.push(self.path.join("."));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::{
        nn::{
            LayerNorm, LayerNormConfig, Linear, LinearConfig,
            conv::{Conv1d, Conv1dConfig},
        },
        optim::GradientsParams,
    };

    use super::*;

    #[derive(Module, Debug)]
    struct Block {
        in_proj: Linear,
        conv1d: Conv1d,
        norm: LayerNorm,
        inner_norm: Linear,
        a_log: Param<Tensor<2>>,
        d: Param<Tensor<1>>,
    }

    fn block(device: &Device) -> Block {
        Block {
            in_proj: LinearConfig::new(2, 3).init(device),
            conv1d: Conv1dConfig::new(2, 2, 2).init(device),
            norm: LayerNormConfig::new(2).init(device),
            inner_norm: LinearConfig::new(2, 2).init(device),
            a_log: Param::from_tensor(Tensor::ones([2, 2], device)),
            d: Param::from_tensor(Tensor::ones([2], device)),
        }
    }

    #[test]
    fn only_matrices_named_weight_outside_norms_decay() {
        let device = crate::device::any_device().autodiff();
        let block = block(&device);
        assert_eq!(decayed_parameters(&block), ["in_proj.weight", "conv1d.weight"]);

        let mut grads = GradientsParams::new();
        let inner = device.inner();
        grads.register(block.in_proj.weight.id, Tensor::<2>::zeros([2, 3], &inner));
        grads.register(block.a_log.id, Tensor::<2>::zeros([2, 2], &inner));
        grads.register(block.d.id, Tensor::<1>::zeros([2], &inner));
        let config = Optim::AdamW { lr: 0.1, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.5 };
        // Looked at now: some devices fetch data when it is looked at, and the step works in place.
        let before: Vec<f32> = block.in_proj.weight.val().into_data().iter::<f32>().collect();
        let after = build(&config, &block, &inner).step(0.1, block, grads);
        let expected: Vec<f32> = before.iter().map(|w| w * 0.95).collect();
        let got: Vec<f32> = after.in_proj.weight.val().into_data().iter::<f32>().collect();
        let close = got.iter().zip(&expected).all(|(got, expected)| (got - expected).abs() <= 1e-7);
        assert!(close, "{got:?}, expected {expected:?}");
        assert!(after.a_log.val().into_data().iter::<f32>().all(|a| a == 1.0));
        assert!(after.d.val().into_data().iter::<f32>().all(|d| d == 1.0));
    }
}
