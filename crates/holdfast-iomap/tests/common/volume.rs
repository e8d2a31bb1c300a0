//! A protected volume below a file system.

use std::sync::Arc;

use holdfast_checksum::GuardKind;
use holdfast_device::MemoryDevice;
use holdfast_units::BlockSize;
use holdfast_volume::{Client, CreateOptions, OpenOptions, Volume};

use super::world::{CAPACITY, Medium};

/// A volume, as who is not the file system sees it.
pub(crate) struct OnVolume(pub(crate) Client<MemoryDevice>);

impl Medium for OnVolume {
    fn load(&mut self, address: u64, target: &mut [u8]) {
        let mut sectors = vec![0; target.len().next_multiple_of(512)];
        self.0.read_at(address, &mut sectors).unwrap();
        target.copy_from_slice(&sectors[..target.len()]);
    }

    fn store(&mut self, address: u64, source: &[u8]) {
        self.0.write_at(address, source).unwrap();
    }
}

/// Returns a new volume of [`CAPACITY`] bytes, and what it is stored on.
pub(crate) fn volume(sector: BlockSize) -> (MemoryDevice, Arc<Volume>) {
    let options = CreateOptions {
        capacity: CAPACITY as u64,
        sector,
        guard: GuardKind::Crc32c,
        application_tag: CreateOptions::APPLICATION_TAG,
    };
    let mut device = MemoryDevice::new(options.geometry().unwrap().device_len());
    Volume::create(&mut device, &options).unwrap();
    let volume = Volume::open(&mut device, &OpenOptions::default()).unwrap();
    (device, volume)
}
