//! What stands around training: beginning, looking on, comparing, describing.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{DEBUG, Desk, Ended, root};

fn succeeded(ended: Ended) -> String {
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    ended.stdout
}

fn parsed(ended: Ended) -> Value {
    serde_json::from_str(&succeeded(ended)).unwrap()
}

const SHORT: [&str; 4] = ["--set", "train.steps=20", "--set", "train.eval_every_steps=10"];

/// The value of a row of the table `Estimate`.
fn estimated(tables: &Value, what: &str) -> Value {
    let rows = tables["Estimate"].as_array().unwrap();
    rows.iter().find(|row| row["what"] == what).unwrap()["value"].clone()
}

/// A step of many micro-batches takes long, so a part of it is measured; one of them is the truth. Other
/// tests take their turns on the same processor: a time that is wrong once is no mistake of the estimate.
#[test]
fn an_estimate_of_a_part_is_near_the_whole() {
    let desk = Desk::new();
    let settings = [
        "device.backend=flex",
        "model.d_model=64",
        "model.n_layer=12",
        "data.induction_heads.seq_len=64",
    ];
    let set: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let config = "configs/lm/debug.toml";
    let near = |[one, other]: [f64; 2]| one < 2.0 * other && other < 2.0 * one;
    let mut tries = Vec::new();
    for _ in 0..5 {
        let check = ["check", config, "--json", "--set", "train.accumulate=128"];
        let part = parsed(desk.ssm(&[&check[..], &set].concat()));
        let bench = ["bench", config, "--json", "--steps", "5"];
        let whole = parsed(desk.ssm(&[&bench[..], &set].concat()));
        for what in ["parameters", "memory, weights to optimiser"] {
            assert_eq!(estimated(&part, what), estimated(&whole, what));
        }
        let scaled = estimated(&part, "scaled from");
        let scaled = scaled.as_str().unwrap();
        assert!(scaled.starts_with("1 and 2 of 12 layers, "), "{scaled}");
        assert!(scaled.ends_with(", 2 of 128 micro-batches"), "{scaled}");
        let both = |what| [&part, &whole].map(|table| estimated(table, what).as_f64().unwrap());
        let (memory, [step, micro_batch]) = (both("memory, all"), both("milliseconds a step"));
        let time = [step, 128.0 * micro_batch];
        if near(time) && near(memory) {
            return;
        }
        tries.push((time, memory));
    }
    panic!("estimated and true milliseconds a step and bytes: {tries:?}");
}

/// From an empty directory, as somebody who has nothing but the program.
#[test]
fn what_init_writes_trains() {
    for (task, extra) in
        [("forecasting", &["--set", "train.epochs=1"][..]), ("mil", &[]), ("lm", &[])]
    {
        let desk = Desk::new();
        let config = format!("{task}.toml");
        let said = succeeded(desk.ssm_in(desk.dir(), &["init", task]));
        assert!(said.starts_with(&format!("config  {config}\n")), "{said}");
        let text = fs::read_to_string(desk.path(&config)).unwrap();
        for comment in ["# Samples in a micro-batch, >= 1.", "# recompute =\n", "# Seed of every"] {
            assert!(text.contains(comment), "no `{comment}` in\n{text}");
        }
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        succeeded(desk.ssm_in(desk.dir(), &["check", &config]));
        let command = [&["train", &config], extra].concat();
        succeeded(desk.ssm_in(desk.dir(), &command));
        assert!(desk.path(&format!("runs/{task}/report.html")).is_file());

        let again = desk.ssm_in(desk.dir(), &["init", task]);
        assert_eq!(
            again.stderr,
            format!(
                "error: `{config}` is there already\n\
                 hint: remove it, or choose another name with --output\n"
            )
        );
        assert_eq!(again.code, 2);
        assert_eq!(fs::read_to_string(desk.path(&config)).unwrap(), text);
    }
}

