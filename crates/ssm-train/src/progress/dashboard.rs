//! The whole terminal as a dashboard: curves, throughput, memory, time to go.

use std::{
    collections::VecDeque,
    io::{self, Stderr, Write},
    panic::PanicHookInfo,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ratatui::{
    Frame, Terminal,
    crossterm::{
        cursor::Show,
        event::{self, Event, KeyCode},
        execute,
        terminal::{
            Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
            enable_raw_mode,
        },
    },
    layout::{Constraint, Layout, Rect},
    prelude::CrosstermBackend,
    style::{Color, Style},
    symbols::Marker,
    text::{Line, Text},
    widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph},
};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::{Handle, Signals},
    low_level,
};

use super::{Screen, StepNumbers};
use crate::{machine, report::thin};

/// Time between two pictures: often enough for the eye, seldom enough for the processor.
const PAUSE: Duration = Duration::from_millis(200);
/// Points that a curve keeps.
const MAX_POINTS: usize = 2000;
/// Messages that are kept.
const MAX_MESSAGES: usize = 200;

/// A dashboard on standard error; the terminal is given back when it is dropped, and before that at
/// the first signal: the second one ends the process, which then can give nothing back.
pub(super) struct Dashboard {
    terminal: Terminal<CrosstermBackend<Stderr>>,
    lent: Lent,
    watch: (Handle, Option<JoinHandle<()>>),
    before: Arc<Hook>,
    drawn: Instant,
    state: State,
}

type Hook = dyn Fn(&PanicHookInfo<'_>) + Send + Sync;

/// The terminal, as long as it is the dashboard's. Clones share the same one.
#[derive(Clone)]
struct Lent {
    is_ours: Arc<Mutex<bool>>,
    screen: Screen,
}

impl Lent {
    fn take(screen: Screen) -> io::Result<Self> {
        enable_raw_mode()?;
        keep_interrupts()?;
        // Not every terminal has a second screen, and an empty one. `Terminal::clear` would ask where the
        // cursor is, which not every terminal answers.
        execute!(io::stderr(), EnterAlternateScreen, Clear(ClearType::All))?;
        screen.open();
        Ok(Self { is_ours: Arc::new(Mutex::new(true)), screen })
    }

    /// The lock is held while something is drawn.
    fn is_ours(&self) -> MutexGuard<'_, bool> {
        self.is_ours.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether it was still to be given back.
    fn give_back(&self) -> bool {
        let mut is_ours = self.is_ours();
        if !std::mem::take(&mut *is_ours) {
            return false;
        }
        let _ = give_back();
        let lines = self.screen.take();
        self.screen.close();
        for line in lines {
            let _ = writeln!(io::stderr(), "{line}");
        }
        true
    }
}

/// What the dashboard shows.
struct State {
    name: String,
    total_steps: u64,
    started: Instant,
    /// Steps that were done before this process.
    from_step: u64,
    done: u64,
    lr: f64,
    grad_norm: f64,
    best: String,
    /// Tokens a second, where there are tokens.
    pace: String,
    losses: Vec<(f64, f64)>,
    /// Steps a second, averaged between two pictures.
    rates: Vec<(f64, f64)>,
    memory: Option<u64>,
    messages: VecDeque<String>,
}

impl Dashboard {
    pub(super) fn open(
        name: &str,
        total_steps: u64,
        from_step: u64,
        screen: Screen,
    ) -> io::Result<Self> {
        let lent = Lent::take(screen).inspect_err(|_| _ = give_back())?;
        Self::draw_on(lent.clone(), State::new(name, total_steps, from_step))
            .inspect_err(|_| _ = lent.give_back())
    }

    fn draw_on(lent: Lent, state: State) -> io::Result<Self> {
        let terminal = Terminal::new(CrosstermBackend::new(io::stderr()))?;
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let handle = signals.handle();
        let watched = lent.clone();
        let watch = std::thread::Builder::new().name("dashboard".to_owned()).spawn(move || {
            for _ in &mut signals {
                if watched.give_back() {
                    let said = "stopping: the step is finished and saved; Ctrl-C ends at once";
                    let _ = writeln!(io::stderr(), "{said}");
                }
            }
        })?;
        // A panic is to be read on the terminal as it was before.
        let before: Arc<Hook> = Arc::from(std::panic::take_hook());
        let next = before.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let _ = give_back();
            next(panic);
        }));
        // Drawn as soon as there is something to show.
        let drawn = Instant::now().checked_sub(PAUSE).unwrap_or_else(Instant::now);
        Ok(Self { terminal, lent, watch: (handle, Some(watch)), before, drawn, state })
    }

    pub(super) fn step(&mut self, numbers: &StepNumbers, memory: impl FnOnce() -> Option<u64>) {
        self.state.step(numbers);
        // In every step, as messages draw too: where there are many, none is left to this.
        // Once the terminal is given back, keys are the shell's.
        while *self.lent.is_ours() && event::poll(Duration::ZERO).unwrap_or(false) {
            if let Ok(Event::Key(key)) = event::read()
                && key.code == KeyCode::Char('q')
            {
                let _ = low_level::raise(SIGINT);
                break;
            }
        }
        if self.drawn.elapsed() < PAUSE {
            return;
        }
        self.state.rate(self.drawn.elapsed());
        self.state.memory = memory();
        self.draw();
    }

    pub(super) fn best(&mut self, text: &str) {
        text.trim().clone_into(&mut self.state.best);
    }

    pub(super) fn pace(&mut self, text: &str) {
        text.trim().clone_into(&mut self.state.pace);
    }

    pub(super) fn line(&mut self, line: String) {
        self.state.message(line);
        self.draw();
    }

    fn draw(&mut self) {
        for line in self.lent.screen.take() {
            self.state.message(line);
        }
        self.drawn = Instant::now();
        let is_ours = self.lent.is_ours();
        if !*is_ours {
            drop(is_ours);
            return self.say_messages();
        }
        // A terminal that is gone takes no picture; the run does not need one.
        let _ = self.terminal.draw(|frame| self.state.draw(frame));
    }

    /// What was said while the dashboard was open is not lost with it.
    fn say_messages(&mut self) {
        for message in self.state.messages.drain(..) {
            let _ = writeln!(io::stderr(), "{message}");
        }
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        for line in self.lent.screen.take() {
            self.state.message(line);
        }
        self.lent.give_back();
        self.say_messages();
        self.watch.0.close();
        let _ = self.watch.1.take().map(JoinHandle::join);
        // While it panics itself, a thread cannot change what panics do.
        if !std::thread::panicking() {
            let before = self.before.clone();
            std::panic::set_hook(Box::new(move |panic| before(panic)));
        }
    }
}

