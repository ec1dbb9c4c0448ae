//! Runs that succeed.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{DEBUG, Desk, known_hours, published_data, root, rows};

#[test]
fn a_run_prints_a_table_and_leaves_everything_behind() {
    let desk = Desk::new();
    let ended = desk.trained(DEBUG, &[]);
    let run = desk.path("debug");
    for line in ["forecaster  parameters     MSE     MAE", "s_mamba  ", "last_value  "] {
        assert!(ended.stdout.contains(line), "{}", ended.stdout);
    }
    let end = format!("\nrun     {0}\nreport  {0}/report.html\n", run.display());
    assert!(ended.stdout.ends_with(&end), "{}", ended.stdout);

    let text = |name: &str| fs::read_to_string(run.join(name)).unwrap();
    assert!(text("report.html").starts_with("<!DOCTYPE html>"));
    let result: Value = serde_json::from_str(&text("result.json")).unwrap();
    assert_eq!(result["steps"], 100);
    assert!(result["metrics"]["mse"].as_f64().unwrap() < 0.7, "{result}");
    let info: Value = serde_json::from_str(&text("run.json")).unwrap();
    assert_eq!(info["seed"], 2023);
    assert_eq!(info["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(rows(&run).iter().filter(|row| row["split"] == "valid").count(), 2);
    for file in ["best", "last", "step_00000100/model.bpk", "step_00000100/manifest.json"] {
        assert!(run.join("checkpoints").join(file).is_file(), "{file}");
    }

    // The resolved configuration is itself a valid one and gives the same run.
    let again = Desk::new();
    again.trained(&run.join("config.toml").display().to_string(), &[]);
    assert_eq!(rows(&again.path("debug")), rows(&run));
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let desk = Desk::new();
    let config = |steps: &str| {
        let name = format!("{steps}.toml");
        let constant = "[schedule.constant]";
        let changes = [
            ("steps = 100\n", &*format!("steps = {steps}\n")),
            ("[schedule.cosine]\nwarmup_steps = 10\nmin_factor = 0.1", constant),
            ("eval_every_steps = 50", "eval_every_steps = 30"),
        ];
        desk.config(&name, &changes)
    };
    desk.trained(&config("90"), &["--set", "run.name=whole"]);
    desk.trained(&config("60"), &["--set", "run.name=parts"]);
    // Another instruction set may have other last bits, which is said; nothing else is to be said.
    let origin = desk.path("parts/run.json");
    let mut info: Value = serde_json::from_slice(&fs::read(&origin).unwrap()).unwrap();
    assert!(info["sessions"][0]["simd"].as_str().unwrap().starts_with(std::env::consts::ARCH));
    info["sessions"][0]["simd"] = "x86_64 V9".into();
    desk.put("parts/run.json", &info.to_string());
    let ended = desk.trained(&config("90"), &["--set", "run.name=parts", "--resume"]);
    let warning = "the instruction set of the kernels was `x86_64 V9` and is now `";
    assert!(ended.stderr.contains(warning), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches(" WARN ").count(), 1, "{}", ended.stderr);
    let (whole, parts) = (desk.path("whole"), desk.path("parts"));
    assert_eq!(rows(&whole).len(), 9 + 3);
    assert_eq!(rows(&parts), rows(&whole));
    let scores = |run: &Path| {
        let text = fs::read_to_string(run.join("result.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["metrics"].clone()
    };
    assert_eq!(scores(&parts), scores(&whole));
    // Both sessions are on record.
    let info: Value = serde_json::from_slice(&fs::read(parts.join("run.json")).unwrap()).unwrap();
    assert_eq!(info["sessions"][1]["from_step"], 60);
}

/// Steps, logs, event files, evaluations and checkpoints leave nothing in memory. What a tensor takes
/// makes no difference to that: the model is a small one.
#[test]
#[cfg(target_os = "linux")]
fn a_long_run_stays_as_small_as_it_was() {
    let desk = Desk::new();
    let dir = format!("run.dir={}", desk.dir().display());
    let settings = [
        &*dir,
        "device.backend=flex",
        "model.d_model=16",
        "model.n_layer=1",
        "train.batch_size=4",
        "train.steps=20000",
        "train.eval_every_steps=1000",
        "log.tensorboard=true",
    ];
    let mut child = Command::new(env!("CARGO_BIN_EXE_ssm"))
        .args(["train", "configs/lm/debug.toml", "--quiet"])
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        .current_dir(root())
        .env("NO_COLOR", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut sizes = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        // The last one comes too short before the end to look at the process.
        if line.unwrap().contains(": validation ") && sizes.len() < 19 {
            // A process that has just ended has no size any more.
            let status = fs::read_to_string(&status).unwrap_or_default();
            let size = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let size = size.map(|size| size.trim().trim_end_matches(" kB").parse::<u64>().unwrap());
            sizes.extend(size.map(|size| size / 1024));
        }
    }
    assert!(child.wait().unwrap().success());
    assert!(sizes.len() >= 15, "{sizes:?}");
    // The allocator takes its time to have what it needs, and at times keeps for a thousand steps what it
    // gives back then; what is never given back is in every size.
    let last = sizes[sizes.len() - 5..].iter().min().unwrap();
    assert!(*last < sizes[5] + 8, "MiB every 1000 steps: {sizes:?}");
}

#[test]
fn patience_that_ends_a_run_is_said() {
    let desk = Desk::new();
    // A rate at which training gets nowhere.
    let settings = ["optim.adam.lr=0.5", "train.eval_every_steps=2", "train.patience=1"];
    let set: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
    let ended = desk.trained(DEBUG, &[&set[..], &["--json"]].concat());
    let printed: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(printed["stopped_early"], true);
    let (steps, best) = (&printed["result"]["steps"], &printed["validation"]["best"]["step"]);
    let why = format!("no improvement in 1 evaluation since step {best}, `train.patience` is 1\n");
    let stopped = format!("stopped at step {steps}: {why}");
    assert!(ended.stderr.contains(&stopped), "{}", ended.stderr);
    let ended = desk.trained(DEBUG, &[&set[..], &["--resume"]].concat());
    assert!(ended.stderr.contains(&format!("nothing to train: {why}")), "{}", ended.stderr);
}

/// `--json` holds what a script needs: every digit, counts as counts, and where the run is.
#[test]
fn a_result_can_be_read_by_a_program() {
    let desk = Desk::new();
    let ended = desk.trained(DEBUG, &["--json", "--set", "train.steps=50"]);
    let run = desk.path("debug");
    let printed: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(printed["run"], run.to_str().unwrap());
    assert_eq!(printed["report"], run.join("report.html").to_str().unwrap());
    assert_eq!(printed["stopped_early"], false);
    assert_eq!(printed["validation"]["metric"], "mse");
    assert_eq!(printed["validation"]["best"]["step"], 50);
    let result = fs::read(run.join("result.json")).unwrap();
    assert_eq!(printed["result"], serde_json::from_slice::<Value>(&result).unwrap());
    assert!(printed["result"]["metrics"]["mse"].to_string().len() > 10, "{printed}");
}

#[test]
fn a_run_is_scored_again_and_predicts() {
    let desk = Desk::new();
    desk.trained(DEBUG, &["--quiet"]);
    let run = desk.path("debug").display().to_string();

    let ended = desk.ssm(&["eval", &run, "--json"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let scores: Value = serde_json::from_str(&ended.stdout).unwrap();
    let again = scores[format!("{run} on test")][0]["mse"].as_f64().unwrap();
    let result = fs::read(desk.path("debug/result.json")).unwrap();
    let first = serde_json::from_slice::<Value>(&result).unwrap()["metrics"]["mse"].clone();
    assert!((again - first.as_f64().unwrap()).abs() < 1e-12, "{again} is not {first}");
    let valid = desk.ssm(&["eval", &run, "--split", "valid"]);
    assert!(valid.stdout.contains(" on valid\n"), "{}", valid.stdout);
    // The other CPU backend computes the same model.
    let ended = desk.ssm(&["eval", &run, "--json", "--device", "ndarray"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let scores: Value = serde_json::from_str(&ended.stdout).unwrap();
    let other = scores[format!("{run} on test")][0]["mse"].as_f64().unwrap();
    assert!((again - other).abs() < 1e-4, "flex {again}, ndarray {other}");

    let columns = ["ewr_temp", "jfk_temp", "lga_temp"];
    let input = desk.put("input.csv", &known_hours(120));
    let ended = desk.ssm(&["predict", &run, "--input", &input]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines.len(), 1 + 24);
    assert!(lines[0].starts_with(&format!("date,{}", columns.join(","))), "{}", lines[0]);
    // 120 hours from 01:00 on: the last known one is midnight of the sixth day.
    assert!(lines[1].starts_with("2013-01-06 01:00:00,"), "{}", lines[1]);
    // °C in January, in original units.
    let first: f64 = lines[1].split(',').nth(1).unwrap().parse().unwrap();
    assert!((-25.0..20.0).contains(&first), "{first}");
    let output = desk.path("forecast.csv");
    let ended =
        desk.ssm(&["predict", &run, "--input", &input, "--output", output.to_str().unwrap()]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""));
    assert_eq!(fs::read_to_string(output).unwrap(), lines.join("\n") + "\n");

    // Three hours of them are missing: the model would take what lies around them for neighbours.
    let mut rows: Vec<String> = known_hours(120).lines().map(str::to_owned).collect();
    rows.drain(101..104);
    let input = desk.put("input.csv", &(rows.join("\n") + "\n"));
    let ended = desk.ssm(&["predict", &run, "--input", &input]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let warning = "1 of 116 steps are not `1h`, the most frequent one, the first from \
                   `2013-01-05T04:00:00` to `2013-01-05T08:00:00`; rows are taken in the order of \
                   the file";
    assert!(ended.stderr.contains(warning), "{}", ended.stderr);
}

#[test]
fn known_data_sets_are_listed() {
    let ended = Desk::new().ssm(&["data", "list", "--json"]);
    let list: Value = serde_json::from_str(&ended.stdout).unwrap();
    let sets = list["data sets"].as_array().unwrap();
    assert!(sets.iter().any(|set| set["name"] == "ETTh1" && set["task"] == "forecasting"));
    for set in sets {
        assert!(set["licence"].is_string() && set["origin"].is_string(), "{set}");
    }
    assert!(Desk::new().ssm(&["data", "list"]).stdout.contains("examples/data/nyc_airports.csv"));
}

/// Needs the published file; see `ssm data list`. Without it there is nothing to test.
#[test]
fn etth1_trains_where_the_data_is_at_hand() {
    let Some(data) = published_data() else { return };
    let desk = Desk::new();
    let ended = desk.trained(
        "configs/forecasting/etth1_96_smamba.toml",
        &[
            "--data-dir",
            data.to_str().unwrap(),
            "--set",
            "train.steps=30",
            "--set",
            "train.eval_every_steps=30",
        ],
    );
    let windows = "windows: 8449 training, 2785 validation, 2785 test";
    assert!(ended.stderr.contains(windows), "{}", ended.stderr);
    assert!(ended.stdout.contains("s_mamba"), "{}", ended.stdout);
}
