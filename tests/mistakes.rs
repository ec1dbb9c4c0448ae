//! What the binary says to mistakes: the whole of standard error, and the exit code.

use std::{fs, path::Path, process::Command};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::{DEBUG, Desk, known_hours, root};

#[test]
fn an_unknown_key_is_shown_in_its_line_with_the_nearest_name() {
    let desk = Desk::new();
    let config = desk.config("wrong.toml", &[("d_model = 32", "d_modle = 32")]);
    let ended = desk.train(&config, &[]);
    assert_eq!(
        ended.stderr,
        format!(
            "error: unknown key `d_modle` in `model.s_mamba`\n\
             {space:2}--> {config}:23:1\n\
             {space:3}|\n\
             23 | d_modle = 32\n\
             {space:3}| ^^^^^^^\n\
             {space:3}= expected one of `d_model`, `d_ff`, `n_layer`, `dropout`, `use_norm`, \
             `merge`, `mixer`\n\
             hint: did you mean `d_model`?\n",
            space = ""
        )
    );
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
    assert!(!desk.path("debug").exists());
}

#[test]
fn an_unknown_task_is_shown_in_its_line() {
    let desk = Desk::new();
    let config = desk.config("wrong.toml", &[("[task.forecasting]", "[task.forcasting]")]);
    let ended = desk.train(&config, &[]);
    assert_eq!(
        ended.stderr,
        format!(
            "error: unknown task `forcasting`\n\
             {space:2}--> {config}:11:7\n\
             {space:3}|\n\
             11 | [task.forcasting]\n\
             {space:3}|       ^^^^^^^^^^\n\
             {space:3}= expected one of `[task.forecasting]`, `[task.mil]`, `[task.lm]`\n\
             hint: did you mean `forecasting`?\n",
            space = ""
        )
    );
    assert_eq!(ended.code, 2);
}

#[test]
fn a_wrong_override_is_shown_as_typed() {
    let ended = Desk::new().train(DEBUG, &["--device", "felx"]);
    assert_eq!(
        ended.stderr,
        "error: `device.backend`: unknown backend, expected one of `auto`, `flex`, `ndarray`, \
         `cuda`, `vulkan`, `webgpu`\n \
         --> --set:1:16\n  |\n1 | device.backend=felx\n  |                ^^^^\n\
         hint: did you mean `flex`?\n"
    );
    assert_eq!(ended.code, 2);
}

#[test]
fn a_missing_data_file_says_where_it_was_looked_for() {
    let desk = Desk::new();
    // Any directory that is there and does not hold the file.
    let named = ["--set", "data.csv.path=none.csv", "--data-dir"];
    let ended = desk.train(DEBUG, &[&named[..], &["src"]].concat());
    assert_eq!(
        ended.stderr,
        "error: `none.csv`: data file not found; searched `none.csv`, `none.csv.gz`, \
         `src/none.csv`, `src/none.csv.gz`, `data/none.csv`, `data/none.csv.gz`\n\
         hint: give a path from the working directory, or put the file below a data directory \
         (--data-dir, SSM_DATA or `data`)\n"
    );
    assert_eq!(ended.code, 2);
    let ended = desk.train(DEBUG, &[&named[..], &["mine"]].concat());
    assert_eq!(
        ended.stderr,
        "error: `mine`: data directory not found\n\
         hint: correct --data-dir or SSM_DATA, whichever names it\n"
    );
    assert_eq!(ended.code, 2);
    assert!(!desk.path("debug").exists(), "a run that never began leaves nothing");
}

#[test]
fn a_run_is_neither_overwritten_nor_resumed_as_another() {
    let desk = Desk::new();
    let run = desk.path("debug").display().to_string();
    let ended = desk.train(DEBUG, &["--resume"]);
    assert_eq!(
        ended.stderr,
        format!(
            "error: nothing to resume in `{run}`\n\
             hint: start the run without `--resume`, or check `run.name`\n"
        )
    );
    assert_eq!(ended.code, 2);

    desk.trained(DEBUG, &["--set", "train.steps=10"]);
    let ended = desk.train(DEBUG, &[]);
    assert_eq!(
        ended.stderr,
        format!(
            "error: run directory `{run}` already holds a run\n\
             hint: continue it with `--resume`, or choose another `run.name`\n"
        )
    );
    assert_eq!(ended.code, 2);

    let ended = desk.train(DEBUG, &["--resume", "--set", "model.s_mamba.d_model=16"]);
    assert_eq!(
        ended.stderr,
        format!(
            " WARN the configuration is not the one the run went on with last\n\n\
             key                    was  is now  resume   why\n\
             ---------------------  ---  ------  -------  ----------------------\n\
             model.s_mamba.d_model   32      16  refused  the weights do not fit\n\
             train.steps             10     100  allowed  another length\n\n\
             error: cannot resume `{run}`: `model.s_mamba.d_model` is 32 in the checkpoint and 16 \
             in the config\nhint: start a new run directory, or restore the value\n"
        )
    );
    assert_eq!(ended.code, 2);

    let ended = desk.ssm(&["eval", &run, "--device", "felx"]);
    let start = "error: device `felx`: unknown backend, expected one of `auto`, `flex`";
    assert!(ended.stderr.starts_with(start), "{}", ended.stderr);
    assert!(ended.stderr.ends_with("\nhint: did you mean `flex`?\n"), "{}", ended.stderr);
    assert_eq!(ended.code, 2);

    let input = desk.put("short.csv", "date,ewr_temp\n2013-01-01,1.0\n");
    let ended = desk.ssm(&["predict", &run, "--input", &input]);
    assert!(
        ended.stderr.starts_with(&format!("error: `{input}`: no column `jfk_temp`, got")),
        "{}",
        ended.stderr
    );
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));

    let lost = desk.path("lost/mine.csv").display().to_string();
    let ended = desk.ssm(&["predict", &run, "--input", &lost]);
    let folder = desk.path("lost").display().to_string();
    assert_eq!(
        ended.stderr,
        format!(
            "error: there is no file `{lost}`\nhint: the directory `{folder}` does not exist\n"
        )
    );
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
}

