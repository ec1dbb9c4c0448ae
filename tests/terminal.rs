//! What somebody sees who sits at a terminal. Without `script`, which lends one, nothing is tested.

use std::{
    fs,
    io::Write,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::support::{DEBUG, Desk, root};

/// Switches to the second screen and back.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";
const SHOW_CURSOR: &str = "\x1b[?25h";

/// A process that does not outlive the test.
struct Watched(Child);

impl Drop for Watched {
    fn drop(&mut self) {
        // Where it has ended already, both are refused. With its terminal gone, what runs in it ends too.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `ssm train --tui` on a terminal of 80 x 24, whose state is printed before and after, by a shell that
/// outlives Ctrl-C; `None` where there is no `script`, or another one than Linux has.
fn at_a_terminal(desk: &Desk, steps: u64) -> Option<Watched> {
    let version = Command::new("script").arg("--version").output().ok()?;
    if !String::from_utf8_lossy(&version.stdout).contains("util-linux") {
        return None;
    }
    let train = format!(
        "trap : INT; stty rows 24 cols 80; stty -g; '{}' train {DEBUG} --tui --set run.dir='{}' --set \
         train.steps={steps} --set train.patience={steps} --set train.eval_every_steps=20; echo code $?; stty -g",
        env!("CARGO_BIN_EXE_ssm"),
        desk.dir().display()
    );
    let child = Command::new("script")
        .args(["--quiet", "--flush", "--return", "--command", &train])
        .arg(desk.path("typescript"))
        .current_dir(root())
        .env("TERM", "xterm-256color")
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    Some(Watched(child.unwrap()))
}

/// What the terminal got, once it got `text`.
fn shown(desk: &Desk, child: &mut Watched, text: &str) -> String {
    let began = Instant::now();
    loop {
        let bytes = fs::read(desk.path("typescript")).unwrap_or_default();
        let said = String::from_utf8_lossy(&bytes).into_owned();
        if said.contains(text) {
            return said;
        }
        assert!(child.0.try_wait().unwrap().is_none(), "no `{text}`, but an end: {said}");
        assert!(began.elapsed() < Duration::from_secs(120), "no `{text}` in {said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Everything that was shown, of a terminal that is as it was before.
fn given_back(desk: &Desk, mut child: Watched) -> String {
    let began = Instant::now();
    while child.0.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(120), "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = String::from_utf8_lossy(&fs::read(desk.path("typescript")).unwrap()).into_owned();
    assert_eq!(said.matches(ENTER).count(), 1, "{said}");
    let (_, after) = said.rsplit_once(LEAVE).unwrap_or_else(|| panic!("never left: {said}"));
    assert!(after.contains(SHOW_CURSOR), "{said}");
    // As `stty -g` prints them, numbers and colons; the dashboard has colons in its times.
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let settings = |line: &&str| line.split(':').count() > 10 && line.split(':').all(is_number);
    let modes: Vec<&str> = said.lines().map(str::trim).filter(settings).collect();
    assert_eq!(modes.len(), 2, "{said}");
    assert_eq!(modes[0], modes[1]);
    said
}

#[test]
fn a_key_ends_the_dashboard_and_saves() {
    // The letter, and what the terminal itself makes a signal of.
    for key in [b"q", b"\x03"] {
        let desk = Desk::new();
        let Some(mut child) = at_a_terminal(&desk, 1_000_000) else { return };
        // Of the first evaluation, `the best so far`: what is said before the dashboard has no such word.
        shown(&desk, &mut child, "best");
        child.0.stdin.as_mut().unwrap().write_all(key).unwrap();
        let said = given_back(&desk, child);
        // What lies between words is not drawn anew.
        assert!(["training", "loss", "messages"].iter().all(|word| said.contains(word)), "{said}");
        let (_, after) = said.rsplit_once(LEAVE).unwrap();
        assert!(after.contains("error: interrupted by signal 2 at step "), "{after}");
        assert!(after.contains("code 130"), "{after}");
        assert!(desk.path("debug/checkpoints/last").is_file());
    }
}

/// The result stands where the shell goes on, not on the screen that is gone.
#[test]
fn a_run_that_ends_leaves_its_messages_and_its_result() {
    let desk = Desk::new();
    let Some(child) = at_a_terminal(&desk, 40) else { return };
    let said = given_back(&desk, child);
    let (_, after) = said.rsplit_once(LEAVE).unwrap();
    for word in ["step 40/40, epoch 1: validation mae", "forecaster", "report.html", "code 0"] {
        assert!(after.contains(word), "no `{word}` in {after}");
    }
}

/// Where there is no terminal it is said, and the run goes on as without.
#[test]
fn a_dashboard_needs_a_terminal() {
    let desk = Desk::new();
    let ended = desk.trained(DEBUG, &["--tui", "--set", "train.steps=20"]);
    let warning = " WARN no dashboard: standard error is not a terminal\n";
    assert!(ended.stderr.contains(warning), "{}", ended.stderr);
    assert!(ended.stderr.contains("step 20/20"), "{}", ended.stderr);
    assert!(!ended.stderr.contains('\x1b') && !ended.stdout.contains('\x1b'));
}
