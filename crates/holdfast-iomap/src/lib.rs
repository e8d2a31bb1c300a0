//! Ranges of files as bios: the extent iterator, direct I/O, and what follows when it has ended.
//!
//! A file system implements [`Mapper`]: it says where a range of a file is, one [`Mapping`] at a time,
//! and is told of what has ended by an [`Ioend`]. [`DirectIo`] does everything else, for any number of
//! requests in flight on one queue of a device. This crate knows no file system.
//!
//! What holds for every request:
//!
//! - It may go over any number of mappings and bios. After an error no more bios are submitted, and
//!   it ends when those in flight have. Its memory is free then.
//! - Holes, unwritten blocks and what is behind the end of the file read as zeros, the last also in
//!   the memory that a short read leaves.
//! - What a write leaves of a block that is not in use yet is zeroed, or copied where the block was
//!   shared, and so is what lies between the end of the file and a write behind it. Nothing of what the
//!   device had there before can be read.
//! - The file system converts blocks and changes the size when the data are written, and with
//!   [`dsync`](Flags::dsync) when they are durable; its commit comes last. After an error it does neither.
//! - A range can be zeroed from any byte to any other, for who truncates a file or punches a hole.
//! - Stable memory is not copied, unless it is misaligned for the device. Volatile memory is, when the
//!   device needs stable memory.
//! - Writes to the same block are carried out one after the other, in the order in which they came; a
//!   write behind the end of the file waits for those that make the file longer. For many writes in
//!   flight to a file that grows, let it grow first.
//!
//! ```
//! use holdfast_bio::ReadPolicy;
//! use holdfast_device::MemoryDevice;
//! use holdfast_iomap::{DirectIo, Direction, Error, How, Ioend, Kind, Mapper, Mapping, Request};
//! use holdfast_iov::{Memory, Pool};
//! use holdfast_units::BlockSize;
//! use std::convert::Infallible;
//!
//! /// A file system with one file, of which the first megabyte is on the device.
//! struct OneFile {
//!     size: u64,
//! }
//!
//! const LEN: u64 = 1 << 20;
//!
//! impl Mapper for OneFile {
//!     type File = ();
//!     type Error = Infallible;
//!
//!     fn block(&self, (): ()) -> BlockSize {
//!         BlockSize::PAGE
//!     }
//!
//!     fn size(&self, (): ()) -> u64 {
//!         self.size
//!     }
//!
//!     fn begin(
//!         &mut self, (): (), offset: u64, _len: u64, _how: How,
//!     ) -> Result<Mapping, Error<Infallible>> {
//!         if offset >= LEN {
//!             return Err(holdfast_bio::Error::NoSpace.into());
//!         }
//!         Ok(Mapping::new(0, LEN, Kind::Mapped { address: 8192 }))
//!     }
//!
//!     fn complete(&mut self, ioend: &Ioend<(), Infallible>) -> Result<(), Error<Infallible>> {
//!         self.size = self.size.max(ioend.size.unwrap_or(0));
//!         Ok(())
//!     }
//!
//!     fn commit(&mut self, (): ()) -> Result<(), Error<Infallible>> {
//!         Ok(())
//!     }
//! }
//!
//! let pool = Pool::new(1 << 20)?;
//! let mut file_system = OneFile { size: 0 };
//! let mut direct = DirectIo::new(MemoryDevice::new(2 << 20), pool.clone(), ReadPolicy::Lazy);
//!
//! let mut buffer = pool.take_whole(512).expect("the pool has room");
//! buffer.as_mut_slice().fill(7);
//! let request = Request::new(Direction::Write, (), 1024, 512, Memory::Buffer(buffer));
//! let finished = direct.run(&mut file_system, request);
//! assert_eq!((finished.result, file_system.size), (Ok(512), 1536));
//!
//! // What was not written is zeros, and the read is short.
//! let request = Request::new(Direction::Read, (), 512, 4096, finished.request.memory);
//! let finished = direct.run(&mut file_system, request);
//! assert_eq!(finished.result, Ok(1024));
//! let Memory::Buffer(buffer) = &finished.request.memory else { panic!("it was a buffer") };
//! let bytes = &buffer.as_slice()[..1025];
//! assert_eq!([bytes[0], bytes[511], bytes[512], bytes[1023], bytes[1024]], [0, 0, 7, 7, 0]);
//! # std::io::Result::Ok(())
//! ```

#![forbid(unsafe_code)]

mod direct;
mod error;
mod ioend;
mod mapping;
mod request;

pub use direct::DirectIo;
pub use error::{Error, MappingFault};
pub use ioend::{Ioend, IoendKind};
pub use mapping::{Extents, How, Kind, Mapper, Mapping, Purpose};
pub use request::{Direction, Finished, Flags, Request};
