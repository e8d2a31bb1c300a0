//! Reads and writes outside of any ring, which block: for the few bytes that are stored about a
//! device, and not on it.

use holdfast_bio::Error;
use holdfast_iov::{BUFFER_MAX, Buffer, Pool};
use holdfast_units::to_u64;
use rustix::io::Errno;

use crate::open::Backing;

impl Backing {
    /// Reads whole blocks, at most 1 MiB. What lies behind the end is no data, and an error.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<(), Error> {
        let mut buffer = buffer(target.len())?;
        let bytes = &mut buffer.as_mut_slice()[..target.len()];
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + to_u64(done);
            match rustix::io::pread(self.file(), &mut bytes[done..], at) {
                Ok(0) => return Err(Error::IO),
                Ok(moved) => done += moved,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::from_errno(errno.raw_os_error())),
            }
        }
        target.copy_from_slice(bytes);
        Ok(())
    }

    /// Writes whole blocks, at most 1 MiB.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn write_at(&self, offset: u64, source: &[u8]) -> Result<(), Error> {
        let mut buffer = buffer(source.len())?;
        buffer.as_mut_slice()[..source.len()].copy_from_slice(source);
        let mut done = 0;
        while done < source.len() {
            let bytes = &buffer.as_slice()[done..source.len()];
            match rustix::io::pwrite(self.file(), bytes, offset + to_u64(done)) {
                Ok(0) => return Err(Error::IO),
                Ok(moved) => done += moved,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::from_errno(errno.raw_os_error())),
            }
        }
        Ok(())
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says; what was written before may then be lost.
    pub fn sync(&self) -> Result<(), Error> {
        rustix::fs::fdatasync(self.file()).map_err(|errno| Error::from_errno(errno.raw_os_error()))
    }
}

/// Returns memory that is aligned for direct I/O.
fn buffer(len: usize) -> Result<Buffer, Error> {
    assert!(len <= BUFFER_MAX, "{len} bytes are more than is moved at once");
    let pool = Pool::new(len).map_err(|error| Error::from(&error))?;
    Ok(pool.take_whole(len).expect("a new pool has a buffer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_behind_the_end_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let backing = Backing::create(&dir.path().join("disk"), 8192).unwrap();
        let (source, mut target) = ([7; 4096], [0; 4096]);
        backing.write_at(4096, &source).unwrap();
        backing.sync().unwrap();
        backing.read_at(4096, &mut target).unwrap();
        assert_eq!(target, source);
        assert_eq!(backing.read_at(8192, &mut target), Err(Error::IO));
    }
}
