//! Requests of the kernel, and the answers.

use std::ffi::OsStr;
use std::io;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use holdfast_units::to_usize;
use holdfast_xfs::{Ino, Inode, Kind, XfsError};
use rustix::fs::OFlags;

use crate::attributes::{attributes, kind_of_entry, placeholder, timestamp, to_ino, to_number};
use crate::errno::{report, report_io};
use crate::files::{Files, FoundEntry};
use crate::statistics::fullness;
use crate::writing::Allocation;

/// How long the kernel may believe what it was told: of what nobody changes, or only by the kernel.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How many requests of readahead and asynchronous direct I/O the kernel may have under way.
const BACKGROUND_MAX: u16 = 64;
/// The longest name, in bytes.
const NAME_MAX: u32 = 255;
/// What the kernel is asked for, where it has it.
const WANTED: [InitFlags; 7] = [
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_READDIRPLUS_AUTO,
];

impl Requests {
    fn ino(&self, number: INodeNo) -> Ino {
        to_ino(number, self.root)
    }

    /// Returns what a lookup answers of an inode.
    fn node(&self, inode: &Inode) -> (FileAttr, Generation) {
        let stat = inode.stat();
        let ino = to_number(stat.ino, self.root);
        (FileAttr { ino, ..attributes(stat) }, Generation(u64::from(stat.generation)))
    }

    /// Returns how long the kernel may believe what it is told of an inode. Names never change, and a
    /// file changes by more than what the kernel knows of: how much space it has.
    fn valid(&self, inode: &Inode) -> Duration {
        let changes = self.writers.is_some() && inode.kind() == Kind::Regular;
        if changes { Duration::ZERO } else { FOREVER }
    }
}

/// Answers with entries of a directory from a position on, as many as there is room for. `add` returns the
/// position behind an entry, or `None` when there was no room for it.
fn fill<E>(
    offset: u64,
    read: impl Fn(u64) -> Result<Vec<E>, XfsError>,
    mut add: impl FnMut(E) -> Option<u64>,
) -> Result<(), XfsError> {
    let mut position = offset;
    loop {
        let entries = match read(position) {
            Ok(entries) => entries,
            // What was found before is answered first.
            Err(_) if position > offset => return Ok(()),
            Err(error) => return Err(error),
        };
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries {
            match add(entry) {
                Some(next) => position = next,
                None => return Ok(()),
            }
        }
    }
}

