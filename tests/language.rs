//! Language models from end to end: train, resume, evaluate, generate, and what is said to mistakes.

use std::fs;

use serde_json::Value;

use crate::support::Desk;

/// A small model on a text of the user.
const CONFIG: &str = r#"
[run]
name = "tiny"

[task.lm]
seq_len = 32

[data.text]
train = ["TEXT"]
tokenizer = "chars"

[model]
d_model = 16
n_layer = 1

[model.mixer.mamba]
d_state = 4

[optim.adamw]
lr = 1e-2

[train]
steps = 5
batch_size = 4
eval_every_steps = 5
"#;

/// A desk with a text and a configuration that trains on it.
fn desk() -> (Desk, String) {
    let desk = Desk::new();
    let text: String = (0..900).map(|i| ["so ", "it ", "goes. "][i * i % 7 % 3]).collect();
    let text = desk.put("text.txt", &text);
    let config = desk.put("tiny.toml", &CONFIG.replace("TEXT", &text));
    (desk, config)
}

fn losses(desk: &Desk, run: &str) -> Vec<Value> {
    let text = fs::read_to_string(desk.path(&format!("{run}/metrics.jsonl"))).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| serde_json::json!([row["step"], row["split"], row["loss"]])).collect()
}

#[test]
fn a_language_model_is_trained_resumed_scored_and_sampled() {
    let (desk, config) = desk();
    let carry = ["--set", "task.lm.bptt=carry", "--set", "train.accumulate=3"];
    for (name, extra) in [("reset", &[][..]), ("carry", &carry[..])] {
        let name_of = |part: &str| format!("run.name={name}_{part}");
        let train = |part: &str, steps: &str, more: &[&str]| {
            let (name, steps) = (name_of(part), format!("train.steps={steps}"));
            let set = ["--set", &name, "--set", &steps, "--set", "log.every_steps=1"];
            desk.trained(&config, &[&set, extra, more].concat());
        };
        train("whole", "10", &[]);
        train("parts", "5", &[]);
        train("parts", "10", &["--resume"]);
        let (whole, parts) = (format!("{name}_whole"), format!("{name}_parts"));
        assert_eq!(losses(&desk, &whole), losses(&desk, &parts));
        assert_eq!(losses(&desk, &whole).len(), 12);
    }
    let run = desk.path("reset_whole").display().to_string();
    let scores = |device: &str| {
        let ended = desk.ssm(&["eval", &run, "--json", "--device", device]);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let scores: Value = serde_json::from_str(&ended.stdout).unwrap();
        scores[format!("{run} on test")][0].clone()
    };
    let (flex, ndarray) = (scores("flex"), scores("ndarray"));
    for name in ["loss", "perplexity", "bits_per_byte", "accuracy"] {
        let (one, other) = (flex[name].as_f64().unwrap(), ndarray[name].as_f64().unwrap());
        assert!((one - other).abs() < 1e-4 * one.abs().max(1.0), "{name}: {one} and {other}");
    }
    let prompt = ["generate", &run, "--prompt", "so it ", "--max-tokens", "20"];
    let ended = desk.ssm(&prompt);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(ended.stdout.len(), 21, "{}", ended.stdout);
    assert_eq!(desk.ssm(&prompt).stdout, ended.stdout);
    let prompts = desk.put("prompts.txt", "so it \ngoes");
    let ended = desk.ssm(&["generate", &run, "--prompts", &prompts, "--max-tokens", "20"]);
    let lines: Vec<Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), lines[1]["prompt"].as_str()), (2, Some("goes")));
    // The first prompt draws what it drew alone.
    let alone = desk.ssm(&prompt).stdout;
    assert_eq!(lines[0]["text"].as_str().unwrap(), &alone[..20]);
    let input = desk.put("other.txt", "it goes. so it goes.");
    let ended = desk.ssm(&["predict", &run, "--input", &input]);
    let scores: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(scores["loss"].as_f64().unwrap() < 2.5, "{scores}");
}

