//! Where devices of CubeCL keep the kernels that they compile, and what is said while they compile.

use std::{
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use cubecl::config::{
    CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig, compilation::CompilationLogLevel,
};
use log::{Level, LevelFilter, Log, Metadata, Record};

/// Where CubeCL logs the kernels that it did not find among those that were kept.
const COMPILATION: &str = "cubecl::compilation";

/// The directory that holds compiled kernels.
static CACHE: OnceLock<PathBuf> = OnceLock::new();

/// Whether the device that was opened last compiles anew whenever the program starts.
static FORGETS: AtomicBool = AtomicBool::new(false);

/// Keeps compiled kernels and the choices among them in the user's cache directory: without, a program
/// spends minutes before its first step, each time it is started.
pub(super) fn keep() {
    let mut config = CubeClRuntimeConfig::default().override_from_env();
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    if let Some(base) = base.or_else(|| Some(std::env::home_dir()?.join(".cache"))) {
        let cache = CACHE.get_or_init(|| base.join("ssm"));
        #[cfg(feature = "persistence")]
        {
            config.compilation.cache = true;
        }
        config.environment.path = CacheConfig::Directory(cache.clone());
    }
    let logger = &mut config.compilation.logger;
    if matches!(logger.level, CompilationLogLevel::Disabled) {
        logger.level = CompilationLogLevel::Basic;
        logger.log = Some(Default::default());
    }
    // A configuration that is already in use stays, and so does a listener: this is the second device
    // of the process.
    CubeClRuntimeConfig::try_set(config);
    if log::set_logger(&Listener).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// What the next compilation is announced with depends on whether the device keeps its kernels.
pub(super) fn forgets(forgets: bool) {
    FORGETS.store(forgets, Ordering::Relaxed);
}

/// Says once that kernels are compiled, and passes on what CubeCL and Burn warn of: a kernel that
/// cannot be compiled says why only there.
struct Listener;

impl Log for Listener {
    fn enabled(&self, record: &Metadata<'_>) -> bool {
        record.target() == COMPILATION || warns(record)
    }

    fn log(&self, record: &Record<'_>) {
        static ANNOUNCED: AtomicBool = AtomicBool::new(false);
        if record.target() == COMPILATION {
            if !ANNOUNCED.swap(true, Ordering::Relaxed) {
                let keeps = cfg!(feature = "persistence") && !FORGETS.load(Ordering::Relaxed);
                let kept = CACHE.get().filter(|_| keeps);
                tracing::info!("{}", announcement(kept));
            }
        } else if warns(record.metadata()) {
            // The first line: the source of the kernel may follow.
            let text = record.args().to_string();
            tracing::warn!("{}", text.lines().next().unwrap_or_default());
        }
    }

    fn flush(&self) {}
}

fn warns(record: &Metadata<'_>) -> bool {
    let ours = ["cubecl", "cubek", "burn"].iter().any(|name| record.target().starts_with(name));
    ours && record.level() <= Level::Warn
}

fn announcement(kept: Option<&PathBuf>) -> String {
    match kept {
        Some(path) => format!(
            "compiling kernels, which are kept in `{}`: only a first start waits for them",
            path.display()
        ),
        None => "compiling kernels, which this device does not keep: every start waits for them"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announcement_says_where_kernels_are_kept() {
        assert_eq!(
            announcement(Some(&PathBuf::from("/home/me/.cache/ssm"))),
            "compiling kernels, which are kept in `/home/me/.cache/ssm`: only a first start waits \
             for them"
        );
        assert_eq!(
            announcement(None),
            "compiling kernels, which this device does not keep: every start waits for them"
        );
    }

    #[test]
    fn warnings_of_others_are_not_ours() {
        let record = |target, level| {
            let metadata = Metadata::builder().target(target).level(level).build();
            Listener.enabled(&metadata)
        };
        assert!(record("cubecl::compilation", Level::Info));
        assert!(record("cubecl_runtime::logging::server", Level::Warn));
        assert!(!record("cubecl_runtime::logging::server", Level::Info));
        assert!(!record("wgpu_hal::gles::egl", Level::Error));
    }
}
