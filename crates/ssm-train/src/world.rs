//! The processes that train one model, where MPI started several.
//!
//! The first one leads: it alone writes into the run directory and says anything. Without MPI there
//! is a world of one.

#[cfg(feature = "mpi")]
use std::rc::Rc;

#[cfg(feature = "mpi")]
use crate::collective::{Mpi, Processes};
use crate::error::Error;

/// What the starters of MPI programs tell each process of their number: Open MPI, and MPICH with its
/// descendants.
const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// What Slurm's `srun` tells each process of their number, and which of them it is.
const TASKS: (&str, &str) = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID");

/// This process among those that it was started with.
pub struct World {
    #[cfg(feature = "mpi")]
    processes: Option<Rc<Processes>>,
}

impl World {
    /// A world without others.
    #[must_use]
    pub fn alone() -> Self {
        Self {
            #[cfg(feature = "mpi")]
            processes: None,
        }
    }

    /// The world that `mpirun` made, or one without others.
    ///
    /// MPI is used by the thread that calls this, and by no other.
    ///
    /// # Errors
    /// [`Error::Usage`] if there are others and this binary has no MPI: they would all train the same
    /// model.
    pub fn enter() -> Result<Self, Error> {
        let size = SIZES.iter().find_map(|name| std::env::var(name).ok()?.parse::<usize>().ok());
        Self::of(size)
    }

    #[cfg(feature = "mpi")]
    fn of(size: Option<usize>) -> Result<Self, Error> {
        Ok(match size.and_then(|_| Processes::enter()) {
            Some(processes) if processes.size() > 1 => Self { processes: Some(Rc::new(processes)) },
            _ => Self::alone(),
        })
    }

    #[cfg(not(feature = "mpi"))]
    fn of(size: Option<usize>) -> Result<Self, Error> {
        match size {
            Some(size) if size > 1 => Err(Error::Usage {
                message: format!(
                    "started {size} times by MPI, which is not compiled into this binary"
                ),
                hint: Some(
                    "build it with `--features mpi`; several devices of one machine need no MPI: \
                     `device.replicas`"
                        .into(),
                ),
            }),
            _ => Ok(Self::alone()),
        }
    }

    /// A warning where `srun` started several processes without MPI, said by the first of them: they
    /// know nothing of each other.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        Self::warning_for(|name| std::env::var(name).ok())
    }

    fn warning_for(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
        let tasks = variable(TASKS.0)?.parse::<usize>().ok().filter(|tasks| *tasks > 1)?;
        if variable(TASKS.1)? != "0" || SIZES.iter().any(|name| variable(name).is_some()) {
            return None;
        }
        Some(format!(
            "`srun` started this program {tasks} times, and each trains a run of its own; to train one \
             together start it by `mpirun`, in a build with `--features mpi`"
        ))
    }

    /// Number of processes.
    #[must_use]
    pub fn size(&self) -> usize {
        #[cfg(feature = "mpi")]
        let size = self.processes.as_ref().map_or(1, |processes| processes.size());
        #[cfg(not(feature = "mpi"))]
        let size = 1;
        size
    }

    /// Whether this is the process that writes and speaks.
    #[must_use]
    pub fn leads(&self) -> bool {
        #[cfg(feature = "mpi")]
        let leads = self.processes.as_ref().is_none_or(|processes| processes.rank() == 0);
        #[cfg(not(feature = "mpi"))]
        let leads = true;
        leads
    }

    /// The last thing that every process says to the others, with the error that ended it if one did.
    pub fn leave(&self, error: Option<&Error>) {
        #[cfg(feature = "mpi")]
        if let Some(processes) = &self.processes {
            processes.leave(error.map(Error::to_string).as_deref());
        }
        let _ = error;
    }

    /// The way to the others for one run, with the number of this process among those of its machine.
    #[cfg(feature = "mpi")]
    pub(crate) fn collective(&self) -> Result<Option<(Mpi, usize)>, Error> {
        let Some(processes) = &self.processes else { return Ok(None) };
        Ok(Some((Mpi::new(processes.clone())?, processes.local_rank())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_others_there_is_no_mpi() {
        let world = World::of(None).unwrap();
        assert!(world.leads());
        assert_eq!(world.size(), 1);
    }

    #[test]
    fn processes_that_srun_started_are_told_that_they_are_alone() {
        let warned = |given: &[(&str, &str)]| {
            World::warning_for(|name| {
                given.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let two = ("SLURM_STEP_NUM_TASKS", "2");
        assert_eq!(
            warned(&[two, ("SLURM_PROCID", "0")]).unwrap(),
            "`srun` started this program 2 times, and each trains a run of its own; to train one \
             together start it by `mpirun`, in a build with `--features mpi`"
        );
        for silent in [
            &[two, ("SLURM_PROCID", "1")][..],
            &[two, ("SLURM_PROCID", "0"), ("OMPI_COMM_WORLD_SIZE", "2")],
            &[("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_PROCID", "0")],
            &[],
        ] {
            assert_eq!(warned(silent), None, "{silent:?}");
        }
    }

    #[test]
    #[cfg(not(feature = "mpi"))]
    fn copies_of_a_program_without_mpi_are_refused() {
        assert!(World::of(Some(1)).is_ok());
        let error = World::of(Some(3)).err().unwrap();
        assert_eq!(
            error.report(),
            "error: started 3 times by MPI, which is not compiled into this binary\n\
             hint: build it with `--features mpi`; several devices of one machine need no MPI: \
             `device.replicas`"
        );
        assert_eq!(error.exit_code(), 2);
    }
}
