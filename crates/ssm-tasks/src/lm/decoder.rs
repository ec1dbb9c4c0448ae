//! A language model that writes: single tokens through kernels made for them, in one captured graph.
//!
//! A token is a hundred launches of a few microseconds each, and the host needs longer than the device
//! to order them. So they are recorded once; what a token reads and leaves stays in the same buffers, the
//! token itself included, and nothing is read in between unless somebody asks.

use std::{cell::RefCell, fmt, rc::Rc};

use burn::tensor::{DType, Device, FloatDType, Graph, Int, Tensor, TensorData, capture};
use ssm_core::{
    nn::{BackboneDecoder, BackboneState},
    ops::decode::{Chosen, argmax, copied, set},
};
use ssm_train::error::Error;

use super::model::MambaLm;

/// A model and its state for writing.
pub struct Decoder {
    live: Rc<RefCell<Live>>,
    graph: Option<Graph<Tensor<2>, Step>>,
    device: Device,
    capacity: usize,
}

type Step = Box<dyn FnMut() -> Tensor<2>>;

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// What a token touches.
struct Live {
    backbone: BackboneDecoder,
    /// `[n_rows, d_model]`
    embedding: Tensor<2>,
    /// The embedding in the scale of the logits; the same memory where that is 1.
    head: Tensor<2>,
    chosen: Chosen,
    n_vocab: usize,
}

impl Live {
    /// The newest token of every sequence to the logits of the one after it, of which the likeliest
    /// becomes the newest.
    fn step(&mut self) -> Tensor<2> {
        let x = self.embedding.clone().select(0, self.chosen.newest.clone());
        let stream = self.backbone.step(x.cast(FloatDType::F32));
        let logits = self.backbone.head(stream, self.head.clone());
        self.chosen = argmax(logits.clone(), self.chosen.clone(), self.n_vocab);
        logits
    }
}

/// Zeros in one row of memory: they are written in place, and a device may put space behind the rows of
/// what has several.
fn integers<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::<1, Int>::zeros([shape.iter().product::<usize>()], (device, DType::I32)).reshape(shape)
}

impl Decoder {
    /// A model that goes on from the state of a prefill, its matrices in `dtype`; tokens are those below
    /// `n_vocab`, and the last `capacity` greedily chosen ones are kept. `None` for models that have no
    /// form for single tokens that is faster than [`MambaLm::step`].
    #[must_use]
    pub fn new(
        model: &MambaLm,
        state: &BackboneState,
        batch: usize,
        n_vocab: usize,
        dtype: FloatDType,
        capacity: usize,
    ) -> Option<Self> {
        let device = model.device();
        let chosen = Chosen {
            newest: integers([batch], &device),
            ring: integers([batch, capacity], &device),
            count: integers([batch], &device),
        };
        let backbone = model.backbone.decoder(state, dtype)?;
        let embedding = copied(model.embedding.weight.val(), dtype);
        let head = model.scaled(embedding.clone());
        let live = Rc::new(RefCell::new(Live { backbone, embedding, head, chosen, n_vocab }));
        Some(Self { live, graph: None, device, capacity })
    }

    /// Records the launches of a token, so that from now on one call orders them all; says whether the
    /// device can. The state is as it was, the newest tokens have to be fed again.
    pub fn capture(&mut self) -> bool {
        let saved = self.live.borrow_mut().backbone.save();
        let live = self.live.clone();
        let step: Step = Box::new(move || live.borrow_mut().step());
        let graph = capture(&self.device, step);
        let captured = graph.is_hardware();
        self.graph = Some(graph);
        let live = &mut *self.live.borrow_mut();
        live.backbone.restore(&saved);
        let [batch] = live.chosen.count.dims();
        live.chosen.count = set(live.chosen.count.clone(), integers([batch], &self.device));
        captured
    }

    /// Sets the newest token of every sequence.
    pub fn feed(&mut self, tokens: &[u32]) {
        let values: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
        let data = TensorData::new(values, [tokens.len()]);
        let tokens = Tensor::from_data(data, (&self.device, DType::I32));
        let chosen = &mut self.live.borrow_mut().chosen;
        chosen.newest = set(chosen.newest.clone(), tokens);
    }

    /// Reads the newest token of every sequence and returns the logits of the one after it, `[batch,
    /// n_rows]`, until the next step; the likeliest becomes the newest.
    pub fn step(&mut self) -> Tensor<2> {
        match &mut self.graph {
            // SAFETY: `live` owns every buffer of the graph but its intermediate ones, which the graph
            // keeps, and lives as long as the graph; a decoder stays on the thread, and so on the
            // stream, that captured it, and all its buffers are written there.
            Some(graph) => unsafe { graph.replay() }.clone(),
            None => self.live.borrow_mut().step(),
        }
    }

    /// The last greedily chosen tokens of every sequence, oldest first.
    ///
    /// # Errors
    /// A device failure, and logits that were not finite numbers since so many tokens.
    pub fn chosen(&self) -> Result<Vec<Vec<u32>>, Error> {
        let chosen = self.live.borrow().chosen.clone();
        let failed = |reason: String| Error::Device {
            device: format!("{:?}", self.device),
            message: reason,
            hint: None,
        };
        let read = |data: Result<Vec<i32>, String>| data.map_err(failed);
        let ring = read(chosen.ring.try_into_vec_as().map_err(|e| e.to_string()))?;
        let count = read(chosen.count.try_into_vec_as().map_err(|e| e.to_string()))?;
        let row = |(place, (row, count)): (usize, (&[i32], &i32))| {
            let count = *count as usize;
            let first = count.saturating_sub(self.capacity);
            let tokens = (first..count).map(|at| row[at % self.capacity]);
            tokens
                .map(|token| u32::try_from(token).map_err(|_| lost(&self.device, place)))
                .collect()
        };
        ring.chunks(self.capacity).zip(&count).enumerate().map(row).collect()
    }
}

/// The error of a text, counted from 0, whose next token has logits that are no finite numbers.
pub(super) fn lost(device: &Device, text: usize) -> Error {
    Error::Device {
        device: format!("{device:?}"),
        message: format!(
            "choosing a token: the logits of text {} are not finite numbers",
            text + 1
        ),
        hint: Some(
            "`ssm doctor` tests the device; the weights may hold NaN or overflow".to_owned(),
        ),
    }
}
