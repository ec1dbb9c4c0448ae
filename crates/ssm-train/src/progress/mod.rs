//! Live progress on a terminal; on anything else one message for each evaluation.

mod dashboard;

use std::{
    fmt::{self, Write},
    io::IsTerminal,
};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use self::dashboard::Dashboard;
pub use self::dashboard::Screen;
use crate::task::Throughput;

/// How a run shows itself while it goes.
#[derive(Clone, Debug, Default)]
pub enum Show {
    /// A bar, where standard error is a terminal.
    #[default]
    Bar,
    /// Nothing but messages.
    Quiet,
    /// The whole terminal, where standard error is one. Messages have to be written to the screen.
    Dashboard(Screen),
}

/// The progress of a run as the user sees it.
pub(crate) struct Progress {
    bar: ProgressBar,
    dashboard: Option<Dashboard>,
    best: String,
    pace: String,
}

/// Numbers of a step.
pub(crate) struct StepNumbers {
    pub(crate) done: u64,
    pub(crate) loss: f64,
    pub(crate) lr: f64,
    /// Global norm of the gradient, before clipping.
    pub(crate) grad_norm: f64,
}

impl Progress {
    /// Of the run `name`, of which `done` steps are done.
    pub(crate) fn new(name: &str, total_steps: u64, done: u64, show: &Show) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let dashboard = match show {
            Show::Dashboard(screen) if is_terminal => {
                Dashboard::open(name, total_steps, done, screen.clone())
                    .map_err(|error| tracing::warn!("no dashboard: {error}"))
                    .ok()
            }
            _ => None,
        };
        let bar = if matches!(show, Show::Bar) && is_terminal {
            let template = "{bar:24} {pos}/{len} steps  {rate}/s  {msg}  eta {eta}";
            let rate = |state: &ProgressState, text: &mut dyn Write| {
                let _ = write!(text, "{:.1}", state.per_sec());
            };
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .with_key("rate", rate)
                .progress_chars("=> ");
            ProgressBar::new(total_steps).with_style(style)
        } else {
            ProgressBar::hidden()
        };
        // Without this the rate and the remaining time would count what an earlier process did.
        bar.set_position(done);
        bar.reset_eta();
        Self { bar, dashboard, best: String::new(), pace: String::new() }
    }

    /// `memory` is what the run occupies, in bytes; it is asked for only where it is shown.
    pub(crate) fn step(&mut self, numbers: &StepNumbers, memory: impl FnOnce() -> Option<u64>) {
        if let Some(dashboard) = &mut self.dashboard {
            dashboard.step(numbers, memory);
        } else if !self.bar.is_hidden() {
            let StepNumbers { done, loss, lr, .. } = numbers;
            self.bar.set_position(*done);
            let Self { pace, best, .. } = self;
            self.bar.set_message(format!("loss {loss:.4}  lr {lr:.1e}{pace}{best}"));
        }
    }

    /// Shows how fast the run is from now on.
    pub(crate) fn pace(&mut self, throughput: &Throughput) {
        self.pace = format!("  {throughput}");
        if let Some(dashboard) = &mut self.dashboard {
            dashboard.pace(&self.pace);
        }
    }

    /// Shows the best score so far from now on.
    pub(crate) fn best(&mut self, metric: &str, value: f64) {
        self.best = format!("  best {metric} {value:.4}");
        if let Some(dashboard) = &mut self.dashboard {
            dashboard.best(&self.best);
        }
    }

    /// A line that stays: above the bar if there is one, else as an event.
    pub(crate) fn line(&mut self, line: impl fmt::Display) {
        if let Some(dashboard) = &mut self.dashboard {
            dashboard.line(line.to_string());
        } else if self.bar.is_hidden() {
            tracing::info!("{line}");
        } else {
            self.bar.println(line.to_string());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
