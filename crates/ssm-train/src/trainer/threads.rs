//! Replicas of one process: a thread and a device for each.

use std::{
    io,
    rc::Rc,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{TrainOptions, follow, lead};
use crate::{
    checkpoint::Checkpoints,
    collective::{Collective, Room, Threads},
    conclusion::Summary,
    config::{Config, Issue},
    device,
    error::Error,
    task::{Task, TaskConfig},
};

/// How long replicas may take to end after one of them is gone. Whoever then still waits does so on
/// its device, where nobody can call it back.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of stack of a replica, as much as the main thread of most systems has.
const STACK: usize = 8 << 20;

/// Trains with `size` replicas.
///
/// # Errors
/// As [`super::train`]. After [`Error::Replica`] on several GPUs threads may be left behind that only
/// the end of the process ends.
pub(super) fn train<T: Task>(
    config: &Config<T::Config>,
    options: &TrainOptions,
    size: usize,
) -> Result<Summary, Error> {
    let (name, first) = (config.device.backend.as_str(), config.device.index);
    let backend = device::resolve(name, first)?;
    let on_processor = device::is_processor(backend);
    let index = |rank: usize| if on_processor { 0 } else { first + rank };
    let devices = if device::has_nccl(backend, first)? {
        (0..size).map(|rank| device::open(name, index(rank))).collect::<Result<_, _>>()?
    } else {
        Vec::new()
    };
    let patience = (!devices.is_empty()).then_some(PATIENCE);

    // Replicas on processors share these out; this thread only waits.
    let n_threads = on_processor.then(|| (rayon::current_num_threads() / size).max(1));

    let (alive, all_ended) = mpsc::channel::<()>();
    let mut places = Threads::places(size, devices).into_iter();
    // `places` makes as many as it is asked for, which is more than one.
    let leader = places.next().unwrap_or_else(|| unreachable!("a place for each replica"));
    let room = leader.room();
    let mut followers = Vec::new();
    // The leader is the last one to start: nobody is further than it takes to meet all others.
    let started: Result<Leader, Error> = places
        .try_for_each(|place| {
            let (config, dirs, alive) = (config.clone(), options.data_dirs.clone(), alive.clone());
            let (rank, index) = (place.rank(), index(place.rank()));
            followers.push(spawn(rank, &room, n_threads, move || {
                let _alive = alive;
                follow::<T>(&config, &dirs, index, Rc::new(place))
            })?);
            Ok(())
        })
        .and_then(|()| {
            let (config, options, alive) = (config.clone(), options.clone(), alive.clone());
            spawn(0, &room, n_threads, move || {
                let _alive = alive;
                lead::<T>(&config, &options, Rc::new(leader))
            })
        });
    drop(alive);
    let waited = wait(&all_ended, &room, size, patience);
    // Should one not have started the others were told.
    let leader = started?;
    if let Err(gone) = waited {
        if leader.is_finished() {
            return joined(leader);
        }
        let steps = Checkpoints::of_run(&config.run.path()).steps();
        return Err(gone.after(steps.unwrap_or_default().pop()));
    }
    let led = joined(leader);
    for (rank, follower) in (1..).zip(followers) {
        // Of whatever came before the last call of a follower the leader knows.
        if let (Err(error), Ok(_)) = (joined(follower), &led) {
            let problem = format!("replica {rank} failed after its last step: {error}");
            tracing::warn!("{problem}; this changes no result");
        }
    }
    led
}

fn joined<R>(thread: JoinHandle<R>) -> R {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

type Leader = JoinHandle<Result<Summary, Error>>;

/// Starts a replica, or tells those that wait for it that it will not come. With `n_threads` it computes
/// on so many of its own: whoever is no thread of a pool has to be woken after each operation.
fn spawn<R: Send + 'static>(
    rank: usize,
    room: &Arc<Room>,
    n_threads: Option<usize>,
    replica: impl FnOnce() -> Result<R, Error> + Send + 'static,
) -> Result<JoinHandle<Result<R, Error>>, Error> {
    let name = format!("replica {rank}");
    let failed = {
        let (room, name) = (room.clone(), name.clone());
        move |source: io::Error| {
            room.leave(rank, &format!("it cannot be started: {source}"));
            Error::Io { path: name.into(), action: "start".into(), source }
        }
    };
    let thread = std::thread::Builder::new().name(name.clone()).stack_size(STACK);
    let in_pool = {
        let failed = failed.clone();
        move || {
            let pool = |n_threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).stack_size(STACK);
                let pool = pool.thread_name(move |index| format!("{name}.{index}"));
                pool.use_current_thread().build()
            };
            let pool = n_threads.map(pool).transpose();
            let _pool = pool.map_err(|error| failed(io::Error::other(error)))?;
            replica()
        }
    };
    thread.spawn(in_pool).map_err(failed)
}

/// Waits until every replica ended, but with `patience` not for those that do not within that time of
/// one being gone.
fn wait(
    all_ended: &mpsc::Receiver<()>,
    room: &Room,
    size: usize,
    patience: Option<Duration>,
) -> Result<(), Error> {
    let mut missed: Option<Instant> = None;
    loop {
        // Nothing is ever sent; the channel ends with the last replica.
        match all_ended.recv_timeout(PATIENCE / 100) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        if let (Some(gone), Some(patience)) = (room.gone(size), patience)
            && missed.get_or_insert_with(Instant::now).elapsed() > patience
        {
            return Err(gone);
        }
    }
}

/// Refuses a number of replicas that the micro-batches of a step cannot be shared out among.
pub(super) fn check_shares<C: TaskConfig>(config: &Config<C>, size: usize) -> Result<(), Error> {
    let accumulate = config.train.accumulate;
    if size > accumulate {
        let expected = format!("at most `train.accumulate` = {accumulate}");
        let issue = Issue::range("device.replicas", &expected, size);
        return Err(config.refuse(vec![issue.with_hint(
            "replicas share the micro-batches of a step: divide `train.batch_size` by their number \
             and multiply `train.accumulate` by it",
        )]));
    }
    if size > 1 && !C::shares_micro_batches(&config.task) {
        let message = "expected 1, as each micro-batch of a step needs the one before it";
        let message = format!("{message}, got `{size}`");
        return Err(config.refuse(vec![Issue::new("device.replicas", message)]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread that never ends stands for one that waits on its device.
    #[test]
    fn who_cannot_be_called_back_is_left_behind() {
        let places = Threads::places(2, Vec::new());
        let room = places[0].room();
        let (alive, all_ended) = mpsc::channel();
        places[1].abort("out of memory");
        let patience = Some(Duration::from_millis(1));
        let error = wait(&all_ended, &room, 2, patience).unwrap_err();
        assert_eq!(
            error.report(),
            "error: replica 1 of 2 is gone: out of memory\nhint: continue with `--resume`"
        );
        drop(alive);
        assert!(wait(&all_ended, &room, 2, patience).is_ok());
    }
}
