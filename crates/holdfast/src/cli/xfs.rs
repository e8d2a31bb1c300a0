//! What can be said after `holdfast xfs`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Args, Debug)]
pub(crate) struct Xfs {
    /// What holds the file system: a raw image, a block device, or a volume.
    pub(crate) image: PathBuf,
    /// Read it as it is when its log is dirty or on another device: what was changed last may be
    /// missing.
    #[arg(long, global = true)]
    pub(crate) no_recovery: bool,
    #[command(subcommand)]
    pub(crate) action: XfsAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum XfsAction {
    /// List a directory.
    Ls(XfsLs),
    /// Show what is known of files, their extended attributes included.
    Stat(XfsPaths),
    /// Write the contents of files to the standard output.
    Cat(XfsCat),
    /// Copy a file or a tree out: contents, permissions, modification times and links. Holes stay holes.
    /// Owners and extended attributes are not copied, nor device nodes, pipes and sockets.
    Get(XfsGet),
    /// Show where the data of files are.
    Extents(XfsPaths),
    /// Write into a file that exists. Nobody else may use the image meanwhile, and until it is over the
    /// file system is marked as damaged: should this be interrupted, `xfs_repair` has to be run.
    Put(XfsPut),
}

#[derive(Args, Debug)]
pub(crate) struct XfsLs {
    /// The directory, or a file.
    #[arg(default_value = "/")]
    pub(crate) path: OsString,
    /// Show type, permissions, links, owner, group, size and time of modification.
    #[arg(short, long)]
    pub(crate) long: bool,
    /// List the directories below, too.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Print all that is known as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct XfsPaths {
    /// The files. A symbolic link is not followed.
    #[arg(required = true)]
    pub(crate) paths: Vec<OsString>,
    /// Print it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct XfsCat {
    /// The files.
    #[arg(required = true)]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct XfsGet {
    /// The file or directory.
    pub(crate) path: OsString,
    /// What is made of it. It must not exist.
    pub(crate) target: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct XfsPut {
    /// The file whose contents are taken. Its holes become holes.
    pub(crate) source: PathBuf,
    /// The file that gets them, which must exist.
    pub(crate) path: OsString,
    /// Write them from this byte on, and leave the rest of the file as it is, instead of making the file
    /// what the source is.
    #[arg(long, value_name = "BYTES")]
    pub(crate) offset: Option<u64>,
}