#[test]
fn a_run_is_not_scored_on_rows_that_came_later() {
    let desk = Desk::new();
    let path = desk.put("mine.csv", &known_hours(400));
    let data = format!("data.csv.path={path}");
    desk.trained(DEBUG, &["--set", "train.steps=10", "--set", &data]);
    desk.put("mine.csv", &known_hours(401));
    let run = desk.path("debug").display().to_string();
    let ended = desk.ssm(&["eval", &run]);
    let start = format!("error: `mine.csv`: `{run}` was trained on the SHA-256 ");
    assert!(ended.stderr.starts_with(&start), "{}", ended.stderr);
    let end = "\nhint: restore the file, or train a new run on the other one\n";
    assert!(ended.stderr.ends_with(end), "{}", ended.stderr);
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
}

/// A cosine that has come down does not go up again without a word.
#[test]
fn another_length_under_a_schedule_that_depends_on_it_is_said() {
    let desk = Desk::new();
    let steps = |steps: &'static str| ["--set", steps, "--set", "train.eval_every_steps=10"];
    desk.trained(DEBUG, &steps("train.steps=20"));
    let ended = desk.trained(DEBUG, &[&steps("train.steps=40")[..], &["--resume"]].concat());
    let warning = "the run had 20 steps and has 40 now, and `schedule.cosine` depends on that: the 20 \
                   steps that are done had other learning rates than in a run of 40 steps\n\n\
                   learning rate\n\n\
                   step  of 20 steps  of 40 steps\n\
                   ----  -----------  -----------\n   0     9.091e-5     9.091e-5\n";
    assert!(ended.stderr.contains(warning), "{}", ended.stderr);
    assert!(ended.stderr.contains("\n  20            -     7.750e-4\n"), "{}", ended.stderr);
}

#[test]
fn a_forecast_is_written_whole_or_not_at_all() {
    let desk = Desk::new();
    desk.trained(DEBUG, &["--set", "train.steps=10"]);
    let run = desk.path("debug").display().to_string();
    let input = desk.put("input.csv", &known_hours(120));
    let output = desk.put("forecast.csv", "what was there before\n");
    // A folder that is not there takes no file.
    let lost = desk.path("none/forecast.csv").display().to_string();
    let ended = desk.ssm(&["predict", &run, "--input", &input, "--output", &lost]);
    let reason = "No such file or directory (os error 2)";
    assert_eq!(ended.stderr, format!("error: cannot write `{lost}`: {reason}\n"));
    assert_eq!(ended.code, 1);

    let predict = ["predict", &run, "--input", &input, "--output", &output];
    // Killed by the size limit of a file in the middle of the forecast.
    let limited = "ulimit -f 1; exec \"$0\" \"$@\"";
    let mut cut = Command::new("bash");
    cut.args(["-c", limited, env!("CARGO_BIN_EXE_ssm")]).args(predict);
    assert!(!cut.status().unwrap().success());
    assert_eq!(fs::read_to_string(&output).unwrap(), "what was there before\n");

    assert_eq!(desk.ssm(&predict).code, 0);
    assert_eq!(fs::read_to_string(&output).unwrap().lines().count(), 1 + 24);
    let printed = desk.ssm(&["predict", &run, "--input", &input, "--output", "/dev/stdout"]);
    assert_eq!(printed.stdout, fs::read_to_string(&output).unwrap());
}

