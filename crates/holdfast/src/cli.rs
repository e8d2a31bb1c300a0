//! What can be said on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use holdfast_bio::ReadPolicy;
use holdfast_integrity::GuardKind;
use holdfast_nbd::Address;
use holdfast_units::BlockSize;
use holdfast_volume::CreateOptions;

/// Disks in which every sector carries a checksum, its address and an application tag, served to
/// virtual machines and programs.
///
/// Exit codes: 0 fine, 1 the data have problems, 2 it could not run. `HOLDFAST_LOG` sets how much
/// is logged: error, warn, info (the default), debug.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a new volume: a sparse file, or a block device, which is zeroed first.
    Create(Create),
    /// Serve a volume as a disk, until SIGINT or SIGTERM.
    Serve(Serve),
    /// Read everything and check everything.
    Verify(Verify),
    /// Show what a volume is, also while it is served.
    Info(Info),
    /// Copy a raw image or a block device into a volume, which is made if there is none.
    Import(Import),
    /// Copy the disk that a volume presents to a raw image or a block device.
    Export(Export),
}

#[derive(Args, Debug)]
pub(crate) struct Create {
    /// The file or block device.
    pub(crate) path: PathBuf,
    /// The size of the disk, such as 10G or 1.5T (powers of 1024). On a block device the default is
    /// what fits.
    #[arg(long, value_parser = parse_size)]
    pub(crate) size: Option<u64>,
    /// Replace the volume that a block device holds. A file that exists is never replaced.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Format {
    /// The size of a sector, 512 or 4096 bytes: what one tuple protects. Clients may use blocks of
    /// 512 bytes in either case.
    #[arg(long, value_name = "BYTES", default_value = "4096", value_parser = parse_sector)]
    pub(crate) sector: BlockSize,
    /// The guard: crc16 (T10, 8-byte tuples), crc32c or crc64 (NVMe, 16-byte tuples).
    #[arg(long, default_value = "crc64")]
    pub(crate) guard: GuardKind,
    /// The application tag of every sector, 1 to 65534.
    #[arg(long, value_name = "N", default_value_t = CreateOptions::APPLICATION_TAG)]
    pub(crate) app_tag: u16,
}

impl Format {
    /// Returns the options of a volume of `capacity` bytes.
    pub(crate) const fn options(&self, capacity: u64) -> CreateOptions {
        let Self { sector, guard, app_tag } = *self;
        CreateOptions { capacity, sector, guard, application_tag: app_tag }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// The volume.
    pub(crate) path: PathBuf,
    /// Make the volume, of this size, if there is none.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) create: Option<u64>,
    #[command(flatten)]
    pub(crate) format: Format,
    /// Listen for NBD clients at unix:PATH or tcp:ADDRESS:PORT, and nowhere else. May be given more
    /// than once. The default is a unix socket beside the volume.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) nbd: Vec<Address>,
    /// Take no writes. Other readers may use the volume meanwhile.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// How reads into memory that clients share are checked: always through a buffer, lazy (again
    /// through a buffer after a mismatch), or never, which is for measuring only. NBD clients share
    /// no memory: what they are sent is always verified in the server's own.
    #[arg(long, value_name = "always|lazy|never", default_value = "lazy")]
    pub(crate) read_policy: ReadPolicy,
    /// The most memory for tuples. 64M cover 28 GiB of disk with 8-byte tuples and 4096-byte
    /// sectors; a larger working set costs a read of 4 KiB for each group that is not there.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    pub(crate) cache_size: u64,
    /// The number of threads. The default is one for each processor, at most 4.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) threads: Option<u16>,
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// The volume.
    pub(crate) path: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Info {
    /// The volume.
    pub(crate) path: PathBuf,
    /// Print it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    /// The raw image or block device to read.
    pub(crate) from: PathBuf,
    /// The volume.
    pub(crate) path: PathBuf,
    /// Replace what a volume that exists holds.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

#[derive(Args, Debug)]
pub(crate) struct Export {
    /// The volume.
    pub(crate) path: PathBuf,
    /// The raw image or block device to write.
    pub(crate) to: PathBuf,
    /// Overwrite an image that exists, or a block device. What is in use is never overwritten.
    #[arg(long)]
    pub(crate) force: bool,
}

/// Parses a size with an optional unit, which is a power of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    parse_size::Config::new().with_binary().parse_size(text).map_err(|error| {
        format!("{error}: give bytes, or a number with K, M, G, T or P, such as 10G")
    })
}

fn parse_sector(text: &str) -> Result<BlockSize, String> {
    text.parse()
        .ok()
        .filter(|bytes| [512, 4096].contains(bytes))
        .and_then(BlockSize::new)
        .ok_or_else(|| "a sector has 512 or 4096 bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("10G"), Ok(10 << 30));
        assert_eq!(parse_size("1.5T"), Ok(3 << 39));
        assert_eq!(parse_size("4096"), Ok(4096));
        parse_size("ten").unwrap_err();
    }

    #[test]
    fn other_sectors_are_refused() {
        assert!(parse_sector("4096").is_ok() && parse_sector("1024").is_err());
    }
}
