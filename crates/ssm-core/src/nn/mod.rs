//! Modules around mixers: blocks, stacks, both directions, other orders, attention pooling, dropout.
//! They know mixers only through their trait.

mod attention_pool;
mod backbone;
mod bidirectional;
mod block;
mod dropout;
mod mlp;
mod reordered;

pub use self::{
    attention_pool::{AttentionPool, AttentionPoolConfig},
    backbone::{Backbone, BackboneConfig, BackboneState},
    bidirectional::{Bidirectional, BidirectionalConfig, Merge},
    block::{Block, BlockConfig},
    dropout::dropout,
    mlp::{Mlp, MlpConfig},
    reordered::{Reordered, ReorderedConfig},
};
