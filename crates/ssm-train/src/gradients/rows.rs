//! The gradients of all parameters, one after the other in few long rows.
//!
//! A collective library moves a long row at the speed of the wires, and many short ones at that of its
//! calls. What is done with all gradients alike, as scaling them, takes one kernel a row.

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{DType, Device, ExecutionError, Tensor},
};

use super::{Accumulation, Gradient, read};
use crate::{collective::Collective, error::Error};

/// Numbers after which a row is long enough, 64 MiB of them: a library then works at its full speed,
/// and a row is made while the one before it is under way.
const ROW_LEN: usize = 16 << 20;

/// Numbers in 512 bytes. What begins at a multiple of the alignment of memory is cut out of a row
/// without a copy, so parameters of such lengths come first.
const ALIGNED: usize = 128;

/// The sum over all replicas of their gradients, on the device of each.
pub(crate) struct Rows {
    rows: Vec<Tensor<1>>,
    /// Row and first number of each parameter that has a gradient, in the order of the model.
    places: Vec<Option<[usize; 2]>>,
}

impl<M: Module> Accumulation<M> {
    /// Begins to add up what all replicas have, without the host; for whatever uses the sums on the
    /// device they are complete.
    ///
    /// A gradient that only some replicas have counts as zero elsewhere, one that none of them has is
    /// none.
    ///
    /// # Errors
    /// [`Error::Replica`].
    pub(crate) fn sum_on_devices(
        &mut self,
        model: &M,
        collective: &dyn Collective,
    ) -> Result<Rows, Error> {
        let mut take = Take { params: self.sum.grads(), pieces: Vec::new() };
        model.visit(&mut take);
        let mut pieces = take.pieces;
        // Here those that are still there meet, so that no device waits for one that is gone.
        let held = |(grad, _): &(Option<Tensor<1>>, Blank)| f32::from(u8::from(grad.is_some()));
        let mut held: Vec<f32> = pieces.iter().map(held).collect();
        collective.sum(&mut held, &mut [])?;

        let lengths: Vec<usize> = pieces.iter().map(|(_, blank)| blank.len).collect();
        let layout = layout(&lengths, &held);
        let mut places = vec![None; lengths.len()];
        for (row, indices) in layout.iter().enumerate() {
            let mut start = 0;
            for index in indices {
                places[*index] = Some([row, start]);
                start += lengths[*index];
            }
        }
        let mut made = layout.iter().map(|indices| {
            let parts = indices.iter().map(|index| {
                let (grad, blank) = &mut pieces[*index];
                grad.take().unwrap_or_else(|| blank.zeros())
            });
            let mut parts: Vec<Tensor<1>> = parts.collect();
            // One alone needs no copy.
            if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 0) }
        });
        Ok(Rows { rows: collective.sum_on_devices(&mut made), places })
    }

    /// As [`Accumulation::finish`], of sums over all replicas. Losses are added up only now: they are
    /// read together with the norm.
    ///
    /// # Errors
    /// [`Error::Replica`], and what `device_failed` makes of numbers that cannot be read.
    pub(crate) fn finish_on_devices(
        self,
        rows: Rows,
        model: &M,
        clip_norm: Option<f64>,
        collective: &dyn Collective,
        device_failed: impl FnOnce(&ExecutionError) -> Error,
    ) -> Result<Gradient, Error> {
        let Rows { mut rows, places } = rows;
        let losses = self.losses.iter().map(|(loss, _)| loss.clone().cast(DType::F32));
        let squares = rows.iter().map(|row| row.clone().square().sum());
        let mut numbers =
            read(losses.chain(squares).collect()).map_err(|error| device_failed(&error))?;
        let squares: f64 = numbers.split_off(self.losses.len()).iter().flatten().sum();
        let [total, weight] = self.weighted(&numbers.concat());
        // The sums have the same bits everywhere, but each device may choose another kernel to square
        // them: the norm of replica 0 is that of all.
        let squares = if collective.rank() == 0 { squares } else { 0.0 };
        let mut numbers = [total, weight, squares];
        collective.sum(&mut Vec::new(), &mut numbers)?;
        let [total, weight, squares] = numbers;
        let ([norm, clipped], factor) = self.norms_and_factor(squares, weight, clip_norm);
        if factor != 1.0 {
            rows = rows.into_iter().map(|row| row.mul_scalar(factor)).collect();
        }
        let mut cut = Cut { rows: &rows, places: places.iter(), params: GradientsParams::new() };
        model.visit(&mut cut);
        let params = cut.params;
        let losses = self.losses.into_iter().map(|(loss, _)| loss).collect();
        Ok(Gradient { params, loss: total / weight, norm, clipped, weight, losses })
    }
}

/// The parameters of each row. Every replica finds the same one.
fn layout(lengths: &[usize], held: &[f32]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).filter(|index| held[*index] > 0.0).collect();
    order.sort_by_key(|index| !lengths[*index].is_multiple_of(ALIGNED));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut len = ROW_LEN;
    for index in order {
        match rows.last_mut() {
            Some(row) if len < ROW_LEN => {
                row.push(index);
                len += lengths[index];
            }
            _ => {
                rows.push(vec![index]);
                len = lengths[index];
            }
        }
    }
    rows
}

/// What stands for the gradient of a parameter where a replica has none.
struct Blank {
    len: usize,
    device: Device,
}

impl Blank {
    fn zeros(&self) -> Tensor<1> {
        Tensor::zeros([self.len], (&self.device, DType::F32))
    }
}

