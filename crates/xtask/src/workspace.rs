//! Where the workspace is, and what `cargo metadata` says of it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::run::{command, output};

/// The directories that every chore needs.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Where the workspace's `Cargo.toml` is.
    pub(crate) root: PathBuf,
    /// Where cargo builds, `CARGO_TARGET_DIR` included.
    pub(crate) target: PathBuf,
    /// The members as `cargo metadata` describes them.
    pub(crate) packages: Vec<Value>,
}

impl Workspace {
    /// Asks cargo about the workspace that this program belongs to.
    pub(crate) fn find() -> Result<Self> {
        // cargo run sets the variable; it is right also when another clone shares the target directory.
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let near = manifest_dir.parent().and_then(Path::parent).context("no workspace here")?;
        let mut metadata = command("cargo", &["metadata", "--no-deps", "--format-version=1"]);
        let text = output(metadata.current_dir(near))?;
        let mut metadata: Value = serde_json::from_str(&text).context("cargo metadata")?;
        let path = |key: &str| {
            metadata[key]
                .as_str()
                .map(PathBuf::from)
                .with_context(|| format!("no {key} in cargo metadata"))
        };
        Ok(Self {
            root: path("workspace_root")?,
            target: path("target_directory")?,
            packages: match metadata["packages"].take() {
                Value::Array(packages) => packages,
                other => anyhow::bail!("cargo metadata: packages is {other}"),
            },
        })
    }
}
