//! Live progress on a terminal; on anything else one message for each evaluation.

mod dashboard;
mod screen;

use std::{
    fmt::{self, Write},
    io::IsTerminal,
};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use self::dashboard::Dashboard;
pub use self::screen::Screen;
use crate::task::Throughput;

/// How a run shows itself while it goes.
#[derive(Clone, Debug)]
pub enum Show {
    /// A bar, where standard error is a terminal. Messages have to be written to the screen.
    Bar(Screen),
    /// Nothing but messages.
    Quiet,
    /// The whole terminal, where standard error is one. Messages have to be written to the screen.
    Dashboard(Screen),
}

impl Default for Show {
    fn default() -> Self {
        Self::Bar(Screen::default())
    }
}

/// The progress of a run as the user sees it.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Where messages go while there is a bar.
    screen: Screen,
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
            Show::Dashboard(_) => {
                tracing::warn!("no dashboard: standard error is not a terminal");
                None
            }
            _ => None,
        };
        let mut screen = Screen::default();
        let mut target = ProgressDrawTarget::hidden();
        if let (Show::Bar(given), true) = (show, is_terminal) {
            screen.clone_from(given);
            target = ProgressDrawTarget::stderr();
        }
        let bar = bar(total_steps, done, target);
        if !bar.is_hidden() {
            screen.draw_bar(bar.clone());
        }
        Self { bar, screen, dashboard, best: String::new(), pace: String::new() }
    }

    /// `memory` is what the run occupies, in bytes; it is asked for only where it is shown.
    pub(crate) fn step(&mut self, numbers: &StepNumbers, memory: impl FnOnce() -> Option<u64>) {
        if let Some(dashboard) = &mut self.dashboard {
            dashboard.step(numbers, memory);
        } else if !self.bar.is_hidden() {
            let StepNumbers { done, loss, lr, .. } = numbers;
            self.bar.set_position(*done);
            let Self { pace, best, .. } = self;
            self.bar.set_message(format!("  loss {loss:.4}  lr {lr:.1e}{pace}{best}"));
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

/// A bar of `done` of `total_steps`. Rate and remaining time appear once there are steps to take them from.
fn bar(total_steps: u64, done: u64, target: ProgressDrawTarget) -> ProgressBar {
    let rate = |state: &ProgressState, text: &mut dyn Write| {
        let rate = state.per_sec();
        if rate > 0.0 {
            let _ = write!(text, "  {rate:.1}/s");
        }
    };
    let left = |state: &ProgressState, text: &mut dyn Write| {
        if state.per_sec() > 0.0 {
            let _ = write!(text, "  eta {:#}", HumanDuration(state.eta()));
        }
    };
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} steps{rate}{msg}{left}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("rate", rate)
        .with_key("left", left)
        .progress_chars("=> ");
    let hidden = ProgressDrawTarget::hidden();
    let bar = ProgressBar::with_draw_target(Some(total_steps), hidden).with_style(style);
    // Without this the rate and the remaining time would count what an earlier process did.
    bar.set_position(done);
    bar.reset_eta();
    bar.set_draw_target(target);
    bar
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        if self.dashboard.is_none() {
            self.screen.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
        time::Duration,
    };

    use indicatif::TermLike;

    use super::*;

    /// A terminal that keeps what was drawn last.
    #[derive(Clone, Debug, Default)]
    struct Paper(Arc<Mutex<String>>);

    impl TermLike for Paper {
        fn width(&self) -> u16 {
            200
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.0.lock().unwrap().clear();
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_line_shows_rate_and_remaining_time_once_it_knows_them() {
        let paper = Paper::default();
        let target = ProgressDrawTarget::term_like(Box::new(paper.clone()));
        let (best, pace) = (String::new(), String::new());
        let (bar, screen) = (bar(10, 2, target), Screen::default());
        let mut progress = Progress { bar, screen, dashboard: None, best, pace };
        let shown = |progress: &Progress| {
            progress.bar.force_draw();
            paper.0.lock().unwrap().trim_end().to_owned()
        };
        assert_eq!(shown(&progress), "====>                    2/10 steps");
        std::thread::sleep(Duration::from_millis(30));
        progress.best("mse", 0.25);
        let numbers = StepNumbers { done: 5, loss: 0.5, lr: 1e-3, grad_norm: 1.0 };
        progress.step(&numbers, || None);
        let line = shown(&progress);
        let (before, after) = line.split_once("  loss 0.5000  lr 1.0e-3  best mse 0.2500").unwrap();
        assert!(after.starts_with("  eta "), "{line}");
        let rate = before.strip_prefix("============>            5/10 steps  ").expect(before);
        let rate: f64 = rate.strip_suffix("/s").expect(rate).parse().unwrap();
        // Three steps in 30 ms and whatever the machine adds; those of the process before do not count.
        assert!(rate > 0.0 && rate <= 100.0, "{line}");
    }
}
