//! Every mistake in a configuration and the exact words that answer it; round trips; overrides.

mod files;
mod names;
mod overrides;
mod presence;
mod ranges;
mod resolution;
mod syntax;
mod toy;
mod types;
