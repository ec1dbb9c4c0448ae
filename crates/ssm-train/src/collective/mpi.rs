//! Replicas in processes that `mpirun` started, on one machine or several.
//!
//! All of them send what they bring to rank 0, which adds it up in the order of the ranks, as threads
//! do, and answers: the sums have the bits of threads, whatever the network. Nothing waits inside of
//! MPI, where a process that is gone would be waited for without a word.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use mpi::{
    Rank, Tag, Threading,
    environment::Universe,
    request::{LocalScope, Request, scope},
    topology::SimpleCommunicator,
    traits::{Communicator, Destination, Equivalence, Source},
};

use super::{Collective, Part};
use crate::{error::Error, interrupt::Interrupt};

// What a message is.
const HEADER: Tag = 1;
const VALUES: Tag = 2;
const NUMBERS: Tag = 3;
const BYTES: Tag = 4;

/// Elements of a message at most; MPI counts them in 32 bits.
const CHUNK: usize = 1 << 28;

/// How long after a signal another process is waited for without a word: `mpirun` sends one to all
/// where a process is gone, and a second later it kills them.
const WORDLESS: Duration = Duration::from_millis(500);

/// How long it is waited for after that.
const PATIENCE: Duration = Duration::from_secs(120);

/// Looks at a message that is expected, before they become rarer.
const BUSY_LOOKS: u32 = 2000;

/// Between two looks then.
const PAUSE: Duration = Duration::from_micros(100);

/// The processes that were started together, of which this is one.
pub(crate) struct Processes {
    world: SimpleCommunicator,
    rank: usize,
    size: usize,
    /// Rank among those of the same machine.
    local_rank: usize,
    /// Who is gone, and why: nothing is said any more.
    gone: RefCell<Option<(usize, String)>>,
    /// The last word was said.
    is_left: Cell<bool>,
    /// Ends MPI when it is dropped.
    _universe: Universe,
}

impl Processes {
    /// `None` if MPI was used in this process before.
    pub(crate) fn enter() -> Option<Self> {
        // Threads of the process compute; one alone talks.
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)?;
        let world = universe.world();
        let (rank, size) = (world.rank(), world.size());
        let local_rank = world.split_shared(rank).rank();
        let number = |n: Rank| usize::try_from(n).unwrap_or_default();
        Some(Self {
            world,
            rank: number(rank),
            size: number(size),
            local_rank: number(local_rank),
            gone: RefCell::default(),
            is_left: Cell::new(false),
            _universe: universe,
        })
    }

    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// The last meeting of all, with a reason if this process cannot go on to another one.
    pub(crate) fn leave(&self, reason: Option<&str>) {
        if !self.is_left.replace(true) && self.gone.borrow().is_none() {
            let part = reason.map_or_else(|| Ok(Part::default()), |reason| Err(reason.to_owned()));
            // Who is gone now is not missed.
            let _ = Talk { processes: self, interrupt: None, heard: &Cell::new(0) }.meet(part);
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.leave(std::thread::panicking().then_some("it panicked"));
    }
}

/// A process as a replica of one run.
pub(crate) struct Mpi {
    processes: Rc<Processes>,
    interrupt: Interrupt,
    /// The signal that another one got, or 0.
    heard: Cell<i32>,
}

impl Mpi {
    pub(crate) fn new(processes: Rc<Processes>) -> Result<Self, Error> {
        Ok(Self { processes, interrupt: Interrupt::listen()?, heard: Cell::new(0) })
    }

    fn meet(&self, part: Result<Part, String>) -> Result<Part, Error> {
        let Self { processes, interrupt, heard } = self;
        Talk { processes, interrupt: Some(interrupt), heard }.meet(part)
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.processes.rank
    }

    fn size(&self) -> usize {
        self.processes.size
    }

    fn sum(&self, values: &mut Vec<f32>, numbers: &mut [f64]) -> Result<(), Error> {
        let part =
            Part { values: std::mem::take(values), numbers: numbers.to_vec(), bytes: vec![] };
        let sum = self.meet(Ok(part))?;
        *values = sum.values;
        numbers.copy_from_slice(&sum.numbers);
        Ok(())
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        let bytes = if self.processes.rank == 0 { bytes } else { Vec::new() };
        Ok(self.meet(Ok(Part { bytes, ..Part::default() }))?.bytes)
    }

    fn abort(&self, reason: &str) {
        // The answer is that this one is gone.
        let _ = self.meet(Err(reason.to_owned()));
    }

    fn signal(&self) -> Option<i32> {
        Some(self.heard.get()).filter(|signal| *signal != 0)
    }

    fn route(&self) -> &'static str {
        "MPI"
    }
}

/// What comes before the rest of a message.
#[derive(Clone, Copy)]
struct Header {
    /// Signal that the sender got, or 0.
    signal: u64,
    /// Number of the replica that is gone, counted from 1, or 0; the bytes then say why.
    gone: u64,
    n_values: u64,
    n_numbers: u64,
    n_bytes: u64,
}

impl Header {
    fn to_array(self) -> [u64; 5] {
        [self.signal, self.gone, self.n_values, self.n_numbers, self.n_bytes]
    }

    fn of([signal, gone, n_values, n_numbers, n_bytes]: [u64; 5]) -> Self {
        Self { signal, gone, n_values, n_numbers, n_bytes }
    }
}

/// A part, or who is gone and why.
type Said = Result<Part, (usize, String)>;

