//! Operations, mixers and backbones of selective state space models, for any backend of Burn.
//!
//! | room | what lives there | may import |
//! |---|---|---|
//! | [`ops`] | recurrences and convolutions: specification, reference, kernels, gradients | Burn |
//! | [`mixers`] | sequence mixers behind one trait, one file each | `ops`, `order`, `init` |
//! | [`nn`] | blocks, stacks, both directions, pooling | `mixers`, `order`, `init` |
//! | [`order`] | orders in which a sequence is scanned | `ops` |
//! | [`init`] | initial values from a seed | Burn |
//!
//! # Glossary
//! | symbol | code | meaning |
//! |---|---|---|
//! | B | `batch` | batch size |
//! | L | `seq_len` | sequence length |
//! | D | `d_model` | residual width |
//! | E | `expand`, `d_inner` | width of the scan is `expand * d_model` |
//! | N | `d_state` | state size of one channel |
//! | R | `dt_rank` | rank of the step size's projection |
//! | Δ | `delta` | step size, after softplus |
//! | A | `a_log`, `a = -exp(a_log)` | state matrix, diagonal |
//! | B, C | `b`, `c` | input and output matrix, one row a step |
//! | h | `state` | recurrent state `[batch, d_inner, d_state]` |
//!
//! The layout of sequences is `[batch, seq_len, channels]` everywhere.

#![cfg_attr(
    not(any(feature = "flex", feature = "ndarray")),
    allow(unused, reason = "kernels of processors, in a build that tests those of graphics cards")
)]

pub mod init;
pub mod mixers;
pub mod nn;
pub mod ops;
pub mod order;