/// Answers with an attribute's value, or its length when that is all that was asked for.
fn answer(reply: ReplyXattr, value: &[u8], room: u32) {
    match u32::try_from(value.len()) {
        Ok(len) if room == 0 => reply.size(len),
        Ok(len) if len <= room => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

/// Answers the requests of the kernel.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(crate) files: Arc<Files>,
    /// All files are read and written around the page cache, however they were opened.
    pub(crate) direct_io: bool,
}

impl Deref for Requests {
    type Target = Files;

    fn deref(&self) -> &Files {
        &self.files
    }
}

impl Requests {
    fn change(
        &self,
        ino: Ino,
        size: Option<u64>,
        times: [Option<TimeOrNow>; 2],
    ) -> Result<FileAttr, Errno> {
        if let Some(size) = size {
            self.truncate(ino, size).map_err(|error| report_io(&error))?;
        }
        let [accessed, modified] = times.map(|time| {
            time.map(|time| match time {
                TimeOrNow::SpecificTime(time) => timestamp(time),
                TimeOrNow::Now => timestamp(SystemTime::now()),
            })
        });
        if accessed.is_some() || modified.is_some() {
            self.set_times(ino, accessed, modified).map_err(|error| report(&error))?;
        }
        let inode = self.inode(ino).map_err(|error| report(&error))?;
        Ok(attributes(inode.stat()))
    }
}

/// Answers a request that asks for nothing but to be done.
fn done(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

/// Returns whether a file was opened with a flag.
fn has(flags: OpenFlags, flag: OFlags) -> bool {
    flags.0 & flag.bits().cast_signed() != 0
}

impl Filesystem for Requests {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in WANTED {
            if config.add_capabilities(wanted).is_err() {
                tracing::debug!("this kernel does not know {wanted:?}");
            }
        }
        if config.set_max_background(BACKGROUND_MAX).is_err() {
            tracing::debug!("the kernel keeps its bound of requests in the background");
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name.len() > to_usize(u64::from(NAME_MAX)) {
            return reply.error(Errno::ENAMETOOLONG);
        }
        match self.find(self.ino(parent), name.as_bytes()) {
            Ok(Some(inode)) => {
                let (attributes, generation) = self.node(&inode);
                reply.entry(&self.valid(&inode), &attributes, generation);
            }
            Ok(None) => {
                // With the number 0 the kernel remembers that there is no such name.
                let nothing = placeholder(Ino(0), holdfast_xfs::FileType::Unknown);
                reply.entry(&FOREVER, &nothing, Generation(0));
            }
            Err(error) => reply.error(report(&error)),
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.inode(self.ino(ino)) {
            Ok(inode) => reply.attr(&self.valid(&inode), &attributes(inode.stat())),
            Err(error) => reply.error(report(&error)),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let ino = self.ino(ino);
        let mut xfs = self.xfs();
        match xfs.inode(ino).and_then(|inode| xfs.read_link(&inode)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(report(&error)),
        }
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let only_reads = flags.acc_mode() == OpenAccMode::O_RDONLY;
        if !only_reads && self.writers.is_none() {
            return reply.error(Errno::EROFS);
        }
        let is_direct = self.direct_io || has(flags, OFlags::DIRECT);
        let mut how =
            if is_direct { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::FOPEN_KEEP_CACHE };
        if only_reads {
            // Nothing is left to be stored when it is closed.
            how |= FopenFlags::FOPEN_NOFLUSH;
        }
        match self.files.open(self.ino(ino)) {
            Ok(handle) => reply.opened(handle, how),
            Err(error) => reply.error(report(&error)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.opened(handle) else { return reply.error(Errno::EBADF) };
        let known = file.known();
        self.files.read(&known, offset, to_usize(u64::from(size)), |found| match found {
            Ok(bytes) => reply.data(bytes),
            Err(error) => reply.error(report(&error)),
        });
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        done(self.close(handle).map_err(|error| report(&error)), reply);
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // What was written was answered only when it was with the device.
        reply.ok();
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let Some(file) = self.opened(handle) else { return reply.error(Errno::EBADF) };
        let Ok(from) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let known = file.known();
        let (extents, size) = (&known.extents, known.inode.size());
        let found = match whence {
            SEEK_DATA => extents.data_after(from, size, &self.geometry),
            SEEK_HOLE => extents.hole_after(from, size, &self.geometry),
            _ => return reply.error(Errno::EINVAL),
        };
        match found.and_then(|found| i64::try_from(found).ok()) {
            Some(found) => reply.offset(found),
            None => reply.error(Errno::ENXIO),
        }
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let how = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        reply.opened(FileHandle(0), how);
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let dir = self.ino(ino);
        let found = fill(
            offset,
            |position| self.entries(dir, position),
            |entry| {
                let (number, kind) = (INodeNo(entry.ino.0), kind_of_entry(entry.file_type));
                let is_full = reply.add(number, entry.next, kind, OsStr::from_bytes(&entry.name));
                (!is_full).then_some(entry.next)
            },
        );
        match found {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(report(&error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let dir = self.ino(ino);
        let found = fill(
            offset,
            |position| self.entries_with_inodes(dir, position),
            |FoundEntry { entry, inode }| {
                let (number, name) = (INodeNo(entry.ino.0), OsStr::from_bytes(&entry.name));
                let (valid, attributes, generation) = match inode {
                    Some(inode) => {
                        let generation = Generation(u64::from(inode.stat().generation));
                        (self.valid(&inode), attributes(inode.stat()), generation)
                    }
                    // The kernel asks again, and is told why.
                    None => {
                        let known = placeholder(entry.ino, entry.file_type);
                        (Duration::ZERO, known, Generation(0))
                    }
                };
                let is_full = reply.add(number, entry.next, name, &valid, &attributes, generation);
                (!is_full).then_some(entry.next)
            },
        );
        match found {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(report(&error)),
        }
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let mut xfs = self.xfs();
        match xfs.statistics() {
            Ok(statistics) => {
                let superblock = xfs.superblock();
                let log_blocks = superblock.log.map_or(0, |(_, blocks)| u64::from(blocks));
                let percent = superblock.inode_percent;
                let found = fullness(&self.geometry, log_blocks, percent, &statistics);
                let (free, block) = (found.free_blocks, found.block_bytes);
                let (files, free_files) = (found.files, found.free_files);
                reply.statfs(found.blocks, free, free, files, free_files, block, NAME_MAX, block);
            }
            Err(error) => reply.error(report(&error)),
        }
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let ino = self.ino(ino);
        let mut xfs = self.xfs();
        match xfs.inode(ino).and_then(|inode| xfs.attribute(&inode, name.as_bytes())) {
            Ok(Some(value)) => answer(reply, &value, size),
            Ok(None) => reply.error(Errno::ENODATA),
            Err(error) => reply.error(report(&error)),
        }
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let ino = self.ino(ino);
        let mut xfs = self.xfs();
        match xfs.inode(ino).and_then(|inode| xfs.attributes(&inode)) {
            Ok(names) => {
                let is_root = request.uid() == 0;
                let shown = names.iter().filter(|name| is_root || !name.starts_with(b"trusted."));
                let list: Vec<u8> = shown.flat_map(|name| [name, &b"\0"[..]].concat()).collect();
                answer(reply, &list, size);
            }
            Err(error) => reply.error(report(&error)),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        done(self.sync().map_err(|error| report(&error)), reply);
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        done(self.sync().map_err(|error| report(&error)), reply);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _room: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _flags_changed: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes_owner = mode.is_some() || uid.is_some() || gid.is_some();
        if changes_owner || self.writers.is_none() {
            return reply.error(Errno::EROFS);
        }
        match self.change(self.ino(ino), size, [accessed, modified]) {
            Ok(attributes) => reply.attr(&Duration::ZERO, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(file) = self.opened(handle) else { return reply.error(Errno::EBADF) };
        let mut written = self.files.write(&file, offset, data).map_err(|error| report_io(&error));
        if written.is_ok() && has(flags, OFlags::DSYNC) {
            written = self.sync().map_err(|error| report(&error));
        }
        match (written, u32::try_from(data.len())) {
            (Ok(()), Ok(len)) => reply.written(len),
            (Err(error), _) => reply.error(error),
            (_, Err(_)) => reply.error(Errno::EINVAL),
        }
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(file) = self.opened(handle) else { return reply.error(Errno::EBADF) };
        let Some(what) = Allocation::new(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        if self.writers.is_none() {
            return reply.error(Errno::EROFS);
        }
        let allocated = self.allocate(&file, what, offset, length);
        done(allocated.map_err(|error| report_io(&error)), reply);
    }

    // What follows is not there yet. When it is mounted read-only the kernel refuses it itself, unless
    // root has remounted it.

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _device: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &std::path::Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _parent: INodeNo,
        _name: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _source: INodeNo,
        _source_handle: FileHandle,
        _source_offset: u64,
        _target: INodeNo,
        _target_handle: FileHandle,
        _target_offset: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel then reads and writes, and does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _request: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }
}
