//! The seam between the public functions and the backends.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

use burn::backend::{Backend, ExtensionType, backend_extension, tensor::FloatTensor};

use crate::ops::primitive::Maybe;

/// Most parts that an output is cut into.
pub const MAX_PARTS: usize = 3;

/// The tensor arguments of a linear map.
#[derive(ExtensionType, Clone, Debug)]
pub struct LinearPrimitives<B: Backend> {
    /// `[.., d_in]`
    pub x: FloatTensor<B>,
    /// `[d_in, d_out]`
    pub weight: FloatTensor<B>,
    /// `[d_out]`
    #[extension_type]
    pub bias: Maybe<B>,
}

/// One tensor for each part of the output, absent where there is none.
#[derive(ExtensionType, Clone, Debug)]
pub struct Parts<B: Backend> {
    /// Of the first part.
    #[extension_type]
    pub first: Maybe<B>,
    /// Of the second part.
    #[extension_type]
    pub second: Maybe<B>,
    /// Of the third part.
    #[extension_type]
    pub third: Maybe<B>,
}

impl<B: Backend> Parts<B> {
    /// In order.
    pub fn into_options(self) -> [Option<FloatTensor<B>>; MAX_PARTS] {
        [self.first, self.second, self.third].map(Maybe::into_option)
    }
}

/// Gradients in the shapes of [`LinearPrimitives`].
#[derive(ExtensionType, Clone, Debug)]
pub struct LinearGradPrimitives<B: Backend> {
    /// Gradient of `x`, if it was asked for.
    #[extension_type]
    pub x: Maybe<B>,
    /// Gradient of `weight`, if it was asked for.
    #[extension_type]
    pub weight: Maybe<B>,
    /// Gradient of `bias`.
    #[extension_type]
    pub bias: Maybe<B>,
}

/// What is not a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinearOptions {
    /// Widths of the parts, zero behind the last.
    pub widths: [usize; MAX_PARTS],
    /// Whether the output is f32 whatever the type of `x`: sums that are not rounded.
    pub wide: bool,
    /// Whether the backward pass computes the gradient of `x`.
    pub grad_x: bool,
    /// Whether the backward pass computes the gradient of `weight`.
    pub grad_weight: bool,
}

impl LinearOptions {
    /// First column and width of each part.
    pub fn columns(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let used = self.widths.iter().copied().take_while(|width| *width > 0);
        used.scan(0, |first, width| {
            let at = *first;
            *first += width;
            Some((at, width))
        })
    }
}

/// Linear maps of a backend.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait LinearOps: Backend {
    /// The parts of `x W + bias`, each `[.., width]`.
    fn linear_fwd(
        #[extension_type] input: LinearPrimitives<Self>,
        options: LinearOptions,
    ) -> Vec<FloatTensor<Self>>;

    /// Gradients of the sum over parts of `sum(y * grad_y)`; an absent part counts as zero.
    fn linear_bwd(
        #[extension_type] input: LinearPrimitives<Self>,
        #[extension_type] grad_y: Parts<Self>,
        options: LinearOptions,
    ) -> LinearGradPrimitives<Self>;
}