#[test]
fn a_run_in_bf16_is_nearly_one_in_f32_and_goes_on_bit_for_bit() {
    let (desk, config) = desk();
    let train = |name: &str, precision: &str, steps: &str, more: &[&str]| {
        let set = [format!("run.name={name}"), format!("train.precision={precision}")];
        let steps = format!("train.steps={steps}");
        let set =
            ["--set", &set[0], "--set", &set[1], "--set", &steps, "--set", "log.every_steps=1"];
        desk.trained(&config, &[&set, more].concat())
    };
    train("f32", "f32", "20", &[]);
    let trained = train("whole", "bf16", "20", &[]);
    assert!(
        trained.stderr.contains(" WARN `flex` computes bf16 in f32 and rounds"),
        "{}",
        trained.stderr
    );
    train("parts", "bf16", "10", &[]);
    train("parts", "bf16", "20", &["--resume"]);
    assert_eq!(losses(&desk, "whole"), losses(&desk, "parts"));
    let mut differ = false;
    for (f32, bf16) in losses(&desk, "f32").iter().zip(losses(&desk, "whole")) {
        let (f32, bf16) = (f32[2].as_f64().unwrap(), bf16[2].as_f64().unwrap());
        differ |= f32 != bf16;
        assert!((f32 - bf16).abs() < 3e-2 * f32, "{bf16} is not nearly {f32}");
    }
    assert!(differ, "bf16 rounds");
    // Parameters and moments are as wide as in f32.
    for file in ["model", "optimizer"] {
        let bytes = |run: &str| {
            let dir = desk.path(&format!("{run}/checkpoints/step_00000020"));
            let entries = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap());
            let found =
                entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(file));
            found.map(|entry| entry.metadata().unwrap().len()).sum::<u64>()
        };
        assert_eq!(bytes("whole"), bytes("f32"), "{file}");
        assert!(bytes("f32") > 0, "{file}");
    }
    // Throughput is in tokens; what a processor reaches at most is not known.
    let log = fs::read_to_string(desk.path("whole/metrics.jsonl")).unwrap();
    let row: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(row["tokens_per_sec"], row["samples_per_sec"]);
    assert_eq!(row.get("mfu"), None);
    // What was trained in bf16 is scored and sampled in bf16.
    let run = desk.path("whole").display().to_string();
    let ended = desk.ssm(&["eval", &run, "--json"]);
    let scores: Value = serde_json::from_str(&ended.stdout).unwrap();
    let last = losses(&desk, "whole").pop().unwrap();
    let loss = &scores[format!("{run} on test")][0]["loss"];
    assert_eq!((&last[1], loss), (&Value::from("valid"), &last[2]));
    let prompt = ["generate", &run, "--prompt", "so it ", "--max-tokens", "20"];
    assert_eq!(desk.ssm(&prompt).stdout.len(), 21);
    for arguments in [&["eval", &run][..], &prompt] {
        let ended = desk.ssm(&[arguments, &["--device", "ndarray"]].concat());
        assert_eq!(
            ended.stderr,
            "error: device `ndarray`: `train.precision`: expected `f32` on the backend `ndarray`, got \
             `bf16`\nhint: `flex` and `cuda` compute in bf16; f32 runs everywhere\n"
        );
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""));
    }
}

#[test]
fn the_made_up_task_of_the_first_look_is_learned() {
    let desk = Desk::new();
    let ended = desk.trained("configs/lm/debug.toml", &["--json"]);
    let printed: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(printed["result"]["metrics"]["loss"].as_f64().unwrap() < 0.3, "{printed}");
}

#[test]
fn mistakes_of_language_models_are_explained() {
    let (desk, config) = desk();
    let refused = |arguments: &[&str], expected: &str| {
        let ended = desk.train(&config, arguments);
        assert_eq!(ended.stderr, expected);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
    };
    refused(
        &["--set", "model.mixer={sr_mamba={}}"],
        "error: `model.mixer`: mixer `sr_mamba` is not causal, so it has no recurrent step\n \
         --> configuration\nhint: a language model needs a causal mixer\n",
    );
    refused(
        &["--set", "task.lm.packing=documents", "--set", "train.recompute=layer"],
        "error: `train.recompute`: layers with a state are not computed again\n \
         --> configuration\nhint: leave out `train.recompute`; shorter sequences need less memory too\n",
    );
    refused(
        &["--set", "model.dropout=0.1", "--set", "train.recompute=layer"],
        "error: `train.recompute`: layers with dropout are not computed again\n \
         --> configuration\nhint: leave out `train.recompute` or `model.dropout`\n",
    );
    desk.trained(&config, &[]);
    let run = desk.path("tiny").display().to_string();
    let refused = |arguments: &[&str], expected: &str| {
        let ended = desk.ssm(&[&["generate", &run], arguments].concat());
        assert_eq!((ended.stderr.as_str(), ended.code), (expected, 2));
    };
    refused(
        &["--prompt", ""],
        "error: prompt 1 is empty\nhint: the vocabulary has no token that begins a text; give a \
         first character\n",
    );
    refused(
        &["--prompt", "no!"],
        "error: prompt 1: the character 'n' at byte 0 is not among the 8 of the vocabulary\n\
         hint: use the text of the training\n",
    );
    refused(
        &["--prompt", "so", "--top-p", "2"],
        "error: top-p: expected a number in (0, 1], got 2\n",
    );
}

