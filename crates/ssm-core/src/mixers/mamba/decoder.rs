//! Mamba's block for single tokens.

use burn::tensor::{FloatDType, Tensor};

use super::{Mamba, MambaState};
use crate::{
    mixers::{Decoder, Norm, Stream},
    ops::{
        decode::{
            Conv, Product, StateStep, add_norm, conv, copied, product, product_conv, state,
            state_params,
        },
        linear::linear_loose,
    },
};

/// Most sequences for which every product is one of single rows: from then on a matrix product, which
/// reads the weights once for all of them, is worth its launches.
const FEW: usize = 8;

/// `x + mamba(norm(x))` for single tokens.
#[derive(Debug)]
pub(super) struct MambaDecoder {
    norm: Norm,
    products: Products,
    taps: Tensor<2>,
    conv_bias: Option<Tensor<1>>,
    dt_weight: Tensor<2>,
    /// As in [`StateStep`].
    params: Tensor<2>,
    state: MambaState,
}

/// In-projection, `x_proj` and out-projection.
#[derive(Clone, Debug)]
enum Products {
    /// For a few sequences, each `[d_out, d_in]`.
    Rows([Tensor<2>; 3]),
    /// For many sequences, each `[d_in, d_out]`.
    Columns([Tensor<2>; 3]),
}

impl MambaDecoder {
    /// `None` for what the kernels do not know: biases of the projections, and a mixer that is not
    /// selective.
    pub(super) fn new(
        mamba: &Mamba,
        norm: Norm,
        state: &MambaState,
        dtype: FloatDType,
    ) -> Option<Self> {
        if !mamba.selective || mamba.in_proj.bias.is_some() || mamba.out_proj.bias.is_some() {
            return None;
        }
        let [batch, ..] = state.ssm.dims();
        let rows = |weight: Tensor<2>| copied(weight.transpose(), dtype);
        let f32s = |vector: Tensor<1>| copied(vector, FloatDType::F32);
        let matrices = [&mamba.in_proj, &mamba.x_proj, &mamba.out_proj].map(|of| of.weight.val());
        Some(Self {
            norm: (f32s(norm.0), norm.1),
            products: match batch <= FEW {
                true => Products::Rows(matrices.map(rows)),
                false => Products::Columns(matrices.map(|weight| copied(weight, dtype))),
            },
            taps: copied(mamba.conv1d.weight.val().squeeze_dim(1), FloatDType::F32),
            conv_bias: mamba.conv1d.bias.as_ref().map(|bias| f32s(bias.val())),
            dt_weight: rows(mamba.dt_proj.weight.val()),
            // `init` gives `dt_proj` a bias.
            params: state_params(
                copied(mamba.a_log.val(), FloatDType::F32),
                f32s(mamba.dt_proj.bias.as_ref()?.val()),
                f32s(mamba.d.val()),
            ),
            state: MambaState {
                conv: copied(state.conv.clone(), FloatDType::F32),
                ssm: copied(state.ssm.clone(), FloatDType::F32),
            },
        })
    }

    fn conv(&self) -> Conv {
        let (taps, bias) = (self.taps.clone(), self.conv_bias.clone());
        Conv { taps, bias, past: self.state.conv.clone() }
    }

    /// The recurrence; `u` and `z` as in [`StateStep`].
    fn scan(&mut self, u: Tensor<2>, z: Tensor<2>, projected: Tensor<2>) -> Tensor<2> {
        let (y, ssm) = state(StateStep {
            u,
            z,
            projected,
            dt_weight: self.dt_weight.clone(),
            params: self.params.clone(),
            state: self.state.ssm.clone(),
        });
        self.state.ssm = ssm;
        y
    }

    /// Four launches.
    fn step_rows(&mut self, [in_proj, x_proj, out_proj]: [Tensor<2>; 3], x: Tensor<2>) -> Stream {
        let plain = |weight, x| Product { x, weight, norm: None, add: None };
        let normed = Product { norm: Some(self.norm.clone()), ..plain(in_proj, x.clone()) };
        let (uz, past) = product_conv(normed, self.conv()); // [batch, 2 * d_inner]
        self.state.conv = past;
        let projected = product(plain(x_proj, uz.clone()));
        let y = self.scan(uz.clone(), uz, projected);
        Stream { x: product(Product { add: Some(x), ..plain(out_proj, y) }), add: None }
    }

    /// Three launches and three matrix products.
    fn step_columns(
        &mut self,
        [in_proj, x_proj, out_proj]: [Tensor<2>; 3],
        Stream { x, add }: Stream,
    ) -> Stream {
        let times = |weight: Tensor<2>, x: Tensor<2>| -> Tensor<2> {
            linear_loose(weight, None, x.unsqueeze_dim(1)).squeeze_dim(1)
        };
        let dtype = FloatDType::from(in_proj.dtype());
        let (norm, epsilon) = self.norm.clone();
        let (x, normed) = add_norm(x, add, norm, epsilon, dtype);
        let xz = times(in_proj, normed);
        let (u, past) = conv(xz.clone(), self.conv());
        self.state.conv = past;
        let projected = times(x_proj, u.clone());
        let y = self.scan(u, xz, projected);
        Stream { x, add: Some(times(out_proj, y)) }
    }
}

impl Decoder for MambaDecoder {
    fn step(&mut self, stream: Stream) -> Stream {
        match self.products.clone() {
            Products::Rows(weights) => self.step_rows(weights, stream.x),
            Products::Columns(weights) => self.step_columns(weights, stream),
        }
    }

    fn carried(&mut self) -> Vec<&mut Tensor<3>> {
        vec![&mut self.state.conv, &mut self.state.ssm]
    }
}
