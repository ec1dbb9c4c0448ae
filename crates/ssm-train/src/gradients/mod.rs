//! The gradient of one optimiser step: summed over micro-batches, measured, clipped.

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cube")]
mod kernel;
mod rows;

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{DType, ExecutionError, Tensor, TensorData, Transaction},
};

#[cfg(feature = "cube")]
use self::cube::{Scaling, Squares};

use crate::{collective::Collective, error::Error, task::Loss};

/// Longest gradient that reaches an optimiser. Adam squares it in f32, where the square of 1.8e19 is
/// infinite: the second moment would stay so, and the weight would never move again.
const LONGEST: f64 = 1e19;

/// Sums what the micro-batches of one optimiser step say.
pub(crate) struct Accumulation<M> {
    sum: GradientsAccumulator<M>,
    losses: Vec<(Tensor<1>, f64)>,
    /// Sum of losses by weight, and of weights, once several replicas have told theirs.
    shared: Option<[f64; 2]>,
    /// Whether more than one micro-batch is expected.
    several: bool,
}

/// A gradient that is ready for the optimiser, with its numbers.
pub(crate) struct Gradient {
    /// Mean over all samples of the step, clipped.
    pub(crate) params: GradientsParams,
    /// Mean loss over all samples of the step.
    pub(crate) loss: f64,
    /// Global L2 norm before clipping.
    pub(crate) norm: f64,
    /// And after it.
    pub(crate) clipped: f64,
    /// Samples in the step.
    pub(crate) weight: f64,
    /// Mean loss of each micro-batch that this replica computed, in order.
    pub(crate) losses: Vec<Tensor<1>>,
}

impl<M: Module> Accumulation<M> {
    pub(crate) fn new(micro_batches: u64) -> Self {
        let sum = GradientsAccumulator::new();
        Self { sum, losses: Vec::new(), shared: None, several: micro_batches > 1 }
    }

    /// Differentiates a micro-batch and adds its gradient, weighted by its samples.
    pub(crate) fn add(&mut self, model: &M, loss: Loss) {
        let Loss { mean, weight } = loss;
        self.losses.push((mean.clone().inner(), weight));
        let scaled = if self.several { mean.mul_scalar(weight) } else { mean };
        let grads = scaled.backward();
        self.sum.accumulate(model, GradientsParams::from_grads(grads, model));
    }

    /// Takes the gradient of the only micro-batch, and its loss without the graph of autodiff.
    #[cfg(feature = "cube")]
    pub(crate) fn set(&mut self, model: &M, loss: Loss, grads: GradientsParams) {
        self.losses.push((loss.mean, loss.weight));
        self.sum.accumulate(model, grads);
    }

    /// Sum of the losses by weight, and of the weights.
    pub(crate) fn numbers(&self) -> Result<[f64; 2], ExecutionError> {
        if self.losses.is_empty() {
            return Ok([0.0; 2]);
        }
        let losses = self.losses.iter().map(|(loss, _)| loss.clone());
        Ok(self.weighted(&read(losses.collect())?.concat()))
    }

    fn weighted(&self, losses: &[f64]) -> [f64; 2] {
        let total = losses.iter().zip(&self.losses).map(|(loss, (_, weight))| loss * weight);
        [total.sum(), self.losses.iter().map(|(_, weight)| weight).sum()]
    }

    /// Adds up what all replicas have; `numbers` are those of this one.
    pub(crate) fn share(
        &mut self,
        model: &M,
        mut numbers: [f64; 2],
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let mut values = Vec::new();
        if !self.losses.is_empty() {
            let mut gather = Gather { params: self.sum.grads(), values: Vec::new() };
            model.visit(&mut gather);
            values = gather.values;
        }
        collective.sum(&mut values, &mut numbers)?;
        let mut spread = Spread { params: GradientsParams::new(), values: &values };
        model.visit(&mut spread);
        self.sum = GradientsAccumulator::new();
        self.sum.accumulate(model, spread.params);
        self.shared = Some(numbers);
        Ok(())
    }

