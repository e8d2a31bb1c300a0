//! The programs of this workspace that steps run: as optimised as a release, and without its long linking.

use std::path::PathBuf;

use anyhow::Result;

use crate::run::{command, show};
use crate::workspace::Workspace;

/// The programs, which are the packages of the same names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    Holdfast,
    Powercut,
}

impl Program {
    /// Builds the program, and returns where it is.
    pub(crate) fn build(self, workspace: &Workspace) -> Result<PathBuf> {
        const PROFILE: &str = "ci";
        let mut build = command("cargo", &["build", "--profile", PROFILE]);
        // Always all of them: what they share is built once, and one is linked beside the other.
        build.args([Self::Holdfast, Self::Powercut].iter().flat_map(|each| ["-p", each.name()]));
        show(build.current_dir(&workspace.root))?;
        Ok(workspace.target.join(PROFILE).join(self.name()))
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Holdfast => "holdfast",
            Self::Powercut => "holdfast-powercut",
        }
    }
}
