//! What can be said after `holdfast mount`.

use std::num::NonZeroU16;
use std::path::PathBuf;

use clap::Args;

#[derive(Args, Debug)]
#[command(after_help = "\
With --rw the data, the sizes and the times of files that are there can be changed: write, truncate, \
fallocate (reserve, punch and zero), utimens. Names, owners, permissions and attributes cannot yet, and \
programs that would change them get \"Read-only file system\". Without a journal what was changed since \
the last fsync is lost in a crash, and the image needs xfs_repair. Files on a realtime device, and a log on another device, are not \
supported. Birth times, FIEMAP, and the flags and projects of files are not shown. Access times \
do not change. For all but root it needs fusermount3, of the package fuse3.")]
pub(crate) struct Mount {
    /// What holds the file system: a raw image, a block device, or a volume.
    pub(crate) image: PathBuf,
    /// The directory to mount it on.
    pub(crate) directory: PathBuf,
    /// Let files that are there be written. Nobody else can use the image meanwhile.
    #[arg(long, conflicts_with = "no_recovery")]
    pub(crate) rw: bool,
    /// Read and write all files around the page cache, as if they were opened with `O_DIRECT`.
    #[arg(long)]
    pub(crate) direct_io: bool,
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
        value_parser = parse_threads)]
    pub(crate) threads: NonZeroU16,
}

fn parse_threads(text: &str) -> Result<NonZeroU16, String> {
    const MOST: u16 = 64;
    let threads = text.parse().ok().filter(|threads: &NonZeroU16| threads.get() <= MOST);
    threads.ok_or_else(|| format!("give a number from 1 to {MOST}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_thread_and_there_are_not_too_many() {
        assert_eq!(
            ["1", "64"].map(|text| parse_threads(text).map(NonZeroU16::get)),
            [Ok(1), Ok(64)]
        );
        assert!(["0", "65", "many"].iter().all(|text| parse_threads(text).is_err()));
    }
}
