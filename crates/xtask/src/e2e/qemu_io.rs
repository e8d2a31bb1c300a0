//! Patterns at odd sectors, for every guard and both sector sizes, against a model of what must be there.

use anyhow::{Context, Result, ensure};

use super::Outcome;
use super::bytes::Noise;
use super::scene::Scene;
use super::server::Server;
use crate::run::command;

const GUARDS: &[&str] = &["crc16", "crc32c", "crc64"];
const SECTOR_SIZES: &[&str] = &["512", "4096"];

/// All addresses are in blocks of this many bytes, also on volumes with larger sectors.
const BLOCK: u64 = 512;
/// Beyond one block of tuples, whichever the guard.
const BLOCKS: u64 = (8 << 20) / BLOCK;
const BLOCKS_MAX: u64 = 129;
const OPERATIONS: u32 = 96;

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    let formats =
        GUARDS.iter().flat_map(|guard| SECTOR_SIZES.iter().map(move |sector| (*guard, *sector)));
    for (seed, (guard, sector)) in (1..).zip(formats) {
        format(scene, guard, sector, seed)
            .with_context(|| format!("{guard}, sectors of {sector}"))?;
    }
    Ok(Outcome::Passed)
}

/// Plays the operations of a seed on a fresh volume, and checks it again after a restart.
fn format(scene: &Scene, guard: &str, sector: &str, seed: u64) -> Result<()> {
    let volume = scene.path(&format!("{guard}-{sector}.hf"));
    let size = (BLOCKS * BLOCK).to_string();
    let server = Server::create(scene, &volume, &size, &["--guard", guard, "--sector", sector])?;
    let mut model = Model::new();
    let commands = model.play(seed);
    qemu_io(scene, &server.uri(), &commands)?;
    qemu_io(scene, &server.uri(), &model.checks())?;
    server.stop()?;
    scene.verify(&volume)?;

    let server = Server::start(scene, &volume, &[])?;
    qemu_io(scene, &server.uri(), &model.checks())?;
    server.stop()
}

fn qemu_io(scene: &Scene, uri: &str, commands: &[String]) -> Result<()> {
    let mut qemu_io = command("qemu-io", &["-f", "raw"]);
    qemu_io.args(commands.iter().flat_map(|line| ["-c", line])).arg(uri);
    let ended = scene.run(&mut qemu_io)?;
    let said = ended.stdout + &ended.stderr;
    // It goes on after a failure, and its exit status was not always to be trusted.
    let fault = said.lines().find(|line| line.contains("failed"));
    ensure!(fault.is_none(), "{}", fault.unwrap_or_default());
    ensure!(ended.status.success(), "qemu-io: {}", ended.status);
    Ok(())
}

/// The byte that each block must be full of.
struct Model {
    blocks: Vec<u8>,
}

impl Model {
    fn new() -> Self {
        Self { blocks: vec![0; usize::try_from(BLOCKS).expect("a small number")] }
    }

    /// The operations of a seed, each with a read of what it wrote.
    fn play(&mut self, seed: u64) -> Vec<String> {
        let mut noise = Noise::new(seed);
        let mut commands = Vec::new();
        for _ in 0..OPERATIONS {
            let start = noise.below(BLOCKS);
            let len = (1 + noise.below(BLOCKS_MAX)).min(BLOCKS - start);
            let pattern = u8::try_from(1 + noise.below(255)).expect("below 256");
            let (verb, pattern) = match noise.below(8) {
                0 => ("write -z".to_owned(), 0),
                1 => ("write -z -u".to_owned(), 0),
                2 => ("discard".to_owned(), 0),
                // With FUA.
                3 => (format!("write -f -P {pattern}"), pattern),
                _ => (format!("write -P {pattern}"), pattern),
            };
            // A discard gives whole sectors back, and leaves parts of sectors as they are.
            let (start, len) =
                if verb == "discard" { whole_sectors(start, len) } else { (start, len) };
            self.fill(start, len, pattern);
            commands.push(format!("{verb} {} {}", start * BLOCK, len * BLOCK));
            commands.push(read(start, len, pattern));
        }
        commands.push("flush".to_owned());
        commands
    }

    /// Reads that cover everything, one for each run of blocks that are alike.
    fn checks(&self) -> Vec<String> {
        let mut start = 0;
        let mut checks = Vec::new();
        for run in self.blocks.chunk_by(PartialEq::eq) {
            let len = u64::try_from(run.len()).expect("usize has 64 bits");
            checks.push(read(start, len, run[0]));
            start += len;
        }
        checks
    }

    fn fill(&mut self, start: u64, len: u64, pattern: u8) {
        let index = |block: u64| usize::try_from(block).expect("usize has 64 bits");
        self.blocks[index(start)..index(start + len)].fill(pattern);
    }
}

/// Widens a run of blocks to whole sectors, whatever their size.
fn whole_sectors(start: u64, len: u64) -> (u64, u64) {
    const BLOCKS_OF_SECTOR: u64 = 4096 / BLOCK;
    let first = start / BLOCKS_OF_SECTOR * BLOCKS_OF_SECTOR;
    (first, (start + len).next_multiple_of(BLOCKS_OF_SECTOR) - first)
}

/// Reads a run, and compares each byte of it.
fn read(start: u64, len: u64, pattern: u8) -> String {
    format!("read -P {pattern} {} {}", start * BLOCK, len * BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checks_are_one_read_for_each_run() {
        let mut model = Model::new();
        model.fill(3, 2, 7);
        let rest = (BLOCKS - 5) * BLOCK;
        assert_eq!(
            model.checks(),
            [
                "read -P 0 0 1536".to_owned(),
                "read -P 7 1536 1024".to_owned(),
                format!("read -P 0 2560 {rest}")
            ]
        );
    }

    #[test]
    fn a_seed_writes_zeroes_and_discards() {
        let commands = Model::new().play(1);
        let verbs = ["write -z ", "write -z -u ", "discard ", "write -f ", "write -P "];
        assert!(verbs.iter().all(|verb| commands.iter().any(|line| line.starts_with(verb))));
    }
}
