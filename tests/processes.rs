//! Several processes that MPI started train one model. Without `mpirun` nothing is tested.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{Desk, Ended, root};

/// Whether there is a launcher. `.ci/devices` installs one, and builds what it can launch.
fn is_here() -> bool {
    let found = Command::new("mpirun").arg("--version").output();
    found.is_ok_and(|output| output.status.success())
}

/// `ssm train` of the small language model in `n` processes.
fn mpirun(desk: &Desk, n: usize, name: &str, settings: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    // More processes than processors, as root in a container, and the processors are not shared out:
    // the two ranks of a test have others beside them.
    command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n"]);
    command.arg(n.to_string()).arg(env!("CARGO_BIN_EXE_ssm"));
    command.args(train(desk, name, settings)).current_dir(root()).env("NO_COLOR", "1");
    command
}

/// What `ssm train` is called with: unless `settings` say otherwise, 24 steps of four micro-batches.
fn train(desk: &Desk, name: &str, settings: &[&str]) -> Vec<String> {
    let dir = format!("run.dir={}", desk.dir().display());
    let name = format!("run.name={name}");
    let mut all = vec![
        &*dir,
        &*name,
        "device.backend=flex",
        "train.steps=24",
        "train.batch_size=8",
        "train.accumulate=4",
        "train.eval_every_steps=12",
        "checkpoint.every_steps=3",
        "log.every_steps=1",
    ];
    for setting in settings {
        let key = setting.split_inclusive('=').next().unwrap();
        all.retain(|other| !other.starts_with(key));
        all.push(setting);
    }
    let words = ["train", "configs/lm/debug.toml", "--quiet"].into_iter();
    words.chain(all.into_iter().flat_map(|setting| ["--set", setting])).map(str::to_owned).collect()
}

fn alone(desk: &Desk, name: &str, settings: &[&str], more: &[&str]) -> Ended {
    let words = train(desk, name, settings);
    let words: Vec<&str> = words.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let ended = desk.ssm(&words);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    ended
}

fn succeeded(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    error
}

/// Everything that two equal runs have in common: log lines without times, and the best weights.
fn trace(run: &Path) -> (Vec<Value>, Vec<u8>) {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let mut rows: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for row in &mut rows {
        for time in ["elapsed_secs", "samples_per_sec", "tokens_per_sec"] {
            row.as_object_mut().unwrap().remove(time);
        }
    }
    let checkpoints = run.join("checkpoints");
    let last = fs::read_to_string(checkpoints.join("last")).unwrap();
    let last = last.lines().next().unwrap();
    (rows, fs::read(checkpoints.join(last).join("model.bpk")).unwrap())
}

/// With a micro-batch for each process not a bit differs; with more, sums have another order.
#[test]
fn processes_train_what_one_would_have_trained() {
    if !is_here() {
        return;
    }
    let desk = Desk::new();
    alone(&desk, "one", &[], &[]);
    let error = succeeded(&mpirun(&desk, 4, "four", &[]).output().unwrap());
    // One of them speaks.
    assert_eq!(error.matches("replicas: 4, gradients through MPI").count(), 1, "{error}");
    assert_eq!(error.matches("model: ").count(), 1, "{error}");
    assert_eq!(trace(&desk.path("four")), trace(&desk.path("one")));
    let info = fs::read_to_string(desk.path("four/run.json")).unwrap();
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["sessions"][0]["replicas"], 4);

    // Two replicas take two each: the order of sums is that of two threads.
    succeeded(&mpirun(&desk, 2, "two", &[]).output().unwrap());
    alone(&desk, "threads", &["device.replicas=2"], &[]);
    assert_eq!(trace(&desk.path("two")), trace(&desk.path("threads")));
}

/// Starts a run of two processes that goes on for long, and waits until it was saved.
fn under_way(desk: &Desk) -> (Child, Vec<u32>) {
    let mut command = mpirun(desk, 2, "cut", &["train.steps=100000"]);
    let job = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while !desk.path("cut/checkpoints/last").exists() {
        assert!(began.elapsed() < Duration::from_secs(120), "no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    let leader: u32 = fs::read_to_string(desk.path("cut/lock")).unwrap().trim().parse().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", job.id());
    let children = fs::read_to_string(children).unwrap();
    let followers = children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap());
    let mut pids = vec![leader];
    pids.extend(followers.filter(|pid| *pid != leader));
    assert_eq!(pids.len(), 2);
    (job, pids)
}

fn signal(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// One rank is killed, the one that writes or the other: all end within seconds, what is left is named,
/// and the run goes on, here with one process, to where it would have come.
#[test]
fn a_killed_process_stops_the_others() {
    if !is_here() {
        return;
    }
    for killed in [1, 0] {
        let desk = Desk::new();
        let (job, pids) = under_way(&desk);
        signal("-KILL", pids[killed]);
        let began = Instant::now();
        let output = job.wait_with_output().unwrap();
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(&format!("replica {killed} of 2")), "{error}");
        assert!(error.contains("continue with `--resume`"), "{error}");
        assert!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists()));

        let last = fs::read_to_string(desk.path("cut/checkpoints/last")).unwrap();
        let steps = format!("train.steps={}", step(&last).max(20) + 3);
        let ended = alone(&desk, "cut", &[&steps], &["--resume"]);
        let said = "replicas: 2 (MPI) until now, 1 from here on";
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
        assert!(desk.path("cut/result.json").exists());
    }
}

/// The step that `last` names in its first line.
fn step(last: &str) -> u64 {
    last.lines().next().unwrap().trim_start_matches("step_").parse().unwrap()
}

/// The one that writes finishes the step with the others and saves.
#[test]
fn a_signal_to_any_process_saves_and_ends_all() {
    if !is_here() {
        return;
    }
    for rank in [0, 1] {
        let desk = Desk::new();
        let (job, pids) = under_way(&desk);
        signal("-TERM", pids[rank]);
        let output = job.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(143), "{error}");
        let last = fs::read_to_string(desk.path("cut/checkpoints/last")).unwrap();
        let said = format!("interrupted by signal 15 at step {}\n", step(&last));
        assert!(error.contains(&said), "{error}");
    }
}

/// An error of one process is the error of the job.
#[test]
fn mistakes_are_said_once() {
    if !is_here() {
        return;
    }
    let desk = Desk::new();
    for (setting, message) in [
        (
            "train.accumulate=1",
            "`train.accumulate`: expected at least the number of processes, 2, got `1`",
        ),
        (
            "device.replicas=2",
            "`device.replicas`: expected 1 for processes that MPI started, got `2`",
        ),
        ("train.stpes=2", "unknown key `stpes`"),
    ] {
        let output = mpirun(&desk, 2, "x", &[setting]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert_eq!(error.matches(message).count(), 1, "{error}");
        assert!(!desk.path("x").exists());
    }
    // What only the first one can know ends the others too.
    alone(&desk, "again", &[], &[]);
    let output = mpirun(&desk, 2, "again", &[]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert_eq!(error.matches("already holds a run").count(), 1, "{error}");
}
