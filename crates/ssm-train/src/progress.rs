//! Live progress on a terminal; on anything else one message for each evaluation.

use std::{
    fmt::{self, Write},
    io::IsTerminal,
};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// The progress of a run as the user sees it.
pub(crate) struct Progress {
    bar: ProgressBar,
    best: String,
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
    /// A bar on stderr if that is a terminal and `quiet` is not set.
    pub(crate) fn new(total_steps: u64, done: u64, quiet: bool) -> Self {
        let bar = if quiet || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            let template = "{bar:24} {pos}/{len} steps  {rate}/s  {msg}  eta {eta}";
            let rate = |state: &ProgressState, text: &mut dyn Write| {
                let _ = write!(text, "{:.1}", state.per_sec());
            };
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .with_key("rate", rate)
                .progress_chars("=> ");
            ProgressBar::new(total_steps).with_style(style)
        };
        // Without this the rate and the remaining time would count what an earlier process did.
        bar.set_position(done);
        bar.reset_eta();
        Self { bar, best: String::new() }
    }

    pub(crate) fn step(&self, numbers: &StepNumbers) {
        if !self.bar.is_hidden() {
            let StepNumbers { done, loss, lr, .. } = numbers;
            self.bar.set_position(*done);
            self.bar.set_message(format!("loss {loss:.4}  lr {lr:.1e}{}", self.best));
        }
    }

    /// Shows the best score so far from now on.
    pub(crate) fn best(&mut self, metric: &str, value: f64) {
        self.best = format!("  best {metric} {value:.4}");
    }

    /// A line that stays: above the bar if there is one, else as an event.
    pub(crate) fn line(&self, line: impl fmt::Display) {
        if self.bar.is_hidden() {
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
