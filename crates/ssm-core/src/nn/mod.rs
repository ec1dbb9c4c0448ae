//! Modules around mixers: blocks, stacks, both directions, other orders, attention pooling, dropout.
//! They know mixers only through their trait.

mod attention_pool;
mod backbone;
mod bidirectional;
mod block;
mod decoder;
mod dropout;
mod mlp;
mod reordered;
mod residual;

pub use self::{
    attention_pool::{AttentionPool, AttentionPoolConfig},
    backbone::{Backbone, BackboneConfig, BackboneState},
    bidirectional::{Bidirectional, BidirectionalConfig, Merge},
    block::{Block, BlockConfig},
    decoder::BackboneDecoder,
    dropout::{dropout, seed_on, seeded},
    mlp::{Mlp, MlpConfig},
    reordered::{Reordered, ReorderedConfig},
    residual::compute_in,
};