/// Raw mode takes the meaning away from all keys; Ctrl-C gets it back, as a step may take long, and
/// keys are looked at after each.
fn keep_interrupts() -> io::Result<()> {
    let mut modes = tcgetattr(io::stderr())?;
    modes.local_modes |= LocalModes::ISIG;
    for other in [SpecialCodeIndex::VQUIT, SpecialCodeIndex::VSUSP] {
        modes.special_codes[other] = NO_KEY;
    }
    Ok(tcsetattr(io::stderr(), OptionalActions::Now, &modes)?)
}

/// What POSIX calls `_POSIX_VDISABLE`.
const NO_KEY: u8 = if cfg!(target_os = "linux") { 0 } else { 0xff };

fn give_back() -> io::Result<()> {
    disable_raw_mode()?;
    execute!(io::stderr(), LeaveAlternateScreen, Show)
}

impl State {
    fn new(name: &str, total_steps: u64, from_step: u64) -> Self {
        Self {
            name: name.to_owned(),
            total_steps,
            started: Instant::now(),
            from_step,
            done: from_step,
            lr: 0.0,
            grad_norm: 0.0,
            best: String::new(),
            pace: String::new(),
            losses: Vec::new(),
            rates: Vec::new(),
            memory: None,
            messages: VecDeque::new(),
        }
    }

    fn step(&mut self, numbers: &StepNumbers) {
        let StepNumbers { done, loss, lr, grad_norm } = *numbers;
        (self.done, self.lr, self.grad_norm) = (done, lr, grad_norm);
        push(&mut self.losses, (done as f64, loss));
    }

    fn rate(&mut self, since: Duration) {
        let before = self.rates.last().map_or(self.from_step as f64, |(step, _)| *step);
        let steps = self.done as f64 - before;
        push(&mut self.rates, (self.done as f64, steps / since.as_secs_f64().max(1e-3)));
    }

    fn message(&mut self, line: String) {
        if self.messages.len() == MAX_MESSAGES {
            self.messages.pop_front();
        }
        self.messages.push_back(line);
    }

