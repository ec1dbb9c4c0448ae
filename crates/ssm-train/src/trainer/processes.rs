//! Replicas in several processes: one and a device for each.

use std::rc::Rc;

use super::{TrainOptions, follow, lead};
use crate::{
    collective::{Collective, Mpi},
    conclusion::Summary,
    config::{Config, Issue},
    device,
    error::Error,
    task::{Task, TaskConfig},
};

/// Trains as one of several processes; `None` for those that do not lead.
///
/// # Errors
/// As [`super::train`].
pub(super) fn train<T: Task>(
    config: &Config<T::Config>,
    options: &TrainOptions,
    collective: Mpi,
    local_rank: usize,
) -> Result<Option<Summary>, Error> {
    check(config, collective.size())?;
    let backend = device::resolve(&config.device.backend, config.device.index)?;
    let own = if device::is_processor(backend) { 0 } else { local_rank };
    let mut config = config.clone();
    config.device.index += own;
    if collective.rank() == 0 {
        lead::<T>(&config, options, Rc::new(collective)).map(Some)
    } else {
        let index = config.device.index;
        follow::<T>(&config, &options.data_dirs, index, Rc::new(collective)).map(|()| None)
    }
}

/// Refuses what cannot be shared out among `size` processes.
fn check<C: TaskConfig>(config: &Config<C>, size: usize) -> Result<(), Error> {
    if config.device.replicas > 1 {
        let expected = "1 for processes that MPI started";
        let issue = Issue::range("device.replicas", expected, config.device.replicas);
        let hint = "let `mpirun` start as many processes as there are devices";
        return Err(config.refuse(vec![issue.with_hint(hint)]));
    }
    let accumulate = config.train.accumulate;
    if size > accumulate {
        let expected = format!("at least the number of processes, {size}");
        let issue = Issue::range("train.accumulate", &expected, accumulate);
        return Err(config.refuse(vec![issue.with_hint(
            "processes share the micro-batches of a step: divide `train.batch_size` by their number \
             and multiply `train.accumulate` by it",
        )]));
    }
    if !C::shares_micro_batches(&config.task) {
        return Err(Error::Usage {
            message: format!(
                "{size} processes cannot share a step: each of its micro-batches needs the one before"
            ),
            hint: Some("start it without `mpirun`".into()),
        });
    }
    Ok(())
}