    /// The mean gradient, scaled down to `clip_norm` where it is longer.
    ///
    /// Clipping multiplies by `clip_norm / (norm + 1e-6)`, as `torch.nn.utils.clip_grad_norm_` does.
    /// Losses and norm are read from the device at once. A gradient that is not finite comes back
    /// with a norm that is not finite either.
    pub(crate) fn finish(
        mut self,
        model: &M,
        clip_norm: Option<f64>,
        on_host: bool,
    ) -> Result<Gradient, ExecutionError> {
        let mut params = self.sum.grads();
        let ([total, weight], squares) = if on_host {
            let mut measure = SquareOnHost { params: &mut params, sum: 0.0 };
            model.visit(&mut measure);
            let squares = measure.sum;
            (self.shared.map_or_else(|| self.numbers(), Ok)?, squares)
        } else {
            let mut measure = SquareOnDevice::new(&params);
            model.visit(&mut measure);
            // What the replicas have told each other is not read again.
            let losses = if self.shared.is_some() { &[] } else { &*self.losses };
            let n = losses.len();
            let losses = losses.iter().map(|(loss, _)| loss.clone());
            let mut numbers = read(losses.chain(measure.sums()).collect())?;
            let squares = numbers.split_off(n).iter().flatten().sum();
            (self.shared.unwrap_or_else(|| self.weighted(&numbers.concat())), squares)
        };
        let ([norm, clipped], factor) = self.norms_and_factor(squares, weight, clip_norm);
        if factor != 1.0 {
            let mut scale = Scale::new(&mut params, factor);
            model.visit(&mut scale);
            scale.finish();
        }
        let losses = self.losses.into_iter().map(|(loss, _)| loss).collect();
        Ok(Gradient { params, loss: total / weight, norm, clipped, weight, losses })
    }

    /// Norm of the mean before and after clipping, and what the sum is multiplied by to become the
    /// clipped mean.
    fn norms_and_factor(
        &self,
        squares: f64,
        weight: f64,
        clip_norm: Option<f64>,
    ) -> ([f64; 2], f64) {
        let divisor = if self.several { weight } else { 1.0 };
        let norm = squares.sqrt() / divisor;
        let clip = clip_norm.map_or(1.0, |limit| f64::min(1.0, limit / (norm + 1e-6)));
        ([norm, norm * clip], clip / divisor)
    }
}

impl Gradient {
    /// Refuses a loss or a gradient that must not reach the weights; `samples` names what it comes from,
    /// told of each micro-batch that was computed here whether its loss is not finite.
    pub(crate) fn check_finite<M: Module>(
        &self,
        model: &M,
        step: u64,
        samples: impl FnOnce(&[bool]) -> Vec<String>,
    ) -> Result<(), Error> {
        let Self { params, loss, norm, clipped, .. } = self;
        let is_finite = loss.is_finite() && norm.is_finite();
        if is_finite && *clipped <= LONGEST {
            return Ok(());
        }
        let what = match first_non_finite(model, params) {
            Some(name) if loss.is_finite() => format!("the gradient of `{name}` (loss {loss})"),
            _ if is_finite => {
                format!("the square of the gradient in f32 (norm {norm:e}, loss {loss})")
            }
            _ => format!("the loss {loss} (gradient norm {norm})"),
        };
        let hint =
            "resume from the last checkpoint with a lower learning rate or `train.clip_norm`";
        // Should the device fail now, there is more to say than which samples it was.
        let losses = read(self.losses.clone()).unwrap_or_default().concat();
        let not_finite: Vec<bool> = losses.iter().map(|loss| !loss.is_finite()).collect();
        let samples = samples(&not_finite);
        Err(Error::NonFinite { step, what, samples, hint: Some(hint.into()), saved: None })
    }
}