    /// Time to go, at the pace of this process.
    fn remaining(&self) -> Option<Duration> {
        let steps = self.done.checked_sub(self.from_step).filter(|steps| *steps > 0)?;
        let left = self.total_steps.saturating_sub(self.done);
        Some(self.started.elapsed().mul_f64(left as f64 / steps as f64))
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        // Where there is little room, frames take it from what they frame.
        let framed = frame.area().height >= HIGH;
        let [for_curves, for_numbers, for_messages] = if framed { [8, 3, 6] } else { [4, 1, 2] };
        let [head, curves, numbers, messages, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(for_curves),
            Constraint::Length(for_numbers),
            Constraint::Length(for_messages),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let share = self.done as f64 / self.total_steps.max(1) as f64;
        let eta = self.remaining().map_or_else(|| "?".to_owned(), clock);
        let label = format!("{}  step {}/{}  eta {eta}", self.name, self.done, self.total_steps);
        frame.render_widget(
            Gauge::default().ratio(share.clamp(0.0, 1.0)).label(label).gauge_style(Color::Blue),
            head,
        );
        let [loss, rate] =
            Layout::horizontal([Constraint::Percentage(65), Constraint::Percentage(35)])
                .areas(curves);
        chart(frame, loss, "training loss", &self.losses, Color::Cyan);
        chart(frame, rate, "steps a second", &self.rates, Color::Green);

        let last = self.losses.last().map_or("-".to_owned(), |(_, loss)| format!("{loss:.4}"));
        let memory = self.memory.map_or_else(|| "-".to_owned(), machine::readable);
        let rate = self.rates.last().map_or(0.0, |(_, rate)| *rate);
        // What a narrow terminal cuts off is told last.
        let facts = [
            format!("loss {last}"),
            self.best.clone(),
            format!("{rate:.1} steps/s"),
            self.pace.clone(),
            format!("memory {memory}"),
            format!("gradient {:.3}", self.grad_norm),
            format!("lr {:.2e}", self.lr),
        ];
        let told: Vec<String> = facts.into_iter().filter(|fact| !fact.is_empty()).collect();
        let block = || if framed { Block::bordered() } else { Block::new() };
        frame.render_widget(Paragraph::new(told.join("   ")).block(block()), numbers);
        let titled = if framed { block().title("messages") } else { block() };
        let room = usize::from(titled.inner(messages).height);
        let shown = self.messages.iter().rev().take(room).rev().map(|line| Line::raw(line.clone()));
        frame.render_widget(Paragraph::new(Text::from_iter(shown)).block(titled), messages);
        let hint = "q or Ctrl-C: save and stop";
        frame.render_widget(Paragraph::new(hint).style(Style::new().dim()), keys);
    }
}

/// Adds a point; a curve that has grown too long keeps its peaks and troughs.
fn push(curve: &mut Vec<(f64, f64)>, point: (f64, f64)) {
    if point.1.is_finite() {
        curve.push(point);
    }
    if curve.len() > MAX_POINTS {
        *curve = thin(curve, MAX_POINTS / 2);
    }
}

/// Values that differ by more than this factor are drawn on a logarithmic axis.
const DECADES: f64 = 100.0;

/// Lowest terminal with frames around what is not a curve.
const HIGH: u16 = 20;

/// Narrowest chart with a label in the middle of its lower edge.
const WIDE: u16 = 40;

fn chart(frame: &mut Frame<'_>, area: Rect, title: &str, points: &[(f64, f64)], colour: Color) {
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    };
    let with_room = |(low, high): (f64, f64)| {
        if low > high {
            return [0.0, 1.0];
        }
        // A level line needs room too.
        let room = if high > low { 0.0 } else { (high.abs() * 0.05).max(0.5) };
        [low - room, high + room]
    };
    let between = |ends: [f64; 2]| [ends[0], ends[0].midpoint(ends[1]), ends[1]];
    let (lowest, highest) = range(&mut points.iter().map(|point| point.1));
    let logarithmic = lowest > 0.0 && highest > lowest * DECADES;
    let drawn: Vec<(f64, f64)> = if logarithmic {
        points.iter().map(|(x, y)| (*x, y.log10())).collect()
    } else {
        points.to_vec()
    };
    let x = with_room(range(&mut drawn.iter().map(|point| point.0)));
    let y = with_room(range(&mut drawn.iter().map(|point| point.1)));
    let y_labels = between(y).map(|value| match logarithmic {
        true => format!("{:.1e}", 10_f64.powf(value)),
        false if y[1] < 100.0 => format!("{value:.3}"),
        false => format!("{value:.1}"),
    });
    let mut x_labels = between(x).map(|value| format!("{value:.0}")).to_vec();
    if area.width < WIDE {
        x_labels.remove(1);
    }
    let dataset = Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .style(Style::new().fg(colour))
        .data(&drawn);
    let axis = || Axis::default().style(Style::new().dim());
    let title = if logarithmic { format!("{title}, logarithmic") } else { title.to_owned() };
    frame.render_widget(
        Chart::new(vec![dataset])
            .block(Block::bordered().title(title))
            .x_axis(axis().bounds(x).labels(x_labels))
            .y_axis(axis().bounds(y).labels(y_labels)),
        area,
    );
}

/// `1:02:03`, or `2:03` below an hour.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