/// Burn would panic. A checksum does not help where another program wrote the file.
#[test]
fn weights_of_another_type_are_named_and_nothing_panics() {
    let desk = Desk::new();
    desk.trained(DEBUG, &["--set", "train.steps=10"]);
    let run = desk.path("debug").display().to_string();
    let checkpoint = desk.path("debug/checkpoints/step_00000010");
    let file = checkpoint.join("model.bpk");
    let good = fs::read(&file).unwrap();
    let broken = |from: &str, to: &str| {
        let at = good.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        replace(&file, &bytes);
        let manifest = checkpoint.join("manifest.json");
        let mut value: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        let sha256 = Sha256::digest(&bytes);
        value["files"]["model.bpk"]["sha256"] =
            sha256.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
        // As older versions wrote it, which did not vouch for itself.
        value.as_object_mut().unwrap().remove("sha256");
        replace(&manifest, value.to_string().as_bytes());
    };
    let said = |problem: &str| {
        format!(
            "error: checkpoint `{}`: `model.bpk` does not fit this run: {problem}\nhint: restore the \
             file, or remove the directory to go on from the checkpoint before it\n",
            checkpoint.display()
        )
    };
    broken("F32", "I32");
    let ended = desk.ssm(&["eval", &run]);
    let problem = "`SMamba.embedding.bias`: expected f32 [32], got i32 [32]";
    assert_eq!((ended.code, ended.stderr), (1, said(problem)));
    let ended = desk.train(DEBUG, &["--set", "train.steps=10", "--resume"]);
    assert_eq!((ended.code, ended.stderr), (1, said(problem)));
    broken("embedding.bias", "embedding.bins");
    let ended = desk.ssm(&["eval", &run]);
    let problem = "the model has no `SMamba.embedding.bins`";
    assert_eq!((ended.code, ended.stderr), (1, said(problem)));
}

fn replace(path: &Path, bytes: &[u8]) {
    #[expect(clippy::disallowed_methods, reason = "a test makes its own input")]
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_no_run_and_no_command_is_said_so() {
    let desk = Desk::new();
    let nothing = desk.path("nothing").display().to_string();
    let ended = desk.ssm(&["eval", &nothing]);
    assert_eq!(
        ended.stderr,
        format!(
            "error: `{nothing}` is no run directory: it has no `config.toml`\n\
             hint: runs are in `<run.dir>/<run.name>`, by default `runs/<name>`\n"
        )
    );
    assert_eq!(ended.code, 2);
    // Each fold of a cross-validation is a run, the whole is none.
    fs::create_dir_all(desk.path("folds/fold_00")).unwrap();
    fs::copy(root().join("configs/mil/debug.toml"), desk.path("folds/config.toml")).unwrap();
    desk.put("folds/fold_00/run.json", "{}");
    let folds = desk.path("folds").display().to_string();
    let ended = desk.ssm(&["eval", &folds]);
    assert_eq!(
        ended.stderr,
        format!(
            "error: `{folds}` is a cross-validation, a run for each fold\n\
             hint: name one of them, as in `{folds}/fold_00`\n"
        )
    );
    assert_eq!(ended.code, 2);
    let ended = desk.ssm(&["eval", &nothing, "--device", "cuda:x"]);
    assert_eq!(ended.code, 2);
    assert_eq!(desk.ssm(&["trian"]).code, 2);
    let ended = desk.train(&desk.path("none.toml").display().to_string(), &[]);
    assert!(ended.stderr.starts_with("error: there is no file `"), "{}", ended.stderr);
    assert_eq!(ended.code, 2);
}

/// A rate at which the weights are gone after a step.
#[test]
fn a_loss_that_is_not_finite_names_samples_of_its_batch() {
    for (task, optimizer, samples) in [
        (
            "forecasting",
            "adam",
            "rows 1592 to 1711 of `nyc_airports.csv.gz`, rows 5370 to 5489 of `nyc_airports.csv.gz`, \
             rows 2104 to 2223 of `nyc_airports.csv.gz`, rows 1706 to 1825 of `nyc_airports.csv.gz` \
             and 28 more",
        ),
        (
            "lm",
            "adamw",
            "sequence 1215 of epoch 1, sequence 3445 of epoch 1, sequence 1738 of epoch 1, sequence \
             950 of epoch 1 and 28 more",
        ),
        (
            "mil",
            "adam",
            "slide `patient_40`, slide `patient_76`, slide `patient_71`, slide `patient_45`",
        ),
    ] {
        let lr = format!("optim.{optimizer}.lr=1e30");
        let config = format!("configs/{task}/debug.toml");
        let more = ["--set", &lr, "--set", "schedule={constant={}}"];
        let ended = Desk::new().train(&config, &more);
        let error = format!(
            "error: the loss NaN (gradient norm NaN) is not finite at step 1, from {samples}\n\
             hint: resume from the last checkpoint with a lower learning rate or \
             `train.clip_norm`\n"
        );
        let start = ended.stderr.find("error: ").unwrap();
        assert_eq!((&ended.stderr[start..], ended.code), (error.as_str(), 1), "{task}");
    }
}

/// Copies of the program that belong to a run are threads, or processes of `mpirun`: no verb starts one.
#[test]
fn a_verb_that_is_not_there_is_refused() {
    for verb in ["__rank", "replica"] {
        let ended = Desk::new().ssm(&[verb, "1"]);
        let start = format!("error: unrecognized subcommand '{verb}'\n");
        assert!(ended.stderr.starts_with(&start), "{}", ended.stderr);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
    }
}
