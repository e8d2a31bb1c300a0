//! How to mount.

use std::num::NonZeroUsize;

use fuser::{Config, MountOption, SessionACL};

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What is shown as the source of the mount, such as the path of the image.
    pub source: String,
    /// Take the file system as it is when its log is dirty, as
    /// [`MountOptions::no_recovery`](holdfast_xfs::MountOptions::no_recovery).
    pub no_recovery: bool,
    /// Let all users use the mount, as far as permissions allow it. Who is not root needs
    /// `user_allow_other` in `/etc/fuse.conf` for that.
    pub allow_other: bool,
    /// How many requests are answered at the same time.
    pub threads: NonZeroUsize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            source: Self::NAME.to_owned(),
            no_recovery: false,
            allow_other: false,
            threads: Self::THREADS,
        }
    }
}

impl Options {
    /// The subtype: the type of the mount is `fuse.holdfast`.
    const NAME: &str = "holdfast";
    const THREADS: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not 0");

    pub(crate) fn config(&self) -> Config {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::RO,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::DefaultPermissions,
            MountOption::FSName(self.shown_source()),
            // The option of that name does not reach the kernel when root mounts.
            MountOption::CUSTOM(format!("subtype={}", Self::NAME)),
        ];
        config.acl = if self.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(self.threads.get());
        config.clone_fd = true;
        config
    }

    /// A comma would end the option, for fusermount(1), and a backslash has a meaning.
    fn shown_source(&self) -> String {
        let is_plain = !self.source.is_empty() && !self.source.contains([',', '\\', '\0']);
        if is_plain { self.source.clone() } else { Self::NAME.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(source: &str) -> String {
        Options { source: source.to_owned(), ..Options::default() }.shown_source()
    }

    #[test]
    fn a_source_that_would_be_taken_for_options_is_not_shown() {
        assert_eq!(
            ["/a/disk.img", "a,suid", "", "a\\"].map(shown),
            ["/a/disk.img", "holdfast", "holdfast", "holdfast"]
        );
    }

    #[test]
    fn a_mount_is_read_only_and_checks_permissions() {
        let options = Options::default().config().mount_options;
        for needed in [MountOption::RO, MountOption::DefaultPermissions, MountOption::NoSuid] {
            assert!(options.contains(&needed), "{needed:?} is missing");
        }
    }
}
