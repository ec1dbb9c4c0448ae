//! Modules around mixers: blocks, stacks, both directions. Know mixers only through their trait.

mod backbone;
mod bidirectional;
mod block;
mod mlp;

pub use self::{
    backbone::{Backbone, BackboneConfig, BackboneState},
    bidirectional::{Bidirectional, BidirectionalConfig, Merge},
    block::{Block, BlockConfig},
    mlp::{Mlp, MlpConfig},
};
