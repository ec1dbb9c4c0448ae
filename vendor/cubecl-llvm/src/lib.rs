//! A stand-in for `cubecl-llvm`, so that the CUDA backend builds without LLVM.
//!
//! `cubecl-cuda` has two compilers: CUDA C++ through NVRTC, and LLVM. It always compiles both in and
//! picks one by its feature `cpp` (`cubecl/cuda-cpp`), which this workspace switches on. The LLVM
//! crate's build script downloads LLVM 23, hundreds of megabytes that would never run here, and no
//! distribution packages that version. This crate has the same name, version and signatures, no
//! LLVM behind them, and an error where a kernel would be compiled.
//!
//! It can go, with its `[patch.crates-io]` line, when `cubecl-cuda` makes `cubecl-llvm` optional.

use std::{ffi::c_char, fmt};

use cubecl_core::{
    ir::nvidia::SmArch,
    prelude::KernelDefinition,
};
use cubecl_environment::backtrace::BackTrace;
use cubecl_server::{
    compiler::{CompilationError, Compiler},
    kernel::BufferIOAttr,
};

/// Never reached: the C++ compiler is the only one that is chosen.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    /// What would be compiled for.
    pub target: LlvmTarget,
}

/// The one target that `cubecl-cuda` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA's PTX.
    Nvptx,
}

/// What a compilation would be told.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Not used for NVIDIA.
    pub arch: Option<()>,
    /// The GPU's architecture.
    pub sm_arch: Option<SmArch>,
    /// The PTX version of the driver.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether scalars travel in the parameter block.
    pub grid_constants: bool,
    /// Keeps `..Default::default()` in the caller meaningful.
    pub cpu_buffer_alignment: Option<u32>,
}

/// What a compilation would give.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// PTX for an NVIDIA GPU.
    NvptxCode(NvptxModule),
    /// Makes the caller's catch-all arm reachable.
    Unavailable,
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NvptxCode(module) => f.write_str(&module.ir),
            Self::Unavailable => f.write_str("no LLVM in this build"),
        }
    }
}

/// A compiled kernel.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// PTX, ended by a zero.
    pub ptx: Vec<c_char>,
    /// Name of the kernel.
    pub entrypoint: String,
    /// The program before its last lowering.
    pub ir: String,
    /// Shared memory of a launch, in bytes.
    pub shared_memory_size: usize,
    /// What the kernel does with each buffer.
    pub io: Vec<BufferIOAttr>,
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this build has no LLVM: enable `cubecl/cuda-cpp`".into(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}

/// NVIDIA's part.
pub mod nvptx {
    /// PTX versions.
    pub mod ptx_version {
        use std::fmt;

        /// A PTX version that is never asked for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct PtxVersion;

        impl PtxVersion {
            /// The C++ compiler leaves the version to NVRTC.
            #[must_use]
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("ptx")
            }
        }
    }
}

/// What the LLVM backends have in common.
pub mod shared {
    /// Features that LLVM lacks.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// The one target that `cubecl-cuda` names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's PTX.
            Nvptx,
        }

        /// The C++ compiler supports what the device reports: nothing is taken away.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}
