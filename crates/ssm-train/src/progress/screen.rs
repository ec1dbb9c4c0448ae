//! Where messages of a run go while something is drawn on the terminal.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use indicatif::ProgressBar;

/// Where messages go: to standard error, there above the bar while one is drawn, or into the dashboard
/// while one is open.
///
/// Clones share the same place.
#[derive(Clone, Default)]
pub struct Screen(Arc<Mutex<Place>>);

#[derive(Default)]
enum Place {
    #[default]
    StandardError,
    Above(ProgressBar),
    Dashboard(Vec<String>),
}

impl Screen {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self) {
        *self.place() = Place::Dashboard(Vec::new());
    }

    /// From now on messages are written above this bar.
    pub(super) fn draw_bar(&self, bar: ProgressBar) {
        *self.place() = Place::Above(bar);
    }

    /// What was written since the last call.
    pub(super) fn take(&self) -> Vec<String> {
        match &mut *self.place() {
            Place::Dashboard(lines) => std::mem::take(lines),
            _ => Vec::new(),
        }
    }

    pub(super) fn close(&self) {
        *self.place() = Place::StandardError;
    }
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Screen")
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.place() {
            Place::Dashboard(lines) => {
                let text = String::from_utf8_lossy(bytes);
                lines.extend(text.lines().map(str::to_owned));
                Ok(bytes.len())
            }
            Place::Above(bar) => bar.suspend(|| io::stderr().write(bytes)),
            Place::StandardError => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_to_an_open_dashboard() {
        let screen = Screen::default();
        screen.open();
        let mut writer = screen.clone();
        write!(writer, " INFO one\n WARN two\n").unwrap();
        assert_eq!(screen.take(), [" INFO one", " WARN two"]);
        assert_eq!(screen.take(), [""; 0]);
    }
}
