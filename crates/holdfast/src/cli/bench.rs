//! What can be said after `holdfast bench`.

use std::path::PathBuf;

use clap::Args;

use super::parse_size;

#[derive(Args, Debug)]
#[command(after_help = "\
The columns: \"zero copy, no guards\" is the storage itself, by the same io_uring; \"zero copy, guards\" a volume \
on it that trusts its callers not to change their memory during I/O; \"bounce, guards\" copies all through \
buffers of its own, as `serve` does by default; \"lazy, guards\" copies what is written, and of what is read only \
what was changed meanwhile, as `serve` does by default where the storage is memory. The volume has the defaults of \
`create` and `serve`, full durability included. The legs of a mirror are no volumes to it.")]
pub(crate) struct Bench {
    /// Where to measure: a file that does not exist yet is made and removed; of a volume that exists only
    /// reads are measured; a block device is overwritten, with --force. Without it, a file in memory.
    pub(crate) path: Option<PathBuf>,
    /// Less exact, in under a minute.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Overwrite all that a block device holds.
    #[arg(long)]
    pub(crate) force: bool,
    /// How much storage to use, in each of two places. The default is 1G, and 256M with --quick.
    #[arg(long, value_parser = parse_size)]
    pub(crate) size: Option<u64>,
    /// Also write a page with plots.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Also write all that was measured as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}
