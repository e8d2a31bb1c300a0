//! Single transfers below the volume, for opening and closing it: one at a time, and complete.

use holdfast_bio::{Bio, BlockDevice, Error, Op};
use holdfast_iov::{Buffer, Memory};
use holdfast_units::{to_u64, to_usize};

use crate::error::VolumeError;

/// Reads or writes the first `len` bytes of `buffer` at `offset`, to the end.
pub(crate) fn transfer<D: BlockDevice>(
    device: &mut D,
    op: Op,
    offset: u64,
    buffer: Buffer,
    len: usize,
) -> Result<Buffer, Error> {
    transfer_leg(device, op, offset, buffer, len, None)
}

/// The same with one leg of a mirror.
pub(crate) fn transfer_leg<D: BlockDevice>(
    device: &mut D,
    op: Op,
    offset: u64,
    buffer: Buffer,
    len: usize,
    leg: Option<u8>,
) -> Result<Buffer, Error> {
    let mut memory = Memory::Buffer(buffer);
    let mut done = 0;
    while done < len {
        let rest = to_u64(len - done);
        let mut bio = Bio::new(op, offset + to_u64(done), rest, memory).with_start(done);
        bio.leg = leg;
        let ended = device.run(bio);
        match ended.result? {
            0 => return Err(Error::IO),
            moved => done += to_usize(moved),
        }
        memory = ended.bio.memory;
    }
    match memory {
        Memory::Buffer(buffer) => Ok(buffer),
        Memory::None | Memory::Shared(_) | Memory::Iov(_) => {
            unreachable!("a bio comes back with its memory")
        }
    }
}

/// Makes all that was written durable.
pub(crate) fn sync_device<D: BlockDevice>(device: &mut D) -> Result<(), VolumeError> {
    device.run(Bio::flush()).result.map(drop).map_err(device_error("flush the device"))
}

/// Says what was being done when the device failed.
pub(crate) fn device_error(what: &'static str) -> impl Fn(Error) -> VolumeError {
    move |source| VolumeError::Device { what, source }
}
