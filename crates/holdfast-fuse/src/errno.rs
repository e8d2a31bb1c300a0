//! Errors, as the kernel hears of them.

use std::error::Error as _;

use fuser::Errno;
use holdfast_bio::Error;
use holdfast_iomap::Error as IoError;
use holdfast_xfs::XfsError;

/// EUCLEAN of Linux, which XFS calls EFSCORRUPTED.
const CORRUPTED: i32 = 117;

/// Returns the number for an error, and logs what is wrong with what is stored or with the device.
pub(crate) fn report(error: &XfsError) -> Errno {
    let found = errno(error);
    if is_news(error) {
        tracing::error!("{}", whole_text(error));
    }
    found
}

/// As [`report`], of what failed on the way to the data of a file.
pub(crate) fn report_io(error: &IoError<XfsError>) -> Errno {
    match error {
        IoError::FileSystem(error) => return report(error),
        IoError::Bio(source) if *source != Error::NoSpace => {
            tracing::error!("the data of a file cannot be written: {source}");
        }
        IoError::Mapping { .. } => tracing::error!("{error}"),
        _ => {}
    }
    match error {
        IoError::Again => Errno::EAGAIN,
        IoError::Bio(error) => errno_of_device(error),
        IoError::TooFar { .. } => Errno::EFBIG,
        IoError::Misaligned { .. } | IoError::NotAtomic { .. } => Errno::EINVAL,
        IoError::Memory { .. } => Errno::EFAULT,
        IoError::Mapping { .. } => Errno::from_i32(CORRUPTED),
        _ => Errno::EIO,
    }
}

/// Returns whether an error is more than an answer to who asked.
const fn is_news(error: &XfsError) -> bool {
    matches!(
        error,
        XfsError::Corrupt { .. }
            | XfsError::Device { .. }
            | XfsError::Write { .. }
            | XfsError::Tree(_)
            | XfsError::Broken
    )
}

const fn errno_of_device(error: &Error) -> Errno {
    match error {
        Error::ReadOnly => Errno::EROFS,
        Error::NoSpace => Errno::ENOSPC,
        _ => Errno::EIO,
    }
}

/// Returns the text of an error with its causes.
fn whole_text(error: &XfsError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn errno(error: &XfsError) -> Errno {
    match error {
        XfsError::Corrupt { .. }
        | XfsError::Tree(_)
        | XfsError::NeedsRepair
        | XfsError::Superblock { .. } => Errno::from_i32(CORRUPTED),
        XfsError::Memory { .. } => Errno::ENOMEM,
        XfsError::Device { source, .. } | XfsError::Write { source, .. } => errno_of_device(source),
        XfsError::ReadOnly | XfsError::FeaturesForWriting { .. } => Errno::EROFS,
        XfsError::NoSpace => Errno::ENOSPC,
        XfsError::TooLong { .. } => Errno::EFBIG,
        XfsError::Features { .. }
        | XfsError::Unsupported { .. }
        | XfsError::ExternalLog
        | XfsError::Realtime { .. } => Errno::EOPNOTSUPP,
        XfsError::NoInode { .. } => Errno::ESTALE,
        XfsError::NotFound { .. } => Errno::ENOENT,
        XfsError::NotDirectory { .. } => Errno::ENOTDIR,
        XfsError::NotFile { .. } | XfsError::NotSymlink { .. } => Errno::EINVAL,
        XfsError::TooManySymlinks => Errno::ELOOP,
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use holdfast_bio::{Mismatch, Tag};
    use holdfast_xfs::{Ino, Place};
    use holdfast_xfs_format::{FormatError, Structure};

    use super::*;

    fn place() -> Place {
        Place { ino: Some(Ino(131)), address: Some(8192) }
    }

    #[test]
    fn corrupt_metadata_and_a_corrupt_sector_are_told_apart() {
        let source = FormatError::Uuid { structure: Structure::DirData };
        let metadata = XfsError::Corrupt { place: place(), source };
        let mismatch = Mismatch { tag: Tag::Guard, lba: 2, expected: 1, found: 0 };
        let sector = XfsError::Device { place: place(), source: Error::Mismatch(mismatch) };
        assert_eq!([&metadata, &sector].map(|error| errno(error).code()), [117, 5]);
    }

    #[test]
    fn a_log_line_names_file_block_and_structure() {
        let source = FormatError::Uuid { structure: Structure::DirData };
        let text = whole_text(&XfsError::Corrupt { place: place(), source });
        let named = ["inode 131", "byte 8192", &Structure::DirData.to_string()];
        assert!(named.iter().all(|name| text.contains(name)), "{text}");
    }

    #[test]
    fn what_is_not_there_is_named_by_its_own_number() {
        let errors = [
            XfsError::NotFound { name: b"a".to_vec() },
            XfsError::NotDirectory { ino: Ino(131) },
            XfsError::Realtime { ino: Ino(131) },
        ];
        assert_eq!(errors.map(|error| errno(&error).code()), [2, 20, 95]);
    }

    #[test]
    fn why_something_cannot_be_written_is_told_apart() {
        let full = XfsError::Write { place: place(), source: Error::NoSpace };
        let too_long = XfsError::TooLong { ino: Ino(131), size: u64::MAX };
        let errors = [XfsError::NoSpace, full, XfsError::ReadOnly, too_long, XfsError::Broken];
        let found = errors.map(|error| report_io(&error.into()).code());
        assert_eq!(found, [28, 28, 30, 27, 5]);
        let errors =
            [Error::NoSpace.into(), Error::IO.into(), IoError::TooFar { offset: 1, len: 2 }];
        assert_eq!(errors.map(|error| report_io(&error).code()), [28, 5, 27]);
    }
}
