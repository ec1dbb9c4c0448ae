//! The rooms of the source tree and what each may import: see `CONTRIBUTING.md`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{fs, path::Path};

/// A source file below `src/` of one of the packages.
struct Source {
    /// From the root of the repository, with `/`.
    path: String,
    /// Without comments, and without the unit tests at the foot of the file.
    code: String,
    lines: usize,
}

impl Source {
    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap()
    }

    fn within(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }
}

/// Every Rust file below `src/`, `crates/*/src/`.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = |path: String| {
        let text = fs::read_to_string(root.join(&path)).unwrap();
        let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = lines.map(|line| format!("{line}\n")).collect();
        Source { path, code, lines: text.lines().count() }
    };
    let sources: Vec<Source> = rust_files(&["src"]).into_iter().map(source).collect();
    assert!(sources.len() > 50, "only {} source files found", sources.len());
    sources
}

/// Paths of every Rust file below folders of these names, in the root and in each crate.
fn rust_files(names: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = [root.to_owned()].into_iter().chain(children(&root.join("crates")));
    let folders = packages.flat_map(|package| names.iter().map(move |name| package.join(name)));
    let mut folders: Vec<_> = folders.filter(|folder| folder.is_dir()).collect();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in children(&folder) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                files.push(path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/"));
            }
        }
    }
    files
}

fn children(folder: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Fails for every file that holds one of `words` and is not `allowed` to.
fn only_in(words: &[&str], allowed: impl Fn(&Source) -> bool) {
    let broken: Vec<String> = sources()
        .iter()
        .filter(|source| !allowed(source))
        .flat_map(|source| {
            let found = words.iter().filter(|word| source.code.contains(**word));
            found.map(|word| format!("{} holds `{word}`", source.path)).collect::<Vec<_>>()
        })
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn crates_depend_in_one_direction() {
    only_in(&["ssm_tasks"], |source| source.within("src/") || source.within("crates/ssm-tasks"));
    only_in(&["ssm_train"], |source| source.within("src/") || source.within("crates/ssm-tasks"));
    only_in(&["ssm_core"], |source| source.within("crates/ssm-tasks"));
}

/// Neither do its comments and its tests.
#[test]
fn the_engine_names_no_model() {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/ssm-train")];
    let mut n_files = 0;
    while let Some(folder) = folders.pop() {
        for path in children(&folder) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).to_lowercase();
                assert!(!text.contains("mamba"), "{} names a model", path.display());
                n_files += 1;
            }
        }
    }
    assert!(n_files > 50, "only {n_files} files found");
}

#[test]
fn rooms_of_the_core_are_stacked() {
    let core = "crates/ssm-core/src";
    for source in sources().iter().filter(|source| source.within(core)) {
        let forbidden: &[&str] = match source.path[core.len() + 1..].split('/').next().unwrap() {
            "ops" => &["crate::mixers", "crate::nn", "crate::init"],
            "init.rs" => &["crate::mixers", "crate::nn"],
            "mixers" => &["crate::nn"],
            _ => &[],
        };
        for word in forbidden {
            assert!(!source.code.contains(word), "{} imports `{word}`", source.path);
        }
    }
}

#[test]
fn mixers_do_not_know_each_other() {
    let sources = sources();
    let room = "crates/ssm-core/src/mixers/";
    let mixers: Vec<&Source> = sources.iter().filter(|source| source.within(room)).collect();
    for mixer in mixers.iter().filter(|mixer| mixer.name() != "mod.rs") {
        for other in mixers.iter().filter(|other| other.path != mixer.path) {
            let module = other.name().trim_end_matches(".rs");
            let sideways = [format!("super::{module}"), format!("mixers::{module}")];
            for word in sideways {
                assert!(!mixer.code.contains(&word), "{} imports `{word}`", mixer.path);
            }
        }
    }
}

