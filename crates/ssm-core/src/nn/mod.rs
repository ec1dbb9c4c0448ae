//! Modules around mixers: blocks, stacks, both directions, dropout. Know mixers only through their trait.

mod backbone;
mod bidirectional;
mod block;
mod dropout;
mod mlp;

pub use self::{
    backbone::{Backbone, BackboneConfig, BackboneState},
    bidirectional::{Bidirectional, BidirectionalConfig, Merge},
    block::{Block, BlockConfig},
    dropout::dropout,
    mlp::{Mlp, MlpConfig},
};
