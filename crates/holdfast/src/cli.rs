//! What can be said on the command line.

mod bench;
mod mount;
mod xfs;

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use holdfast_bio::ReadPolicy;
use holdfast_integrity::GuardKind;
use holdfast_ring::Spin;
use holdfast_socket::Address;
use holdfast_units::BlockSize;
use holdfast_volume::{CreateOptions, Durability};

pub(crate) use self::bench::Bench;
pub(crate) use self::mount::Mount;
pub(crate) use self::xfs::{Xfs, XfsAction, XfsCat, XfsGet, XfsLs, XfsPaths, XfsPut};

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
    /// Have the server of a volume read everything and check everything in the background.
    Scrub(Scrub),
    /// Let a leg come to a mirror, or come back: it gets what it missed.
    Attach(Attach),
    /// Take a leg out of a mirror. What it misses from then on is remembered.
    Detach(Detach),
    /// Copy a raw image or a block device into a volume, which is made if there is none.
    Import(Import),
    /// Copy the disk that a volume presents to a raw image or a block device.
    Export(Export),
    /// Read files of an XFS file system, without mounting it and without being root.
    Xfs(Xfs),
    /// Mount an XFS file system, until it is unmounted, or until SIGINT or SIGTERM.
    Mount(Mount),
    /// Measure what protection costs: the same storage with and without it, in turns.
    Bench(Bench),
    /// Show that a guest that changes its memory during I/O does no harm: on a scratch volume, with
    /// each read policy.
    Torture(Torture),
}

