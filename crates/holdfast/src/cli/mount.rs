//! What can be said after `holdfast mount`.

use std::path::PathBuf;

use clap::Args;

#[derive(Args, Debug)]
#[command(after_help = "\
The mount is read-only: there is no --rw yet, and programs that would change something get \
\"Read-only file system\". Files on a realtime device, and a log on another device, are not \
supported. Access times do not change. For all but root it needs fusermount3, of the package fuse3.")]
pub(crate) struct Mount {
    /// What holds the file system: a raw image, a block device, or a volume.
    pub(crate) image: PathBuf,
    /// The directory to mount it on.
    pub(crate) directory: PathBuf,
    /// Mount it as it is when its log is dirty or on another device: what was changed last may be
    /// missing.
    #[arg(long)]
    pub(crate) no_recovery: bool,
    /// Let all users use it, as far as the permissions of the files allow. Who is not root needs
    /// `user_allow_other` in /etc/fuse.conf.
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// How many requests are answered at the same time. Each is a thread with a queue of its own.
    #[arg(long, value_name = "N", default_value = "16",
        value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) threads: u16,
}