#[test]
fn runs_are_listed_compared_and_reported_again() {
    let desk = Desk::new();
    desk.trained(DEBUG, &[&SHORT[..], &["--set", "run.name=a"]].concat());
    let changed = ["--set", "run.name=b", "--set", "optim.adam.lr=1e-4"];
    desk.trained(DEBUG, &[&SHORT[..], &changed].concat());
    let dir = desk.dir().display().to_string();

    let list = parsed(desk.ssm(&["runs", &dir, "--json"]));
    let runs = list["Runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    assert_eq!(runs[0]["run"], "a");
    assert_eq!(runs[0]["task"], "forecasting");
    assert_eq!(runs[0]["status"], "done");
    assert_eq!(runs[0]["step"], 20.0);
    assert_eq!(runs[0]["metric"], "mse");
    assert!(runs[0]["best"].as_f64().unwrap() < 2.0);
    // A run that has lost its end is stopped.
    fs::remove_file(desk.path("b/result.json")).unwrap();
    let text = succeeded(desk.ssm(&["runs", &dir]));
    assert!(text.lines().any(|line| line.starts_with("b ") && line.contains("stopped")), "{text}");

    // One that has only begun is listed too, a configuration alone is not.
    for name in ["begun", "no_run"] {
        fs::create_dir(desk.path(name)).unwrap();
        fs::copy(desk.path("b/config.toml"), desk.path(name).join("config.toml")).unwrap();
    }
    fs::copy(desk.path("b/run.json"), desk.path("begun/run.json")).unwrap();
    let list = parsed(desk.ssm(&["runs", &dir, "--json"]));
    let names: Vec<&Value> =
        list["Runs"].as_array().unwrap().iter().map(|run| &run["run"]).collect();
    assert_eq!(names, ["a", "b", "begun"]);
    assert_eq!(
        (&list["Runs"][2]["status"], &list["Runs"][2]["step"]),
        (&json!("begun"), &json!(0))
    );

    let [a, b] = ["a", "b"].map(|name| desk.path(name).display().to_string());
    let page = desk.path("compare.html").display().to_string();
    let tables = parsed(desk.ssm(&["compare", &a, &b, "--output", &page, "--json"]));
    let differences = &tables["Differences of the configurations"];
    assert_eq!(*differences, json!([{ "key": "optim.adam.lr", "a": 0.001, "b": 0.0001 }]));
    assert!(tables["Test scores"][0]["mse"].is_number());
    let page = fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && !page.contains("://"), "self-contained");
    for curve in ["data-name=\"a\"", "data-name=\"b\"", "Training loss", "Validation mse"] {
        assert!(page.contains(curve), "no `{curve}`");
    }
    let nothing = desk.ssm(&["compare", &desk.path("none").display().to_string()]);
    assert_eq!(nothing.code, 2, "{}", nothing.stderr);

    let report = desk.path("a/report.html");
    let before = fs::read_to_string(&report).unwrap();
    fs::remove_file(&report).unwrap();
    let said = succeeded(desk.ssm(&["report", &a]));
    assert_eq!(said, format!("report  {}\n", report.display()));
    assert_eq!(fs::read_to_string(&report).unwrap(), before);
    // One that is not over shows its training.
    succeeded(desk.ssm(&["report", &b]));
    assert!(fs::read_to_string(desk.path("b/report.html")).unwrap().contains("Training loss"));
}

/// `007` is not 7, and `1e3` not a thousand.
#[test]
fn names_that_look_like_numbers_stay_names() {
    let desk = Desk::new();
    for name in ["007", "1e3", "nan"] {
        // TOML reads some of them as numbers too.
        let name = format!("run.name=\"{name}\"");
        desk.trained(DEBUG, &["--set", "train.steps=10", "--set", &name]);
    }
    let list = parsed(desk.ssm(&["runs", &desk.dir().display().to_string(), "--json"]));
    let names: Vec<&Value> =
        list["Runs"].as_array().unwrap().iter().map(|run| &run["run"]).collect();
    assert_eq!(names, [&json!("007"), &json!("1e3"), &json!("nan")]);
    assert_eq!(list["Runs"][0]["step"], json!(10));

    let [a, b] = ["007", "1e3"].map(|name| desk.path(name).display().to_string());
    let page = desk.path("compare.html").display().to_string();
    let tables = parsed(desk.ssm(&["compare", &a, &b, "--output", &page, "--json"]));
    for table in ["Runs", "Test scores"] {
        assert_eq!(tables[table][0]["run"], "007", "{table}");
        assert_eq!(tables[table][1]["run"], "1e3", "{table}");
    }
}

#[test]
fn every_configuration_fits_the_schema() {
    let desk = Desk::new();
    let validator = |task: &[&str]| {
        let schema = parsed(desk.ssm(&[&["schema"], task].concat()));
        jsonschema::validator_for(&schema).unwrap()
    };
    let any = validator(&[]);
    let mut n_files = 0;
    for task in ["forecasting", "mil", "lm"] {
        let own = validator(&[task]);
        for entry in fs::read_dir(root().join("configs").join(task)).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let table: toml::Table = text.parse().unwrap();
            let value = serde_json::to_value(table).unwrap();
            if let Err(error) = own.validate(&value) {
                panic!("{}: {error} at {}", path.display(), error.instance_path());
            }
            assert!(any.is_valid(&value), "{}", path.display());
            n_files += 1;
            // What no configuration may hold is no part of the schema either.
            for (key, wrong) in [
                ("trian", json!({})),
                ("train", json!({ "step": 3 })),
                ("run", json!({ "seed": "x" })),
            ] {
                let mut value = value.clone();
                value[key] = wrong;
                assert!(!own.is_valid(&value), "{}: {key}", path.display());
            }
        }
    }
    assert!(n_files > 50, "{n_files} files");
    let schema = parsed(desk.ssm(&["schema", "forecasting"]));
    let run = &schema["definitions"]["RunSection"]["properties"];
    assert!(run["seed"]["description"].as_str().unwrap().starts_with("Seed of everything random"));
    assert_eq!(run["dir"]["default"], "runs");
}

