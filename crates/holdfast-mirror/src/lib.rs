//! A mirror: one device of several legs, each of which holds all of it.
//!
//! [`Mirror`] is what all threads share: what each leg is, and what was missed by those that are out.
//! A [`MirrorDevice`] is one thread's way to it, a [`BlockDevice`](holdfast_bio::BlockDevice) over
//! queues of the legs. It knows nothing of sectors and their tuples; the volume above judges what is
//! read, and lets a leg have what another holds. `docs/format.md` describes what is stored.

#![forbid(unsafe_code)]

mod assemble;
mod device;
mod disk;
mod error;
mod medium;
mod mirror;
mod record;
mod regions;

pub use assemble::{Legs, assemble};
pub use device::MirrorDevice;
pub use disk::Disk;
pub use error::MirrorError;
pub use medium::{Medium, read_record};
pub use mirror::{LegInfo, Mirror, Missed};
pub use record::{
    LEGS_MAX, Leg, LegState, OWN_AREA, PATH_MAX, RECORD_LEN, RECORD_OFFSETS, REGIONS_MAX, Record,
};