/// Path of the first parameter whose gradient holds a NaN or an infinity.
fn first_non_finite<M: Module>(model: &M, params: &GradientsParams) -> Option<String> {
    let mut search = NonFinite { params, path: Vec::new(), found: None };
    model.visit(&mut search);
    search.found
}

/// Reads tensors from the device in one go: what takes time is to wait for it.
fn read(tensors: Vec<Tensor<1>>) -> Result<Vec<Vec<f64>>, ExecutionError> {
    let transaction = tensors.into_iter().fold(Transaction::default(), Transaction::register);
    let data = transaction.try_execute()?;
    Ok(data.iter().map(|data| data.iter::<f64>().collect()).collect())
}

/// All gradients in one row on the host, each behind a one, or a zero if a parameter has none.
struct Gather {
    params: GradientsParams,
    values: Vec<f32>,
}

impl ModuleVisitor for Gather {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        match self.params.remove::<D>(param.id) {
            Some(grad) => {
                self.values.push(1.0);
                self.values.extend(grad.into_data().iter::<f32>());
            }
            None => {
                self.values.push(0.0);
                self.values.resize(self.values.len() + param.val().shape().num_elements(), 0.0);
            }
        }
    }
}

/// Takes such a row apart.
struct Spread<'a> {
    params: GradientsParams,
    values: &'a [f32],
}

impl ModuleVisitor for Spread<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let like = param.val().inner();
        let (held, rest) = self.values.split_at(1);
        let (grad, rest) = rest.split_at(like.shape().num_elements());
        self.values = rest;
        if held[0] > 0.0 {
            let data = TensorData::new(grad.to_vec(), like.shape());
            let grad = Tensor::from_data(data, (&like.device(), like.dtype()));
            self.params.register::<D>(param.id, grad);
        }
    }
}

struct SquareOnHost<'a> {
    params: &'a mut GradientsParams,
    sum: f64,
}

impl ModuleVisitor for SquareOnHost<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.params.remove::<D>(param.id) else { return };
        let (device, dtype) = (grad.device(), grad.dtype());
        // taken out, read and put back, the storage moves instead of being copied
        let data = grad.into_data();
        self.sum += match data.as_slice::<f32>() {
            Ok(values) => sum_of_squares(values),
            Err(_) => data.iter::<f64>().map(|x| x * x).sum(),
        };
        self.params.register::<D>(param.id, Tensor::from_data(data, (&device, dtype)));
    }
}

/// In f64: squares of f32 neither overflow nor vanish, and a million of them add up exactly enough.
fn sum_of_squares(values: &[f32]) -> f64 {
    // independent lanes let the loop vectorise; their order is fixed, so the sum is reproducible
    let mut lanes = [0.0f64; 8];
    let chunks = values.chunks_exact(lanes.len());
    let rest: f64 = chunks.remainder().iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(x) * f64::from(x);
        }
    }
    lanes.iter().sum::<f64>() + rest
}

struct SquareOnDevice<'a> {
    params: &'a GradientsParams,
    #[cfg(feature = "cube")]
    kernels: Squares,
    /// One for each tensor that has no kernel here.
    sums: Vec<Tensor<1>>,
}

impl<'a> SquareOnDevice<'a> {
    fn new(params: &'a GradientsParams) -> Self {
        Self {
            params,
            #[cfg(feature = "cube")]
            kernels: Squares::default(),
            sums: Vec::new(),
        }
    }

    /// Tensors whose elements add up to the sum of all squares.
    fn sums(self) -> Vec<Tensor<1>> {
        let sums = self.sums;
        #[cfg(feature = "cube")]
        let sums = sums.into_iter().chain(self.kernels.sums()).collect();
        sums
    }
}

impl ModuleVisitor for SquareOnDevice<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.params.get::<D>(param.id) else { return };
        let grad = grad.cast(DType::F32);
        #[cfg(feature = "cube")]
        if self.kernels.push(grad.clone()) {
            return;
        }
        self.sums.push(grad.square().sum());
    }
}

