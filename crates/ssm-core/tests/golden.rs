//! A whole block against numbers of an independent f64 listing of the equations
//! (`golden/make_golden.py`): the laws of the other tests hold for any wiring, this one for Mamba's only.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, Tensor},
};
use serde::Deserialize;
use ssm_core::{
    init::Init,
    mixers::{MambaConfig, MixerConfig},
    nn::BlockConfig,
};

use crate::support::{assert_error, devices, tensor, values};

#[derive(Deserialize)]
struct Stored {
    shape: Vec<usize>,
    values: Vec<f64>,
}

#[derive(Deserialize)]
struct Golden {
    /// By the names of the published checkpoints.
    weights: BTreeMap<String, Stored>,
    x: Stored,
    y: Stored,
}

/// Puts the stored weights into a module and takes them out of the map.
struct Put<'a> {
    path: Vec<String>,
    weights: &'a mut BTreeMap<String, Stored>,
    device: &'a Device,
}

impl ModuleMapper for Put<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // `Mamba` is the variant of the registry; Burn calls the weight of a norm `gamma`.
        let names: Vec<&str> =
            self.path.iter().map(String::as_str).filter(|name| *name != "Mamba").collect();
        let ours = names.join(".").replace("gamma", "weight");
        let key = self.weights.keys().find(|key| key.to_lowercase() == ours).cloned();
        let key = key.unwrap_or_else(|| panic!("no stored weight for `{ours}`"));
        let stored = self.weights.remove(&key).expect("found above");
        param.map(|own| {
            let (shape, mut values) = (own.dims(), stored.values);
            let mut expected = stored.shape.clone();
            if ours.ends_with("proj.weight") {
                // Burn keeps linear maps as [d_in, d_out].
                let [d_out, d_in] = stored.shape[..] else { panic!("{key} is no matrix") };
                let at = |i: usize| values[i % d_out * d_in + i / d_out];
                values = (0..d_in * d_out).map(at).collect();
                expected.reverse();
            }
            assert_eq!(shape.as_slice(), expected, "{key}");
            tensor(&values, shape, self.device)
        })
    }
}

#[test]
fn a_mamba_block_computes_the_published_equations() {
    let text = include_str!("golden/mamba_block.json");
    for (name, device) in devices() {
        let mut golden: Golden = serde_json::from_str(text).expect("a golden file");
        let mixer = MixerConfig::Mamba(MambaConfig {
            d_state: 3,
            dt_rank: Some(2),
            ..MambaConfig::default()
        });
        let block = BlockConfig { mixer, mlp: None }.init(6, &mut Init::new(0, &device));
        let mut put = Put { path: Vec::new(), weights: &mut golden.weights, device: &device };
        let block = block.map(&mut put);
        let left: Vec<&String> = golden.weights.keys().collect();
        assert!(left.is_empty(), "no parameter for {left:?}");
        let [batch, seq_len, d_model] = golden.x.shape[..] else { panic!("x is no sequence") };
        let y = block.forward(tensor(&golden.x.values, [batch, seq_len, d_model], &device));
        // f32 against f64.
        assert_error(name, &values(&y), &golden.y.values, 1e-6);
    }
}