#[test]
fn backends_have_one_place_each() {
    let ops = |source: &Source| source.within("crates/ssm-core/src/ops/");
    // The engine has kernels for what it does to gradients and weights.
    let kernels = |source: &Source| ops(source) || source.within("crates/ssm-train/src/");
    // `device/` sets where CubeCL keeps its compiled kernels, before the first device opens, and asks
    // what it knows of devices.
    only_in(&["cubecl"], |source| {
        source.within("crates/ssm-train/src/device/")
            || kernels(source) && ["kernel.rs", "cube.rs"].contains(&source.name())
    });
    only_in(&["burn_autodiff", "autodiff::{", "autodiff::checkpoint"], |source| {
        ops(source) && source.name() == "autodiff.rs"
    });
    // `primitive.rs` turns tensors of the CPU backends into slices, for every `cpu.rs`.
    only_in(&["FlexTensor", "burn_flex", "backend::NdArray", "backend::Flex"], |source| {
        ops(source) && ["cpu.rs", "primitive.rs"].contains(&source.name())
    });
    only_in(&["backend_extension", "<B: Backend"], ops);
    let devices = ["flex(", "ndarray(", "cuda(", "vulkan(", "wgpu(", "webgpu(", "rocm(", "metal("];
    only_in(
        &devices.map(|device| format!("Device::{device}")).each_ref().map(String::as_str),
        |s| s.path == "crates/ssm-train/src/device.rs",
    );
    only_in(&["Device::default("], |_| false);
}

#[test]
fn arithmetic_needs_no_burn() {
    for source in sources() {
        if ["host.rs", "schedule.rs"].contains(&source.name()) {
            assert!(!source.code.contains("burn"), "{} imports Burn", source.path);
        }
    }
}

#[test]
fn files_are_written_in_few_places() {
    let writers = [
        "crates/ssm-train/src/atomic.rs",
        "crates/ssm-train/src/checkpoint.rs",
        "crates/ssm-train/src/logging.rs",
        "crates/ssm-train/src/run_dir.rs",
        "crates/ssm-train/src/tensorboard.rs",
        "src/import.rs",
        "src/output.rs",
        "src/tokenize.rs",
    ];
    let words = [
        "fs::write",
        "fs::rename",
        "fs::copy",
        "fs::create_dir",
        "fs::remove",
        "File::create",
        "OpenOptions",
    ];
    only_in(&words, |source| writers.contains(&source.path.as_str()));
    let readers = [
        "crates/ssm-train/src/config/source.rs",
        // What the system says of the processor and of memory.
        "crates/ssm-train/src/machine.rs",
        "crates/ssm-train/src/result.rs",
        "crates/ssm-tasks/src/data/mod.rs",
        // Maps what may be larger than the memory.
        "crates/ssm-tasks/src/lm/shards.rs",
        // Chunk by chunk, so that a slide is in memory once and not twice.
        "crates/ssm-tasks/src/mil/features/h5.rs",
    ];
    only_in(&["use std::fs", "fs::read", "File::open"], |source| {
        writers.contains(&source.path.as_str()) || readers.contains(&source.path.as_str())
    });
    only_in(&["std::net", "reqwest", "ureq", "http::"], |_| false);
}

#[test]
fn only_the_binary_prints() {
    only_in(&["println!", "eprintln!", "print!(", "dbg!("], |source| source.path == "src/main.rs");
    only_in(&["stdout()", "stderr()"], |source| {
        source.path == "src/main.rs" || source.within("crates/ssm-train/src/progress/")
    });
}

#[test]
fn the_readme_lists_every_source_file() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    let readme = readme.unwrap();
    let list = readme.split("## Files").nth(1).unwrap().split("```").nth(1).unwrap();
    let mut package = "";
    let mut listed = Vec::new();
    for line in list.lines().filter(|line| !line.is_empty()) {
        let name = line.split_whitespace().next().unwrap();
        if line.starts_with(' ') {
            let path = if package == "." { name.to_owned() } else { format!("{package}/{name}") };
            assert!(line.trim() != name, "{path} has no sentence");
            listed.push(path);
        } else {
            package = name;
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in &listed {
        assert!(root.join(path).is_file(), "README.md lists {path}, which is not there");
    }
    for path in rust_files(&["src", "tests", "benches", "examples"]) {
        assert!(listed.contains(&path), "README.md does not list {path}");
    }
}

#[test]
fn files_have_names_and_sizes_that_tell() {
    let lines_max = 600;
    for source in sources() {
        let banned = ["utils", "util", "helpers", "common", "misc", "manager", "base"];
        for part in source.path.trim_end_matches(".rs").split('/') {
            assert!(!banned.contains(&part), "{}: `{part}` says nothing", source.path);
        }
        assert!(
            source.lines <= lines_max,
            "{} has {} lines: split it by room, {lines_max} is the limit",
            source.path,
            source.lines
        );
    }
}
