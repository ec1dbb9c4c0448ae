//! What is trained: tasks with their data, models, losses and metrics.
//!
//! A task is a folder and one line in the registry below. The engine never names one; the binary
//! picks one by the key under `[task]` with [`with_task`].

pub mod data;
pub mod forecasting;
mod given;
pub mod lm;
pub mod mil;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use ssm_train::{
    config::Settings,
    error::Error,
    report::Table,
    task::{Task, TaskConfig},
};

use crate::{
    data::KnownSet,
    lm::generate::{Emit, GenerateRequest},
};

/// How one operation did on one device.
pub use ssm_core::ops::SelfTest;

/// Runs everything that has kernels of its own on `device`, operations and what the engine does with gradients
/// and weights, and compares it to its specification; `ended` hears of each test at its end.
#[must_use]
pub fn self_test(device: &Device, mut ended: impl FnMut(&SelfTest)) -> Vec<SelfTest> {
    let mut tests = ssm_core::ops::self_test(device, &mut ended);
    for check in ssm_train::self_test::CHECKS {
        let test = SelfTest::of(check.op, check.shape, check.bound, || (check.run)(device));
        ended(&test);
        tests.push(test);
    }
    tests
}

/// Configuration options of a task.
pub type OptionsOf<T> = <<T as Task>::Config as TaskConfig>::Options;
/// Data section of a task.
pub type DataOf<T> = <<T as Task>::Config as TaskConfig>::Data;
/// Model section of a task.
pub type ModelOf<T> = <<T as Task>::Config as TaskConfig>::Model;

/// What the binary asks of a task beyond training it.
pub trait TaskEntry: Task {
    /// Published data sets that the task reads.
    fn known_sets() -> Vec<KnownSet>;

    /// A configuration to begin with, which trains in about a minute on a CPU; not every task has one.
    fn example() -> Option<Example> {
        None
    }

    /// The model of a configuration with fresh parameters, without reading any data.
    ///
    /// `artifacts` are what [`Task::artifacts`] gave when the model was trained; of `settings` the seed
    /// and the precision count.
    ///
    /// # Errors
    /// Artifacts of another task.
    fn restore(
        options: &OptionsOf<Self>,
        model: &ModelOf<Self>,
        artifacts: &serde_json::Value,
        settings: &Settings,
        device: &Device,
    ) -> Result<Self::Model, Error>;

    /// Applies a trained model to a file of the user and returns the text of the result.
    ///
    /// `artifacts` are what [`Task::artifacts`] gave when the model was trained.
    ///
    /// # Errors
    /// A missing or malformed input, or artifacts of another task.
    fn predict(
        options: &OptionsOf<Self>,
        artifacts: &serde_json::Value,
        model: &Self::Model,
        input: &Path,
    ) -> Result<String, Error>;

    /// Where on a slide a trained model looks, as a PNG file; most tasks have no slides.
    ///
    /// # Errors
    /// A missing or malformed slide, or a task without slides.
    fn heatmap(
        artifacts: &serde_json::Value,
        model: &Self::Model,
        request: &HeatmapRequest,
    ) -> Result<Vec<u8>, Error> {
        let _ = (artifacts, model, request);
        Err(Error::Usage {
            message: format!("the task `{}` has no heatmaps", Self::Config::NAME),
            hint: Some("name the run directory of a `mil` run".to_owned()),
        })
    }

    /// Text from a trained model, piece by piece; most tasks have no text.
    ///
    /// # Errors
    /// A prompt that the model cannot read, or a task without text.
    fn generate(
        artifacts: &serde_json::Value,
        model: &Self::Model,
        request: &GenerateRequest,
        emit: &mut Emit<'_>,
    ) -> Result<(), Error> {
        let _ = (artifacts, model, request, emit);
        Err(Error::Usage {
            message: format!("the task `{}` generates no text", Self::Config::NAME),
            hint: Some("name the run directory of an `lm` run".to_owned()),
        })
    }

