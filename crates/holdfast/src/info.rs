//! `holdfast info`

use std::io::Write;
use std::os::unix::fs::MetadataExt;

use anyhow::Context;
use holdfast_device::{Access, Backing, FileDevice, OpenError};
use holdfast_volume::Volume;
use holdfast_volume::format::{ErrorCounts, Superblock};
use indicatif::BinaryBytes;
use serde::Serialize;

use crate::Outcome;
use crate::backing;
use crate::cli::Info;

pub(crate) fn run(arguments: &Info) -> anyhow::Result<Outcome> {
    let path = &arguments.path;
    // The lock tells whether somebody uses the volume; what is shown needs none.
    let in_use = match Backing::open(path, Access::ReadOnly) {
        Err(OpenError::InUse { holder, .. }) => Some(holder),
        Err(error) => return Err(error.into()),
        Ok(_) => None,
    };
    let peeked = Backing::open(path, Access::Peek)?;
    let mut device = FileDevice::new(&peeked, &backing::ring()?)?;
    let superblock =
        Volume::peek(&mut device).with_context(|| format!("cannot read {}", path.display()))?;
    let json = Json::new(arguments, &superblock, in_use)?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &json)?;
        writeln!(out)?;
    } else {
        json.write(&mut out)?;
    }
    Ok(Outcome::Fine)
}

#[derive(Serialize)]
struct Json {
    path: String,
    uuid: String,
    size_bytes: u64,
    allocated_bytes: u64,
    sector_bytes: u64,
    guard: String,
    application_tag: u16,
    created: u64,
    state: &'static str,
    in_use_by: Option<u32>,
    errors: ErrorCounts,
}

impl Json {
    fn new(
        arguments: &Info,
        superblock: &Superblock,
        in_use: Option<Option<u32>>,
    ) -> anyhow::Result<Self> {
        let state = match (in_use, superblock.clean) {
            (Some(_), _) => "in use",
            (None, true) => "closed",
            (None, false) => "not closed",
        };
        // stat(2) counts in 512 bytes.
        let allocated_bytes = std::fs::metadata(&arguments.path)?.blocks() * 512;
        Ok(Self {
            path: arguments.path.display().to_string(),
            uuid: superblock.uuid_text(),
            size_bytes: superblock.geometry.capacity(),
            allocated_bytes,
            sector_bytes: superblock.geometry.sector().bytes(),
            guard: superblock.guard.to_string(),
            application_tag: superblock.application_tag,
            created: superblock.created,
            state,
            in_use_by: in_use.flatten(),
            errors: superblock.errors,
        })
    }

    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let ErrorCounts { guard, application, reference, unwritten } = self.errors;
        writeln!(out, "volume           {}", self.path)?;
        writeln!(out, "uuid             {}", self.uuid)?;
        writeln!(
            out,
            "disk size        {} ({} bytes)",
            BinaryBytes(self.size_bytes),
            self.size_bytes
        )?;
        writeln!(out, "allocated        {}", BinaryBytes(self.allocated_bytes))?;
        writeln!(out, "sector           {} bytes", self.sector_bytes)?;
        writeln!(out, "guard            {}", self.guard)?;
        writeln!(out, "application tag  {:#06x}", self.application_tag)?;
        match self.in_use_by {
            Some(pid) => writeln!(out, "state            in use by process {pid}")?,
            None => writeln!(out, "state            {}", self.state)?,
        }
        writeln!(
            out,
            "errors met       {guard} guard tag, {application} application tag, {reference} reference tag, {unwritten} never-written sector"
        )
    }
}