#[cfg(test)]
mod tests {
    use ratatui::backend::TestBackend;

    use super::*;

    #[test]
    fn the_dashboard_shows_where_the_run_stands() {
        let mut state = State::new("etth1", 100, 10);
        for done in 11..=60 {
            state.step(&StepNumbers { done, loss: 1.0 / done as f64, lr: 1e-3, grad_norm: 0.5 });
        }
        state.rate(Duration::from_secs(1));
        state.memory = Some(3 << 30);
        state.best = "best mse 0.3812".to_owned();
        state.pace = "1200 tokens/s".to_owned();
        state.message("step 50/100: validation mse 0.3812".to_owned());
        let mut terminal = Terminal::new(TestBackend::new(110, 30)).unwrap();
        terminal.draw(|frame| state.draw(frame)).unwrap();
        let text = terminal.backend().to_string();
        for shown in [
            "etth1  step 60/100  eta 0:00",
            "training loss",
            "steps a second",
            "loss 0.0167",
            "lr 1.00e-3",
            "best mse 0.3812   50.0 steps/s   1200 tokens/s",
            "memory 3.0 GiB",
            "step 50/100: validation",
            "save and stop",
        ] {
            assert!(text.contains(shown), "no `{shown}` in\n{text}");
        }
        // Over four decades a curve on a plain axis is a corner.
        for done in 61..=90 {
            state.step(&StepNumbers { done, loss: 1e-5, lr: 1e-3, grad_norm: 0.5 });
        }
        terminal.draw(|frame| state.draw(frame)).unwrap();
        let text = terminal.backend().to_string();
        for shown in ["training loss, logarithmic", "9.1e-2", "1.0e-5"] {
            assert!(text.contains(shown), "no `{shown}` in\n{text}");
        }
        // Nothing to show yet, and hardly any room to do so.
        let mut small = Terminal::new(TestBackend::new(12, 4)).unwrap();
        small.draw(|frame| State::new("x", 0, 0).draw(frame)).unwrap();
    }

    fn drawn(state: &State, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| state.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    /// What a run may be, on terminals that people have.
    #[test]
    fn any_run_is_shown_on_any_terminal() {
        let steps = |losses: &mut dyn Iterator<Item = f64>| {
            let mut state = State::new("etth1", 100_000, 0);
            for (done, loss) in (1..).zip(losses) {
                state.step(&StepNumbers { done, loss, lr: 1e-3, grad_norm: loss });
            }
            state.rate(Duration::from_secs(1));
            state
        };
        let mut long = steps(&mut [0.5].into_iter());
        long.name = "a_name_".repeat(40);
        long.best = "best ".repeat(100);
        (0..300).for_each(|line| long.message(format!("{line} {}", "ẞ".repeat(500))));
        let none = f64::NAN;
        let runs = [
            ("nothing", steps(&mut [].into_iter()), ["step 0/100000", "loss -"]),
            ("one point", steps(&mut [0.25].into_iter()), ["step 1/100000", "loss 0.2500"]),
            ("level", steps(&mut [0.25; 9].into_iter()), ["step 9/100000", "loss 0.2500"]),
            (
                "not finite",
                steps(&mut [none, 1.0, f64::INFINITY, none, -f64::INFINITY].into_iter()),
                ["step 5/100000", "loss 1.0000"],
            ),
            (
                "huge",
                steps(&mut [f64::MAX, -f64::MAX, 0.0].into_iter()),
                ["step 3/", "loss 0.0000"],
            ),
            ("tiny", steps(&mut [5e-324, 1.0].into_iter()), ["step 2/", "loss 1.0000"]),
            (
                "many",
                steps(&mut (0..100_000).map(|step| 1.0 / f64::from(1 + step))),
                ["step 100000/100000", "loss 0.0000"],
            ),
            ("long", long, ["a_name_", "loss 0.5000"]),
        ];
        for (run, state, words) in &runs {
            assert!(state.losses.len() <= MAX_POINTS, "{run}");
            for (width, height) in [(80, 24), (40, 12), (200, 60)] {
                let text = drawn(state, width, height);
                for word in words.iter().chain(&["training loss", "save and stop"]) {
                    assert!(text.contains(word), "{run}, {width}x{height}: no `{word}` in\n{text}");
                }
            }
            // What nobody can read is no reason to end a run either.
            for (width, height) in [(1, 1), (3, 100), (1000, 2)] {
                drawn(state, width, height);
            }
        }
    }

    #[test]
    fn times_are_read_as_clocks() {
        for (seconds, text) in [(0, "0:00"), (125, "2:05"), (3723, "1:02:03")] {
            assert_eq!(clock(Duration::from_secs(seconds)), text);
        }
    }
}
