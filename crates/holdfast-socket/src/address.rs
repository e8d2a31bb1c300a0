//! Addresses, and sockets that listen at them.

use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// An address to listen at: `unix:PATH` or `tcp:ADDRESS:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// An address of this machine, and no other.
    Tcp(SocketAddr),
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{found:?} is no address to listen at: use unix:PATH, tcp:127.0.0.1:10809 or tcp:[::1]:10809"
)]
pub struct ParseAddressError {
    found: String,
}

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || ParseAddressError { found: text.to_owned() };
        match text.split_once(':').ok_or_else(unknown)? {
            ("unix", path) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path))),
            ("tcp", address) => address.parse().map(Self::Tcp).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// A listening socket. One in the file system is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    socket: OwnedFd,
}

impl Listener {
    /// Listens at `address`. A socket that a dead server left behind is replaced.
    ///
    /// # Errors
    ///
    /// EADDRINUSE when a server answers there, or the path is something else than a socket.
    pub fn bind(address: Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => {
                // Clients that are told the path may be anywhere.
                let path = std::path::absolute(path)?;
                let is_socket =
                    fs::symlink_metadata(&path).is_ok_and(|meta| meta.file_type().is_socket());
                // Any other error may come from a server that is alive.
                let is_dead = || {
                    UnixStream::connect(&path)
                        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
                };
                if is_socket && is_dead() {
                    fs::remove_file(&path)?;
                }
                let socket = UnixListener::bind(&path)?.into();
                Ok(Self { address: Address::Unix(path), socket })
            }
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                // Port 0 means any: clients must be told which.
                let address = Address::Tcp(listener.local_addr()?);
                Ok(Self { address, socket: listener.into() })
            }
        }
    }

    /// Returns where this listens.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Returns another descriptor of the socket.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address
            && let Err(error) = fs::remove_file(path)
        {
            tracing::debug!("{} was not removed: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_written() {
        for text in ["unix:/run/a:b.sock", "tcp:127.0.0.1:10809", "tcp:[::1]:10809"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_names_no_address_is_refused() {
        for text in ["", "unix:", "tcp:10809", "tcp:localhost:1", "udp:127.0.0.1:1", "/run/x"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        // Dropping std's listener leaves the socket, as a killed server does.
        drop(UnixListener::bind(&path).unwrap());
        let live = Listener::bind(Address::Unix(path.clone())).unwrap();
        Listener::bind(Address::Unix(path.clone())).unwrap_err();
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_at_the_path_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, b"data").unwrap();
        Listener::bind(Address::Unix(path.clone())).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }
}