struct Scale<'a> {
    params: &'a mut GradientsParams,
    factor: f64,
    #[cfg(feature = "cube")]
    kernels: Scaling,
}

impl<'a> Scale<'a> {
    fn new(params: &'a mut GradientsParams, factor: f64) -> Self {
        Self {
            params,
            factor,
            #[cfg(feature = "cube")]
            kernels: Scaling::default(),
        }
    }

    /// After all parameters were visited.
    fn finish(self) {
        #[cfg(feature = "cube")]
        self.kernels.launch(self.factor);
    }
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.params.remove::<D>(param.id) else { return };
        #[cfg(feature = "cube")]
        if let Some(product) = self.kernels.push(grad.clone()) {
            self.params.register::<D>(param.id, product);
            return;
        }
        self.params.register::<D>(param.id, grad.mul_scalar(self.factor));
    }
}

struct NonFinite<'a> {
    params: &'a GradientsParams,
    path: Vec<String>,
    found: Option<String>,
}

impl ModuleVisitor for NonFinite<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.params.get::<D>(param.id) else { return };
        if self.found.is_none() && grad.into_data().iter::<f64>().any(|x| !x.is_finite()) {
            self.found = Some(self.path.join("."));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::{
        nn::{Linear, LinearConfig},
        tensor::Device,
    };

    use super::*;

    const INPUTS: usize = 5;

    fn device() -> Device {
        crate::device::any_device().autodiff()
    }

    fn fill<const D: usize>(shape: [usize; D], phase: f32) -> Tensor<D> {
        let values = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.37 + phase).sin());
        let values: Vec<f32> = values.collect();
        Tensor::<1>::from_floats(values.as_slice(), &device()).reshape(shape)
    }

    pub(super) fn model() -> Linear {
        let mut model = LinearConfig::new(INPUTS, 3).init(&device());
        model.weight = Param::from_tensor(fill([INPUTS, 3], 0.5));
        model.bias = Some(Param::from_tensor(fill([3], 2.0)));
        model
    }

    /// Mean over rows `range` of 32, of a cubic error so that rows differ.
    pub(super) fn loss(model: &Linear, range: std::ops::Range<usize>) -> Loss {
        let weight = range.len() as f64;
        let x = fill([32, INPUTS], 0.0).slice([range.clone()]);
        let y = fill([32, 3], 1.0).slice([range]);
        let error = (model.forward(x) - y).abs().powi_scalar(3);
        Loss { mean: error.sum_dim(1).mean(), weight }
    }

    fn gradient(portions: &[usize], clip_norm: Option<f64>, on_host: bool) -> (Gradient, Vec<f64>) {
        let model = model();
        let mut sum = Accumulation::new(portions.len() as u64);
        let mut start = 0;
        for portion in portions {
            sum.add(&model, loss(&model, start..start + portion));
            start += portion;
        }
        let gradient = sum.finish(&model, clip_norm, on_host).unwrap();
        let weight = gradient.params.get::<2>(model.weight.id).unwrap();
        let bias = gradient.params.get::<1>(model.bias.as_ref().unwrap().id).unwrap();
        let flat = Tensor::cat(vec![weight.reshape([INPUTS * 3]), bias], 0);
        let values = flat.into_data().iter::<f64>().collect();
        (gradient, values)
    }

    #[test]
    fn accumulated_micro_batches_equal_one_batch() {
        for on_host in [true, false] {
            let (whole, expected) = gradient(&[32], None, on_host);
            for portions in [vec![8, 8, 8, 8], vec![16, 15, 1], vec![1; 32]] {
                let (sum, got) = gradient(&portions, None, on_host);
                for (got, expected) in got.iter().zip(&expected) {
                    assert!((got - expected).abs() <= 1e-6, "{portions:?}: {got} {expected}");
                }
                // Other backends add in another order, in f32.
                for (got, expected) in [(sum.loss, whole.loss), (sum.norm, whole.norm)] {
                    let error = (got - expected).abs();
                    assert!(error <= 1e-6 * expected.max(1.0), "{portions:?}: {got} {expected}");
                }
                assert_eq!(sum.weight, 32.0);
            }
        }
    }

    #[test]
    fn the_norm_is_that_of_all_parameters_together() {
        for on_host in [true, false] {
            let (gradient, values) = gradient(&[32], None, on_host);
            let norm = values.iter().map(|x| x * x).sum::<f64>().sqrt();
            let tolerance = if on_host { 1e-12 } else { 1e-6 };
            assert!((gradient.norm - norm).abs() <= tolerance * norm);
        }
    }

    #[test]
    fn clipping_keeps_the_direction_and_reports_the_norm_before() {
        for (portions, on_host) in [(vec![32], true), (vec![8, 24], true), (vec![8, 24], false)] {
            let (free, before) = gradient(&portions, None, on_host);
            let (clipped, after) = gradient(&portions, Some(free.norm / 4.0), on_host);
            assert_eq!(clipped.norm, free.norm);
            for (after, before) in after.iter().zip(&before) {
                assert!((after - before / 4.0).abs() <= 1e-6);
            }
            let (_, untouched) = gradient(&portions, Some(free.norm * 1.01), on_host);
            assert_eq!(untouched, before);
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_named() {
        for on_host in [true, false] {
            let mut model = model();
            model.bias = Some(Param::from_tensor(fill([3], 0.0).mul_scalar(f64::INFINITY)));
            let mut sum = Accumulation::new(1);
            sum.add(&model, loss(&model, 0..32));
            let gradient = sum.finish(&model, Some(1.0), on_host).unwrap();
            assert!(!gradient.norm.is_finite());
            let named = first_non_finite(&model, &gradient.params);
            assert_eq!(named.as_deref(), Some("weight"));
            let suspects = |suspects: &[bool]| {
                assert_eq!(suspects, [true]);
                Vec::new()
            };
            assert!(gradient.check_finite(&model, 3, suspects).is_err());
        }
    }

    /// An overflow in the backward pass alone is found by the norm and named by parameter.
    #[test]
    fn a_finite_loss_does_not_hide_a_gradient_that_is_not() {
        let (mut gradient, _) = gradient(&[32], None, true);
        let model = model();
        gradient.params = GradientsParams::new();
        gradient.params.register(model.weight.id, fill([INPUTS, 3], 0.0).inner() / 0.0);
        (gradient.loss, gradient.norm) = (0.5, f64::INFINITY);
        let all = |suspects: &[bool]| {
            assert_eq!(suspects, [false]);
            vec!["all of it".to_owned()]
        };
        let error = gradient.check_finite(&model, 3, all).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the gradient of `weight` (loss 0.5) is not finite at step 3, from all of it"
        );
    }

    /// Finite numbers whose squares are not: what Adam makes of them stays in its state for good.
    #[test]
    fn a_gradient_too_long_to_be_squared_is_refused_unless_it_is_clipped() {
        let model = model();
        let huge = |clip_norm| {
            let Loss { mean, weight } = loss(&model, 0..32);
            let mut sum = Accumulation::new(1);
            sum.add(&model, Loss { mean: mean.mul_scalar(1e20), weight });
            sum.finish(&model, clip_norm, true).unwrap()
        };
        let mut free = huge(None);
        free.loss = 0.5;
        assert!(free.norm.is_finite() && first_non_finite(&model, &free.params).is_none());
        let error = free.check_finite(&model, 3, |_| Vec::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the square of the gradient in f32 (norm {:e}, loss 0.5) is not finite at step 3",
                free.norm
            )
        );
        huge(Some(1.0)).check_finite(&model, 3, |_| Vec::new()).unwrap();
    }

    #[test]
    fn squares_of_the_largest_numbers_do_not_overflow() {
        let exact = 19.0 * f64::from(1e30f32).powi(2);
        assert!((sum_of_squares(&[1e30; 19]) - exact).abs() <= 1e-12 * exact);
    }
}