/// Lines of words, longer than what is tokenized at once.
fn long_text() -> String {
    let words = ["the", "river", "runs", " down", "—", "to", "12", "sea.\n", "\n", "Cloud\n", "é "];
    let mut state = 1_u32;
    let word = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        words[(state >> 16) as usize % words.len()].to_owned()
            + ["", " "][(state >> 12) as usize % 2]
    };
    (0..400_000).map(word).collect()
}

#[test]
fn text_becomes_shards_that_hold_the_tokens_of_the_whole_text() {
    use ssm_tasks::lm::{shards, stream::Tokens};

    let desk = Desk::new();
    let text = long_text();
    assert!(text.len() > 5 << 18, "{} bytes are one piece", text.len());
    let long = desk.put("long.txt", &text);
    let lines = "{\"text\": \"the sea\"}\n\n{\"text\": \"a\", \"other\": 1}\n";
    let lines = desk.put("lines.jsonl", lines);
    let (json, dir) = (desk.path("bpe.json"), desk.path("tokens"));
    let (json, dir) = (json.to_str().unwrap(), dir.to_str().unwrap());
    let run = |arguments: &[&str]| {
        let ended = desk.ssm(arguments);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        ended
    };
    run(&["tokenize", &long, "--train", "--vocab-size", "300", "--out", json]);
    let ended = run(&["tokenize", &long, &lines, "--tokenizer", json, "--out", dir]);
    assert!(ended.stdout.contains(" tokens of 3 documents in 1 files"), "{}", ended.stdout);
    let (tokens, tokenizer, _) = shards::open(dir.as_ref()).unwrap();
    let mut expected = tokenizer.encode(text.as_bytes()).unwrap();
    let mut starts = vec![0];
    for document in ["the sea", "a"] {
        expected.push(0);
        starts.push(expected.len() as u64);
        expected.extend(tokenizer.encode(document.as_bytes()).unwrap());
    }
    expected.push(0);
    assert_eq!(tokens.read(0..tokens.len()), expected);
    assert_eq!(tokens.starts(0..tokens.len()), starts);

    let shard = desk.path("tokens/part_00000.tokens");
    let whole = fs::read(&shard).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<u8>), reason: &str| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        std::io::Write::write_all(&mut fs::File::create(&shard).unwrap(), &bytes).unwrap();
        let Err(error) = shards::open(dir.as_ref()) else { panic!("{reason}") };
        let text = error.report();
        assert_eq!(text, format!("error: `{}`: {reason}", shard.display()));
    };
    let (n, size) = (expected.len(), whole.len());
    refused(
        &|bytes| bytes.truncate(size - 9),
        &format!(
            "{} bytes are not those of the {n} tokens and 3 documents of its header\n\
             hint: the file is cut off: tokenize again",
            size - 9
        ),
    );
    refused(&|bytes| bytes[0] = 0, "not a shard of tokens of this version");
    refused(
        &|bytes| bytes[40] ^= 1,
        "was made with another vocabulary than `vocabulary.json` beside it\n\
         hint: tokenize into a directory of its own",
    );
    refused(
        &|bytes| bytes[64..68].copy_from_slice(&[7, 0, 44, 1]),
        "token 1 is 300, the vocabulary has 300\nhint: the file is damaged: tokenize again",
    );
    std::io::Write::write_all(&mut fs::File::create(&shard).unwrap(), &whole).unwrap();

    let data = format!(
        "[data.shards]\ntrain = [{{ dir = \"{dir}\" }}, {{ dir = \"{dir}\", weight = 2 }}]\nvalid = \"{dir}\""
    );
    let text = "[data.text]\ntrain = [\"TEXT\"]\ntokenizer = \"chars\"";
    let config = CONFIG
        .replace(text, &data)
        .replace("seq_len = 32", "seq_len = 200000\npacking = \"documents\"");
    let config = desk.put("tiny.toml", &config);
    let ended = desk.trained(&config, &["--set", "train.steps=1", "--set", "train.batch_size=1"]);
    assert!(ended.stdout.contains("bits per byte"), "{}", ended.stdout);
}

