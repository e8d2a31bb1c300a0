//! Direct I/O against a plain array: extents of any kind, files of any size, memory of any kind that may
//! be too short, several requests in flight, and a device that fails, moves less than it is asked to,
//! and ends bios in any order. The same on a protected volume, which has larger sectors.

use holdfast_bio::ReadPolicy;
use holdfast_device::MemoryDevice;
use holdfast_iov::Pool;
use holdfast_sim::{Faults, FaultyDevice};
use holdfast_units::BlockSize;
use holdfast_volume::{Client, Queue};
use proptest::prelude::*;

use crate::common::volume::{OnVolume, volume};
use crate::common::world::{Ask, CAPACITY, Setup, World, asks, setups};

fn batches() -> impl Strategy<Value = Vec<Vec<Ask>>> {
    prop::collection::vec(prop::collection::vec(asks(), 1..6), 1..9)
}

fn run_on_volume(setup: &Setup, batches: &[Vec<Ask>], sector: BlockSize) {
    let pool = Pool::new(8 << 20).unwrap();
    let (device, volume) = volume(sector);
    // What a failed write leaves of a sector is the volume's own business, and tested there.
    let faults = Faults { failures: Vec::new(), ..setup.faults.clone() };
    let faulty = FaultyDevice::new(device.clone(), faults, setup.seed);
    let queue = Queue::new(&volume, faulty, || {}).unwrap();
    let other = Queue::new(&volume, device, || {}).unwrap();
    let medium = OnVolume(Client::new(other, pool.clone(), ReadPolicy::Always));
    let mut world = World::new(setup, queue, medium, pool);
    for batch in batches {
        world.run(batch);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_file_is_what_was_written_to_it(setup in setups(), batches in batches()) {
        let medium = MemoryDevice::new(CAPACITY as u64);
        let device = FaultyDevice::new(medium.clone(), setup.faults.clone(), setup.seed);
        let pool = Pool::new(8 << 20).unwrap();
        let mut world = World::new(&setup, device, medium, pool.clone());
        for batch in &batches {
            world.run(batch);
        }
        prop_assert_eq!(pool.free_bytes(), pool.total_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_file_on_a_volume_is_what_was_written_to_it(setup in setups(), batches in batches()) {
        run_on_volume(&setup, &batches, BlockSize::SECTOR);
        run_on_volume(&setup, &batches, BlockSize::PAGE);
    }
}