/// Takes the gradient of every parameter as a row.
struct Take {
    params: GradientsParams,
    pieces: Vec<(Option<Tensor<1>>, Blank)>,
}

impl ModuleVisitor for Take {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let like = param.val().inner();
        let blank = Blank { len: like.shape().num_elements(), device: like.device() };
        let grad = self.params.remove::<D>(param.id);
        let grad = grad.map(|grad| grad.cast(DType::F32).reshape([blank.len]));
        self.pieces.push((grad, blank));
    }
}

/// Cuts rows into the gradients of the parameters.
struct Cut<'a> {
    rows: &'a [Tensor<1>],
    places: std::slice::Iter<'a, Option<[usize; 2]>>,
    params: GradientsParams,
}

impl ModuleVisitor for Cut<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(Some([row, start])) = self.places.next() else { return };
        let like = param.val().inner();
        let (shape, dtype) = (like.shape(), like.dtype());
        let range = *start..start + shape.num_elements();
        let grad = self.rows[*row].clone().slice([range]).reshape(shape);
        self.params.register::<D>(param.id, grad.cast(dtype));
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::Linear;

    use super::{
        super::tests::{loss, model},
        *,
    };
    use crate::{collective::Threads, task::Loss};

    #[test]
    fn rows_are_long_and_hold_every_gradient_once() {
        let lengths = [3 * ROW_LEN, 128, 7, ROW_LEN - 128, 256, 64, 1, ROW_LEN];
        let held = [1.0, 2.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0];
        // 5 has no gradient; 2 and 6 have odd lengths and come last.
        assert_eq!(layout(&lengths, &held), [vec![0], vec![1, 3], vec![4, 7], vec![2, 6]]);
        assert!(layout(&lengths, &[0.0; 8]).is_empty());
    }

    /// Threads that take the way of rows, which then go through the host: no library needed.
    struct Pretended(Threads);

    impl Collective for Pretended {
        fn rank(&self) -> usize {
            self.0.rank()
        }

        fn size(&self) -> usize {
            self.0.size()
        }

        fn sum(&self, values: &mut Vec<f32>, numbers: &mut [f64]) -> Result<(), Error> {
            self.0.sum(values, numbers)
        }

        fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
            self.0.broadcast(bytes)
        }

        fn abort(&self, reason: &str) {
            self.0.abort(reason);
        }

        fn sum_on_devices(&self, rows: &mut dyn Iterator<Item = Tensor<1>>) -> Vec<Tensor<1>> {
            let sum = |row: Tensor<1>| {
                let device = row.device();
                let mut values = row.into_data().try_into_vec::<f32>().unwrap();
                self.0.sum(&mut values, &mut []).unwrap();
                Tensor::from_floats(values.as_slice(), &device)
            };
            rows.map(sum).collect()
        }
    }

    /// The gradient at each replica, of which every one takes one of `portions` of the samples or
    /// none; on the way of rows or on that through the host.
    fn gradients(
        portions: &[usize],
        size: usize,
        in_rows: bool,
        loss: fn(&Linear, std::ops::Range<usize>) -> Loss,
    ) -> Vec<[Vec<f64>; 3]> {
        let threads = Threads::places(size, Vec::new()).into_iter().map(|place| {
            let (rank, portions) = (place.rank(), portions.to_vec());
            std::thread::spawn(move || {
                let model = model();
                let mut sum = Accumulation::new(portions.len() as u64);
                if rank < portions.len() {
                    let start = portions[..rank].iter().sum();
                    sum.add(&model, loss(&model, start..start + portions[rank]));
                }
                let clip = Some(0.7);
                let gradient = if in_rows {
                    let place = Pretended(place);
                    let rows = sum.sum_on_devices(&model, &place).unwrap();
                    sum.finish_on_devices(rows, &model, clip, &place, |_| unreachable!()).unwrap()
                } else {
                    let numbers = sum.numbers().unwrap();
                    sum.share(&model, numbers, &place).unwrap();
                    sum.finish(&model, clip, false).unwrap()
                };
                let bias = model.bias.as_ref().unwrap().id;
                let values = |grad: Option<Tensor<1>>| {
                    grad.map_or(vec![], |grad| grad.into_data().iter::<f64>().collect())
                };
                let weight = gradient.params.get::<2>(model.weight.id);
                [
                    values(weight.map(|weight| weight.flatten(0, 1))),
                    values(gradient.params.get::<1>(bias)),
                    vec![gradient.loss, gradient.norm, gradient.weight],
                ]
            })
        });
        threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    /// Also where one has nothing to add.
    #[test]
    fn sums_in_rows_are_those_through_the_host() {
        for (portions, size) in [(vec![16, 16], 2), (vec![20, 12], 3), (vec![8; 4], 4)] {
            let through_host = &gradients(&portions, size, false, loss)[0];
            assert!(through_host[2][1] > 0.7, "it is clipped");
            for replica in gradients(&portions, size, true, loss) {
                for (got, expected) in replica.iter().zip(through_host) {
                    assert_eq!(got.len(), expected.len());
                    for (got, expected) in got.iter().zip(expected) {
                        assert!((got - expected).abs() <= 1e-6 * (1.0 + expected.abs()));
                    }
                }
            }
        }
    }

    #[test]
    fn a_parameter_without_a_gradient_gets_none() {
        let without_bias = |model: &Linear, range: std::ops::Range<usize>| Loss {
            weight: range.len() as f64,
            mean: model.weight.val().square().mean(),
        };
        for replica in gradients(&[16, 16], 2, true, without_bias) {
            assert_eq!((replica[0].len(), replica[1].len()), (15, 0));
        }
    }
}