/// Needs the fixture of CS336; see `shared/data/README.md`. Without it there is nothing to test.
#[test]
fn the_merges_of_cs336_are_found_exactly() {
    let Some(data) = crate::support::published_data() else { return };
    let fixture = data.join("tokenizers/cs336");
    if !fixture.is_dir() {
        return;
    }
    let desk = Desk::new();
    let unpacked = |name: &str| {
        let bytes = fs::read(fixture.join(name)).unwrap();
        let mut text = String::new();
        let mut reader = flate2::read::GzDecoder::new(&*bytes);
        std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
        text
    };
    let corpus = desk.put("corpus.txt", &unpacked("corpus.en.gz"));
    let json = desk.path("bpe.json");
    let out = json.to_str().unwrap();
    let ended = desk.ssm(&["tokenize", &corpus, "--train", "--vocab-size", "500", "--out", out]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let got: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let merges = got["model"]["merges"].as_array().unwrap().iter();
    let merges: Vec<String> =
        merges.map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap())).collect();
    let expected = unpacked("train-bpe-reference-merges.txt.gz");
    assert_eq!(merges, expected.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>());
    let vocab: Value =
        serde_json::from_str(&unpacked("train-bpe-reference-vocab.json.gz")).unwrap();
    assert_eq!(got["model"]["vocab"], vocab);
}

#[test]
fn exported_weights_come_back_and_say_the_same() {
    let (desk, config) = desk();
    desk.trained(&config, &[]);
    let path = |name: &str| desk.path(name).display().to_string();
    let run = |arguments: &[&str]| {
        let ended = desk.ssm(arguments);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        ended.stdout
    };
    for (layout, format) in [("hf", "safetensors"), ("state-spaces", "torch")] {
        let (out, again) = (path(layout), path(&format!("from_{layout}")));
        let to = ["--out", &out, "--layout", layout, "--format", format];
        run(&[&["export", &path("tiny")][..], &to].concat());
        let ended = desk.ssm(&[&["export", &path("tiny")][..], &to].concat());
        let expected =
            format!("error: `{out}` is already there\nhint: name a new directory by `--out`\n");
        assert_eq!((ended.stderr, ended.code), (expected, 2));
        run(&["import", &out, &again]);
        // Without a `tokenizer.json`, tokens are numbers: those of `so it`.
        let ended = desk.ssm(&["import", &out, &again]);
        assert!(ended.stderr.contains("already holds a run"), "{}", ended.stderr);
        let greedy = ["--temperature", "0", "--max-tokens", "8"];
        let said = run(&[&["generate", &again, "--prompt", "6 5 0"], &greedy[..]].concat());
        let chars: Vec<char> = " .egiost".chars().collect();
        let said: String =
            said.split_whitespace().map(|number| chars[number.parse::<usize>().unwrap()]).collect();
        let expected =
            run(&[&["generate", &path("tiny"), "--prompt", "so "], &greedy[..]].concat());
        assert_eq!(said, expected.trim_end_matches('\n'));
    }
    let config = path("hf/config.json");
    let changed = fs::read_to_string(&config)
        .unwrap()
        .replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2");
    desk.put("hf/config.json", &changed);
    let ended = desk.ssm(&["import", &path("hf"), &path("other")]);
    let missing: Vec<String> = [
        "norm.weight",
        "mixer.in_proj.weight",
        "mixer.conv1d.weight",
        "mixer.conv1d.bias",
        "mixer.x_proj.weight",
        "mixer.dt_proj.weight",
        "mixer.dt_proj.bias",
        "mixer.A_log",
        "mixer.D",
        "mixer.out_proj.weight",
    ]
    .iter()
    .map(|name| format!("`backbone.layers.1.{name}`"))
    .collect();
    assert_eq!(
        ended.stderr,
        format!(
            "error: `{}`: missing {}\nhint: the weights have to be those that `config.json` \
             describes\n",
            path("hf/model.safetensors"),
            missing.join(", ")
        )
    );
    assert!(!desk.path("other").exists());
}
