//! The mount itself, and the descriptor on which the kernel asks.
//!
//! Not by `fuser`, since that unmounts the directory once more at the end: if something else is mounted
//! there by then, or was before, that goes.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::options::Options;

const DEVICE: &str = "/dev/fuse";
/// The program that mounts and unmounts for those who are not root.
const HELPER: &str = "fusermount3";
/// The subtype: the type of a mount is `fuse.holdfast`.
const SUBTYPE: &str = "holdfast";

/// Mounts on a directory, and returns the descriptor on which the kernel asks.
pub(crate) fn connect(directory: &Path, options: &Options) -> io::Result<OwnedFd> {
    let opened = rustix::fs::openat(CWD, DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let device = match opened {
        Err(Errno::ACCESS | Errno::PERM) => return connect_by_helper(directory, options),
        opened => opened?,
    };
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},{}",
        device.as_raw_fd(),
        uid.as_raw(),
        gid.as_raw(),
        kernel_options(options)
    );
    let access = if options.write { MountFlags::empty() } else { MountFlags::RDONLY };
    let flags = access | MountFlags::NOATIME | MountFlags::NODEV | MountFlags::NOSUID;
    let source = CString::new(options.source.as_bytes())?;
    let data = CString::new(data)?;
    match rustix::mount::mount(source.as_c_str(), directory, "fuse", flags, data.as_c_str()) {
        Ok(()) => Ok(device),
        Err(Errno::PERM) => connect_by_helper(directory, options),
        Err(error) => Err(error.into()),
    }
}

/// Returns the options that the kernel knows for file systems of this kind.
fn kernel_options(options: &Options) -> String {
    let others = if options.allow_other { ",allow_other" } else { "" };
    format!("default_permissions,subtype={SUBTYPE}{others}")
}

/// Has fusermount3(1) mount, which sends the descriptor over the socket that is its standard input.
fn connect_by_helper(directory: &Path, options: &Options) -> io::Result<OwnedFd> {
    let (ours, its) = UnixStream::pair()?;
    let mut command = Command::new(HELPER);
    let access = if options.write { "rw" } else { "ro" };
    let list = format!("{access},noatime,nodev,nosuid,{},", kernel_options(options));
    let list = [list.as_bytes(), b"fsname=", &escaped(options.source.as_bytes())].concat();
    command.arg("-o").arg(OsString::from_vec(list)).arg("--").arg(directory);
    command.env("_FUSE_COMMFD", "0").stdin(OwnedFd::from(its));
    let mut helper = command.spawn()?;
    // It keeps the other end of the socket open as long as this does.
    drop(command);
    let received = receive(ours.as_fd());
    let status = helper.wait()?;
    match received {
        Ok(Some(device)) if status.success() => Ok(device),
        Err(error) => Err(error),
        // It has said why on the standard error.
        Ok(_) => Err(io::Error::other(format!("{HELPER} refused it ({status})"))),
    }
}

/// Receives a descriptor, or `None` when the other end was closed without one.
fn receive(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| {
        recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// Returns a value in which a comma does not end an option.
fn escaped(value: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(value.len());
    for &byte in value {
        if matches!(byte, b',' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

/// Unmounts a directory. When it is in use it is only taken out of the tree of directories, and the
/// mount ends with its last user; returns whether it was so.
///
/// # Errors
///
/// What umount(2) or fusermount3(1) said.
pub fn unmount(directory: &Path) -> io::Result<bool> {
    match rustix::mount::unmount(directory, UnmountFlags::empty()) {
        Ok(()) => Ok(false),
        Err(Errno::BUSY) => {
            rustix::mount::unmount(directory, UnmountFlags::DETACH)?;
            Ok(true)
        }
        Err(Errno::PERM) if unmount_by_helper(&["-u"], directory)? => Ok(false),
        Err(Errno::PERM) if unmount_by_helper(&["-u", "-z"], directory)? => Ok(true),
        Err(Errno::PERM) => Err(io::Error::other(format!("{HELPER} refused it"))),
        Err(error) => Err(error.into()),
    }
}

/// Has fusermount3(1) unmount, and returns whether it did.
fn unmount_by_helper(options: &[&str], directory: &Path) -> io::Result<bool> {
    let mut command = Command::new(HELPER);
    command.args(options).args([OsStr::new("-q"), OsStr::new("--")]).arg(directory);
    Ok(command.status()?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_does_not_become_options() {
        assert_eq!(escaped(b"/a,suid\\b"), b"/a\\,suid\\\\b");
    }

    #[test]
    fn who_may_use_it_is_said_to_the_kernel() {
        let all = Options { allow_other: true, ..Options::default() };
        let said = [Options::default(), all].map(|options| kernel_options(&options));
        assert_eq!(said.map(|said| said.contains("allow_other")), [false, true]);
    }

    #[test]
    fn a_helper_that_sends_nothing_is_noticed() {
        let (ours, its) = UnixStream::pair().unwrap();
        drop(its);
        assert!(receive(ours).unwrap().is_none());
    }
}