    /// Looks for whatever is wrong with the data before anything is trained: tables of what is there,
    /// and how many findings stand in the way. By default the data is read as for training.
    ///
    /// # Errors
    /// Data that cannot be read at all.
    fn check(
        options: &OptionsOf<Self>,
        data: &DataOf<Self>,
        model: &ModelOf<Self>,
        settings: &Settings,
        device: &Device,
    ) -> Result<(Vec<Table>, usize), Error> {
        let (task, _) = Self::new(options, data, model, settings, device)?;
        let table = Table {
            title: "Data".to_owned(),
            columns: vec!["found".to_owned()],
            names: 1,
            rows: vec![vec![task.describe()]],
            note: String::new(),
        };
        Ok((vec![table], 0))
    }
}

/// A configuration to begin with, and the data that it needs.
#[derive(Clone, Copy, Debug)]
pub struct Example {
    /// The text of the configuration.
    pub config: &'static str,
    /// Data that is not made by the configuration itself.
    pub data: Option<ExampleData>,
}

/// A small file of data that this program holds.
#[derive(Clone, Copy, Debug)]
pub struct ExampleData {
    /// Key of the configuration that names the file.
    pub key: &'static str,
    /// What the key says, from the directory of the configuration.
    pub name: &'static str,
    /// The file, which may be compressed.
    pub file: &'static str,
    /// What is in the file.
    pub bytes: &'static [u8],
}

/// What to draw a heatmap of.
#[derive(Clone, Debug, Default)]
pub struct HeatmapRequest {
    /// Features and coordinates of the slide.
    pub slide: PathBuf,
    /// A small picture of the whole slide, PNG, to draw over.
    pub thumbnail: Option<PathBuf>,
    /// Width and height of the slide in pixels of the full resolution.
    pub slide_size: Option<[f64; 2]>,
}

/// Something to do with a task that is known by name only at run time.
pub trait TaskVisitor {
    /// What comes out.
    type Output;

    /// Does it for one task.
    fn visit<T: TaskEntry>(self) -> Self::Output;
}

/// Declares the tasks; their names come from [`TaskConfig::NAME`].
macro_rules! tasks {
    ($($(#[$doc:meta])* $task:ty;)*) => {
        /// Keys that may stand under `[task]`.
        pub const TASKS: &[&str] = &[$(<<$task as Task>::Config as TaskConfig>::NAME,)*];

        /// Calls the visitor with the task of this name.
        ///
        /// # Errors
        /// [`Error::Usage`] if there is no such task.
        pub fn with_task<V: TaskVisitor>(name: &str, visitor: V) -> Result<V::Output, Error> {
            $(if name == <<$task as Task>::Config as TaskConfig>::NAME {
                return Ok(visitor.visit::<$task>());
            })*
            Err(Error::Usage {
                message: format!("unknown task `{name}`"),
                hint: Some(format!("the tasks are {}", TASKS.join(", "))),
            })
        }

        /// The published data sets of every task.
        #[must_use]
        pub fn known_sets() -> Vec<KnownSet> {
            let mut sets: Vec<KnownSet> = Vec::new();
            $(sets.extend(<$task as TaskEntry>::known_sets());)*
            sets
        }
    };
}

tasks! {
    /// Multivariate forecasting.
    forecasting::ForecastingTask;
    /// Multiple-instance learning: computational pathology.
    mil::MilTask;
    /// Language modelling.
    lm::LmTask;
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Name;

    impl TaskVisitor for Name {
        type Output = &'static str;

        fn visit<T: TaskEntry>(self) -> &'static str {
            T::Config::NAME
        }
    }

    #[test]
    fn a_task_is_found_by_name() {
        for name in TASKS {
            assert_eq!(with_task(name, Name).unwrap(), *name);
        }
        let error = with_task("forcasting", Name).unwrap_err();
        assert_eq!(
            error.report(),
            "error: unknown task `forcasting`\nhint: the tasks are forecasting, mil, lm"
        );
    }
}
