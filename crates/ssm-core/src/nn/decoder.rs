//! A backbone for single tokens: the form of a model that writes.

use burn::tensor::{FloatDType, Tensor};

use super::{Backbone, BackboneState, Block};
use crate::{
    mixers::{Decoder, Mixer, MixerState, Norm, Stream},
    ops::{
        decode::{Product, add_norm, copied, product},
        linear::linear_loose,
    },
};

/// The blocks of a [`Backbone`] for single tokens, with their states and the final norm.
#[derive(Debug)]
pub struct BackboneDecoder {
    layers: Vec<Box<dyn Decoder>>,
    norm_f: Norm,
}

impl Block {
    fn decoder(&self, state: &MixerState, dtype: FloatDType) -> Option<Box<dyn Decoder>> {
        let (norm, mixer) = self.norm_and_mixer()?;
        mixer.decoder((norm.gamma.val(), norm.epsilon), state, dtype)
    }
}

impl Backbone {
    /// This backbone for single tokens after `state`, its matrices in `dtype`. `None` if a mixer has no
    /// such form, or a block has a feed-forward part.
    pub fn decoder(&self, state: &BackboneState, dtype: FloatDType) -> Option<BackboneDecoder> {
        let (layers, norm_f) = self.layers_and_norm();
        let layers =
            layers.iter().zip(&state.layers).map(|(block, state)| block.decoder(state, dtype));
        Some(BackboneDecoder {
            layers: layers.collect::<Option<_>>()?,
            norm_f: (copied(norm_f.gamma.val(), FloatDType::F32), norm_f.epsilon),
        })
    }
}

impl BackboneDecoder {
    /// One token of every sequence, `[batch, d_model]` in f32, through all blocks.
    pub fn step(&mut self, x: Tensor<2>) -> Stream {
        let stream = Stream { x, add: None };
        self.layers.iter_mut().fold(stream, |stream, layer| layer.step(stream))
    }

    /// The normed outputs times `weight`, `[n_rows, d_model]`: `[batch, n_rows]`.
    pub fn head(&self, Stream { x, add }: Stream, weight: Tensor<2>) -> Tensor<2> {
        let (norm, epsilon) = self.norm_f.clone();
        // What stands for a few sequences has nothing left to add.
        let Some(add) = add else {
            return product(Product { x, weight, norm: Some((norm, epsilon)), add: None });
        };
        let dtype = FloatDType::from(weight.dtype());
        let (_, normed) = add_norm(x, Some(add), norm, epsilon, dtype);
        linear_loose(weight.transpose(), None, normed.unsqueeze_dim(1)).squeeze_dim(1)
    }

    /// A copy of the states.
    pub fn save(&mut self) -> Vec<Vec<Tensor<3>>> {
        self.layers.iter_mut().map(|layer| layer.save()).collect()
    }

    /// Goes on from states that were saved, in the same buffers.
    pub fn restore(&mut self, saved: &[Vec<Tensor<3>>]) {
        self.layers.iter_mut().zip(saved).for_each(|(layer, saved)| layer.restore(saved));
    }
}
