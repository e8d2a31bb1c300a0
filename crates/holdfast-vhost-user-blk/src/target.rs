//! What is served: any disk of which each thread can have its own queue.

use std::io;
use std::sync::Arc;

use holdfast_bio::DiskQueue;
use holdfast_ring::{SharedRing, Waker};
use holdfast_units::BlockSize;
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

/// Bytes that name a disk.
pub(crate) const ID: usize = VIRTIO_BLK_ID_BYTES as usize;

/// A disk to be served, and how each thread gets its own way to it.
pub trait Target: Send + Sync + 'static {
    /// One thread's way to the disk. It may be full, and transfers may be short; nothing moved is an error.
    ///
    /// It is asked for whole logical blocks inside the disk: to make whole sectors of its
    /// [limits](holdfast_bio::Limits) zeros, to discard whole discard blocks, to flush, and to read and write
    /// any. These come with the guest's memory when they are whole sectors and it is aligned, and otherwise with
    /// a buffer in which they begin where they do in their first sector ([`Bio`](holdfast_bio::Bio)).
    type Queue: DiskQueue;

    /// Returns what guests are told of the disk. It stays so as long as the disk is served.
    fn describe(&self) -> Description;

    /// Opens a queue of the disk, on the ring of the calling thread. `waker` wakes that thread, from any other.
    ///
    /// # Errors
    ///
    /// EMFILE, ENOMEM.
    fn queue(&self, ring: &SharedRing, waker: &Arc<Waker>) -> io::Result<Self::Queue>;
}

/// What guests are told of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// The size of the disk, in bytes. What is no whole logical block at its end is not shown.
    pub capacity: u64,
    /// What requests must be multiples of: 512 bytes or more.
    pub logical_block: BlockSize,
    /// What is written whole, so that parts of it cost more: at least a logical block, at most 1 MiB.
    pub physical_block: BlockSize,
    /// Of a discard only whole blocks of this size go to the disk: at least a logical block, at most 1 GiB.
    pub discard_block: BlockSize,
    /// Requests that would change the disk are not offered.
    pub read_only: bool,
    /// The name of the disk, with zeros behind it if it is shorter.
    pub id: [u8; ID],
}

impl Description {
    /// Describes a disk of `capacity` bytes that writes and discards whole blocks, and that takes requests for
    /// parts of blocks down to 512 bytes. The name is cut to what guests have room for: 20 bytes.
    pub fn new(capacity: u64, block: BlockSize, name: &str) -> Self {
        let mut id = [0; ID];
        for (to, from) in id.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Self {
            capacity,
            logical_block: BlockSize::SECTOR,
            physical_block: block,
            discard_block: block,
            read_only: false,
            id,
        }
    }

    /// Returns it with the capacity that is shown, if the blocks are ones that can be told to a guest.
    pub(crate) fn checked(self) -> io::Result<Self> {
        let Self { logical_block, physical_block, discard_block, .. } = self;
        let told = logical_block >= BlockSize::SECTOR
            && (logical_block.bytes()..=1 << 20).contains(&physical_block.bytes())
            && (logical_block.bytes()..=1 << 30).contains(&discard_block.bytes());
        if !told {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a disk cannot be served with blocks of {logical_block} bytes, of \
                     {physical_block} that are written whole, and of {discard_block} that are discarded"
                ),
            ));
        }
        Ok(Self { capacity: logical_block.align_down(self.capacity), ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(sizes: [u64; 3]) -> Description {
        let [logical_block, physical_block, discard_block] =
            sizes.map(|bytes| BlockSize::new(bytes).unwrap());
        let shape = Description::new(1_000_000, BlockSize::SECTOR, "disk");
        Description { logical_block, physical_block, discard_block, ..shape }
    }

    #[test]
    fn blocks_that_cannot_be_told_are_refused() {
        for sizes in [
            [256, 512, 512],
            [4096, 512, 4096],
            [4096, 4096, 512],
            [512, 2 << 20, 4096],
            [512, 512, 2 << 30],
        ] {
            let error = blocks(sizes).checked().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{sizes:?}");
        }
    }

    #[test]
    fn a_part_of_a_logical_block_at_the_end_is_not_shown() {
        let shown = |sizes| blocks(sizes).checked().unwrap().capacity;
        assert_eq!(shown([512, 4096, 65536]), 1953 * 512);
        assert_eq!(shown([4096, 4096, 4096]), 244 * 4096);
    }

    #[test]
    fn a_long_name_is_cut_and_a_short_one_has_zeros_behind_it() {
        let id = |name| Description::new(0, BlockSize::PAGE, name).id;
        assert_eq!(&id("0123456789abcdefghijklmnop"), b"0123456789abcdefghij");
        assert_eq!(&id("disk.img"), b"disk.img\0\0\0\0\0\0\0\0\0\0\0\0");
    }
}