#[derive(Args, Debug)]
pub(crate) struct Create {
    /// The file or block device.
    pub(crate) path: PathBuf,
    /// The size of the disk, such as 10G or 1.5T (powers of 1024). On a block device the default is
    /// what fits.
    #[arg(long, value_parser = parse_size)]
    pub(crate) size: Option<u64>,
    /// Make the volume a mirror: each of these files or block devices holds all of it, too. Up to
    /// three times.
    #[arg(long, value_name = "PATH", action = clap::ArgAction::Append)]
    pub(crate) mirror: Vec<PathBuf>,
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

/// A file of a file system.
#[derive(Clone, Debug)]
pub(crate) struct FileOfXfs {
    /// What holds the file system.
    pub(crate) image: PathBuf,
    /// The path of the file there.
    pub(crate) path: String,
}

/// Reads `IMAGE:/PATH`.
fn parse_file_of_xfs(text: &str) -> Result<FileOfXfs, String> {
    let (image, path) = text.split_once(":/").ok_or("say IMAGE:/PATH, as in disk.hf:/vm.img")?;
    Ok(FileOfXfs { image: image.into(), path: format!("/{path}") })
}

#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// The volume.
    #[arg(required_unless_present = "xfs")]
    pub(crate) path: Option<PathBuf>,
    /// Serve a file of an XFS instead, which is on a raw image, a block device or a volume, to virtual
    /// machines. Until the end the file system is marked as damaged: should the server or the machine
    /// die, `xfs_repair` has to be run. A discard leaves the file its space.
    #[arg(long, value_name = "IMAGE:/PATH", value_parser = parse_file_of_xfs, requires = "vhost_user",
        conflicts_with_all = ["path", "create", "nbd", "read_only", "metrics", "scrub", "threads"])]
    pub(crate) xfs: Option<FileOfXfs>,
    /// Make the volume, of this size, if there is none.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) create: Option<u64>,
    #[command(flatten)]
    pub(crate) format: Format,
    /// Listen for NBD clients at unix:PATH or tcp:ADDRESS:PORT, and nowhere else. May be given more
    /// than once. The default, without --vhost-user, is a unix socket beside the volume.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) nbd: Vec<Address>,
    /// Be a virtio disk (vhost-user-blk) for the virtual machine that connects to this socket. May be
    /// given more than once; each socket takes one client at a time.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) vhost_user: Vec<PathBuf>,
    /// The queues that a virtual machine may use. Each that it uses is a thread with buffers of 16
    /// MiB.
    #[arg(long, value_name = "N", default_value = "1",
        value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) queues: u16,
    /// Let threads look for requests for up to so many microseconds before they sleep, where that
    /// pays: less latency for more processor time. They never look with 0.
    #[arg(long, value_name = "US", default_value_t = Spin::PATIENCE.subsec_micros(),
        value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) poll: u32,
    /// Show what virtual machines did, and what was found corrupt, to Prometheus: at
    /// http://ADDRESS:PORT/metrics for tcp:ADDRESS:PORT. Anybody who can connect may read it.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<Address>,
    /// Take no writes. Other readers may use the volume meanwhile.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// How reads into the memory of virtual machines are checked: always through a buffer, lazy (into
    /// the memory itself, and again through a buffer after a mismatch), auto (lazy for a disk in
    /// tmpfs, else always), or never through a buffer, reads and writes alike: for measuring only,
    /// since a guest that changes its memory during I/O then stores bad guards and gets false
    /// errors. NBD clients share no memory.
    #[arg(long, value_name = "auto|always|lazy|never", default_value = "auto")]
    pub(crate) read_policy: ReadPolicy,
    /// What a crash of the machine may cost; one of this program alone costs nothing. full: each
    /// sector has its old or its new data afterwards, or is known to be torn; a write waits until its
    /// tuples are durable in a log. bitmap: only which regions are being written is durable, which is
    /// cheaper; in those a sector torn by the crash can not be told from a rotten one, and both are
    /// taken for good. none, for scratch disks: the same for the whole volume, which is read afterwards.
    #[arg(long, value_name = "full|bitmap|none", default_value = "full")]
    pub(crate) durability: Durability,
    /// The most memory for tuples. 64M cover 28 GiB of disk with 8-byte tuples and 4096-byte
    /// sectors; a larger working set costs a read of 4 KiB for each group that is not there.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    pub(crate) cache_size: u64,
    /// Read and check the whole volume in the background once in so many days, evenly, but at 1 MiB
    /// per second or more. While clients are active it goes no faster than that, or reads for no
    /// more than a twentieth of the time.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) scrub: Option<u32>,
    /// The most that a scrub may read per second.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_rate)]
    pub(crate) scrub_rate: u64,
    /// The number of threads. The default is one for each processor, at most 4.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) threads: Option<u16>,
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// The volume.
    pub(crate) path: PathBuf,
    /// Do not verify, but take these sectors as they are, whatever is wrong with them: reads of them
    /// succeed from now on. Numbers or ranges, such as 14 20-25.
    #[arg(long, value_name = "LBA", num_args = 1.., value_delimiter = ',', value_parser = parse_lbas,
        conflicts_with_all = ["json", "repair"])]
    pub(crate) accept: Vec<RangeInclusive<u64>>,
    /// Let each leg of a mirror have what is intact on another. The volume must not be in use.
    #[arg(long)]
    pub(crate) repair: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Attach {
    /// The volume: any leg that is good.
    pub(crate) path: PathBuf,
    /// The leg: a file, which is made if there is none, or a block device.
    pub(crate) leg: PathBuf,
    /// Throw away what is on the leg: that of a split brain, or of something else.
    #[arg(long)]
    pub(crate) discard: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Detach {
    /// The volume: any leg that stays.
    pub(crate) path: PathBuf,
    /// The leg.
    pub(crate) leg: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct Info {
    /// The volume.
    pub(crate) path: PathBuf,
    /// Ask its server what it has done so far, for each queue of each virtual machine.
    #[arg(long)]
    pub(crate) live: bool,
    /// Print it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Scrub {
    #[command(subcommand)]
    pub(crate) action: ScrubAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ScrubAction {
    /// Begin a scrub now, or go on with the one that was stopped, as fast as --scrub-rate of the
    /// server allows.
    Start(ScrubTarget),
    /// Stop the scrub. Where it is and what it found is kept, also when the server ends.
    Stop(ScrubTarget),
    /// Show how far the scrub is and what it found, also without a server. Exits with 1 if there are
    /// sectors that are corrupt or cannot be read.
    Status(ScrubTarget),
}

#[derive(Args, Debug)]
pub(crate) struct ScrubTarget {
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

#[derive(Args, Debug)]
pub(crate) struct Torture {
    /// How many requests each policy gets.
    #[arg(long, value_name = "N", default_value = "100000",
        value_parser = clap::value_parser!(u64).range(1..=30_000_000))]
    pub(crate) requests: u64,
    /// The guard: crc16, crc32c or crc64.
    #[arg(long, default_value = "crc64")]
    pub(crate) guard: GuardKind,
    /// The size of a sector, 512 or 4096 bytes.
    #[arg(long, value_name = "BYTES", default_value = "4096", value_parser = parse_sector)]
    pub(crate) sector: BlockSize,
    /// How many queues the guest uses.
    #[arg(long, value_name = "N", default_value = "4",
        value_parser = clap::value_parser!(u16).range(1..=16))]
    pub(crate) queues: u16,
    /// The read policy. May be given more than once; all three are tried when it is not.
    #[arg(long, value_name = "always|lazy|never")]
    pub(crate) policy: Vec<ReadPolicy>,
    /// Where the scratch volume is made, 33 MiB that are removed at the end. The default is the
    /// directory for temporary files.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Keep the volume in memory, and flip stored bits meanwhile: each sector that is hit must be
    /// found, and none be delivered.
    #[arg(long, conflicts_with_all = ["dir", "kills"])]
    pub(crate) corrupt: bool,
    /// Serve the volume from another process, and kill that so many times, for as many requests as
    /// there are meanwhile.
    #[arg(long, value_name = "N", conflicts_with = "requests")]
    pub(crate) kills: Option<u64>,
    /// Where all choices come from. The same seed makes the same requests, as far as threads allow.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Parses a size with an optional unit, which is a power of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    parse_size::Config::new().with_binary().parse_size(text).map_err(|error| {
        format!("{error}: give bytes, or a number with K, M, G, T or P, such as 10G")
    })
}

/// Parses a sector's number, or those of a first and a last one.
fn parse_lbas(text: &str) -> Result<RangeInclusive<u64>, String> {
    let wrong = || format!("{text:?} is no LBA and no range of them: give 14, or 20-25");
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if first <= last && last < u64::MAX { Ok(first..=last) } else { Err(wrong()) }
}

fn parse_rate(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 64 << 10;
    let rate = parse_size(text)?;
    if rate < LEAST {
        return Err("give at least 64K per second".to_owned());
    }
    Ok(rate)
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
    fn sectors_to_accept_are_numbers_or_ranges() {
        assert_eq!(parse_lbas("14"), Ok(14..=14));
        assert_eq!(parse_lbas("20-25"), Ok(20..=25));
        for text in ["", "-", "5-4", "0x10", "1-2-3", "18446744073709551615"] {
            parse_lbas(text).unwrap_err();
        }
    }

    #[test]
    fn a_scrub_that_would_never_end_is_refused() {
        assert_eq!(parse_rate("64K"), Ok(64 << 10));
        parse_rate("0").unwrap_err();
    }

    #[test]
    fn other_sectors_are_refused() {
        assert!(parse_sector("4096").is_ok() && parse_sector("1024").is_err());
    }
}