#[test]
fn a_doctor_finds_the_processor_in_order() {
    let found = parsed(Desk::new().ssm(&["doctor", "--json"]));
    let devices: Vec<&Value> =
        found["devices"].as_array().unwrap().iter().map(|device| &device["device"]).collect();
    assert!(devices.contains(&&json!("flex")) && devices.contains(&&json!("ndarray")));
    let tests = found["self-tests"].as_array().unwrap();
    // The first of the operations, and of what the engine does.
    for op in ["selective_scan", "optimizer_step"] {
        assert!(tests.iter().any(|test| test["op"] == op), "{op}");
    }
    for test in tests {
        assert_eq!(test["result"], "passed", "{test}");
        assert!(test["error"].as_f64().unwrap() <= test["bound"].as_f64().unwrap());
    }
    let one = succeeded(Desk::new().ssm(&["doctor", "--device", "flex"]));
    assert!(one.contains("selective_scan") && !one.contains("\nndarray  selective_scan"), "{one}");
}

#[test]
fn shells_and_manuals_know_every_verb() {
    let desk = Desk::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = succeeded(desk.ssm(&["completions", shell]));
        assert!(script.contains("compare") && script.contains("doctor"), "{shell}");
    }
    let dir = desk.path("new/man").display().to_string();
    succeeded(desk.ssm(&["man", &dir]));
    let page = |name: &str| fs::read_to_string(desk.path("new/man").join(name)).unwrap();
    assert!(page("ssm.1").contains("Exit codes"));
    assert!(page("ssm-train.1").contains("profile") && page("ssm-data-list.1").contains("json"));
}

#[test]
fn a_profile_and_events_are_written_where_they_are_asked_for() {
    let desk = Desk::new();
    let trace = desk.path("trace.json").display().to_string();
    let more = ["--profile", &trace, "--set", "log.tensorboard=true"];
    desk.trained(DEBUG, &[&SHORT[..], &more].concat());
    let events: Value = serde_json::from_str(&fs::read_to_string(trace).unwrap()).unwrap();
    for (span, times) in
        [("data", 20), ("forward", 20), ("backward", 20), ("optimizer", 20), ("save", 2)]
    {
        let begins = events.as_array().unwrap().iter();
        let found = begins.filter(|event| event["name"] == span && event["ph"] == "B").count();
        assert!(found >= times, "{found} times `{span}`");
    }
    let events = fs::read(desk.path("debug/tensorboard/events.out.tfevents.0.ssm")).unwrap();
    let holds = |text: &str| events.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds("brain.Event:2") && holds("train/loss") && holds("valid/mse"));
}

/// The codes that `ssm --help` promises.
#[test]
fn exit_codes_are_those_of_the_help() {
    let desk = Desk::new();
    assert!(succeeded(desk.ssm(&["--help"])).contains("Exit codes: 0 success, 1 failure, 2 wrong"));
    assert_eq!(desk.ssm(&["--version"]).code, 0);
    assert_eq!(desk.ssm(&["train"]).code, 2);
    assert_eq!(desk.ssm(&["runs", &desk.path("none").display().to_string()]).code, 2);
    for verb in [&["check", DEBUG][..], &["bench", DEBUG], &["doctor"], &["train", DEBUG]] {
        let ended = desk.ssm(&[verb, &["--device", "felx"]].concat());
        assert_eq!(ended.code, 2, "{verb:?}: {}", ended.stderr);
        assert!(ended.stderr.ends_with("hint: did you mean `flex`?\n"), "{}", ended.stderr);
    }
    let file = desk.put("file", "");
    let dir = format!("run.dir={file}");
    assert_eq!(desk.ssm(&["train", DEBUG, "--set", &dir]).code, 3);
    // A run that never saved anything has no weights to score.
    fs::create_dir(desk.path("empty")).unwrap();
    fs::copy(root().join(DEBUG), desk.path("empty/config.toml")).unwrap();
    assert_eq!(desk.ssm(&["eval", &desk.path("empty").display().to_string()]).code, 1);

    let dir = format!("run.dir={}", desk.dir().display());
    let mut child = Command::new(env!("CARGO_BIN_EXE_ssm"))
        .args(["train", DEBUG, "--set", &dir, "--set", "train.steps=100000", "--quiet"])
        .args(["--set", "train.eval_every_steps=5", "--set", "checkpoint.keep=1"])
        // Before the first checkpoint there is a loss to draw.
        .args(["--set", "log.every_steps=5"])
        .current_dir(root())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !desk.path("debug/checkpoints/last").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    let listed = parsed(desk.ssm(&["runs", &desk.dir().display().to_string(), "--json"]));
    assert_eq!(listed["Runs"][0]["status"], "running", "{listed}");
    // It is looked at while it goes on and prunes.
    let run = desk.path("debug");
    let run = run.to_str().unwrap();
    for _ in 0..5 {
        let said = succeeded(desk.ssm(&["report", run]));
        assert_eq!(said, format!("report  {run}/report.html\n"));
        let page = fs::read_to_string(desk.path("debug/report.html")).unwrap();
        assert!(page.contains("Training loss"));
        succeeded(desk.ssm(&["eval", run, "--split", "valid"]));
    }
    assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
    let term = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(term.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
}