/// Messages of a meeting.
struct Talk<'a> {
    processes: &'a Processes,
    interrupt: Option<&'a Interrupt>,
    heard: &'a Cell<i32>,
}

impl Talk<'_> {
    /// What all parts come to, once every process brought its part or said that it cannot go on.
    fn meet(&self, part: Result<Part, String>) -> Result<Part, Error> {
        let Processes { rank, size, gone, .. } = self.processes;
        let error = |(rank, message): &(usize, String)| Error::Replica {
            rank: *rank,
            size: *size,
            message: message.clone(),
            saved: None,
        };
        if let Some(gone) = &*gone.borrow() {
            return Err(error(gone));
        }
        let part: Said = part.map_err(|reason| (*rank, reason));
        let answer = if *rank == 0 {
            // All are heard before one is answered: nobody is left alone with what it has to say.
            let all = (1..*size).fold(part, |sum, from| match (sum, self.receive(from)) {
                (Ok(sum), Ok(part)) => Ok(sum.and(part)),
                (Err(gone), _) | (_, Err(gone)) => Err(gone),
            });
            (1..*size).for_each(|to| self.send(to, &all));
            all
        } else {
            self.send(0, &part);
            self.receive(0)
        };
        answer.map_err(|who| {
            let error = error(&who);
            *gone.borrow_mut() = Some(who);
            error
        })
    }

    fn send(&self, to: usize, said: &Said) {
        let signal = self.interrupt.and_then(Interrupt::signal).unwrap_or(self.heard.get());
        let signal = u64::from(signal.unsigned_abs());
        let last_words;
        let (gone, part) = match said {
            Ok(part) => (0, part),
            Err((rank, reason)) => {
                last_words = Part { bytes: reason.clone().into_bytes(), ..Part::default() };
                (*rank as u64 + 1, &last_words)
            }
        };
        let lengths = [part.values.len(), part.numbers.len(), part.bytes.len()];
        let [n_values, n_numbers, n_bytes] = lengths.map(|n| n as u64);
        let header = Header { signal, gone, n_values, n_numbers, n_bytes };
        self.send_all(to, HEADER, &header.to_array());
        self.send_all(to, VALUES, &part.values);
        self.send_all(to, NUMBERS, &part.numbers);
        self.send_all(to, BYTES, &part.bytes);
    }

    fn receive(&self, from: usize) -> Said {
        let process = self.processes.world.process_at_rank(from as Rank);
        self.until(from, true, || process.immediate_probe_with_tag(HEADER));
        let mut header = [0; 5];
        self.receive_all(from, HEADER, &mut header);
        let Header { signal, gone, n_values, n_numbers, n_bytes } = Header::of(header);
        if signal != 0 {
            self.heard.set(signal as i32);
        }
        let mut part = Part {
            values: vec![0.0; n_values as usize],
            numbers: vec![0.0; n_numbers as usize],
            bytes: vec![0; n_bytes as usize],
        };
        self.receive_all(from, VALUES, &mut part.values);
        self.receive_all(from, NUMBERS, &mut part.numbers);
        self.receive_all(from, BYTES, &mut part.bytes);
        match gone {
            0 => Ok(part),
            rank => Err((rank as usize - 1, String::from_utf8_lossy(&part.bytes).into_owned())),
        }
    }

    fn send_all<E: Equivalence>(&self, to: usize, tag: Tag, elements: &[E]) {
        let process = self.processes.world.process_at_rank(to as Rank);
        for chunk in elements.chunks(CHUNK) {
            scope(|scope| self.finish(to, process.immediate_send_with_tag(scope, chunk, tag)));
        }
    }

    fn receive_all<E: Equivalence>(&self, from: usize, tag: Tag, elements: &mut [E]) {
        let process = self.processes.world.process_at_rank(from as Rank);
        for chunk in elements.chunks_mut(CHUNK) {
            scope(|scope| {
                self.finish(from, process.immediate_receive_into_with_tag(scope, chunk, tag));
            });
        }
    }

    fn finish<'a, D: ?Sized>(&self, with: usize, request: Request<'a, D, &LocalScope<'a>>) {
        let mut open = Some(request);
        self.until(with, false, || match open.take()?.test() {
            Ok(status) => Some(status),
            Err(request) => {
                open = Some(request);
                None
            }
        });
    }

    /// Waits for what another process does; `idle` leaves the processor to others meanwhile.
    fn until<R>(&self, rank: usize, idle: bool, mut look: impl FnMut() -> Option<R>) -> R {
        let mut looks = 0;
        let mut signalled: Option<Instant> = None;
        let mut is_told = false;
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            looks += 1;
            if looks < BUSY_LOOKS || !idle {
                std::thread::yield_now();
            } else {
                std::thread::sleep(PAUSE);
            }
            let Some(signal) = self.interrupt.and_then(Interrupt::signal) else { continue };
            let waited = signalled.get_or_insert_with(Instant::now).elapsed();
            let size = self.processes.size;
            if waited > WORDLESS && !is_told {
                is_told = true;
                tracing::error!(
                    "signal {signal} while replica {rank} of {size} is waited for; if it is gone, \
                     the run is saved up to its last checkpoint: continue with `--resume`"
                );
            }
            if waited > PATIENCE {
                tracing::error!("replica {rank} of {size} does not answer");
                self.processes.world.abort(1);
            }
        }
    }
}
