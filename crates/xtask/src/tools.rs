//! Programs of crates.io that the tests run, built into the target directory.

use std::path::PathBuf;

use anyhow::Result;

use crate::run::{command, show};
use crate::workspace::Workspace;

/// Makes sure of a program that has the name of its crate, and returns its path.
pub(crate) fn installed(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let tools = workspace.target.join("tools");
    let program = tools.join("bin").join(name);
    if !program.is_file() {
        println!("{name} is missing: installing it into {} (a minute)", tools.display());
        // The build takes most of the time of what is only tried.
        let arguments = ["install", name, "--locked", "--debug", "--quiet", "--root"];
        let mut install = command("cargo", &arguments);
        show(install.arg(&tools).current_dir(&workspace.root))?;
    }
    Ok(program)
}
