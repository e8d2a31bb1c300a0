//! One connection to a server: what was agreed on, and the messages that start queues.

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use crate::config::BlkConfig;
use crate::memory::Shared;
use crate::queue::Link;
use crate::{ClientError, Memory};

/// The bit by which servers say that there are protocol features.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What a client wants of a server, and what it cannot do without.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes {
    pub(crate) features: u64,
    pub(crate) features_needed: u64,
    pub(crate) protocol: VhostUserProtocolFeatures,
    pub(crate) protocol_needed: VhostUserProtocolFeatures,
    pub(crate) queues: u16,
    pub(crate) call_last: bool,
}

/// A connection, on which features were agreed on.
pub(crate) struct Session {
    frontend: Frontend,
    stream: UnixStream,
    pub(crate) features: u64,
    pub(crate) protocol: VhostUserProtocolFeatures,
    pub(crate) config: BlkConfig,
    call_last: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// The in-flight log as the server gave it to us.
pub(crate) struct Log {
    description: VhostUserInflight,
    file: File,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Connects to a socket, again and again until `deadline`.
pub(crate) fn connect(path: &Path, deadline: Instant) -> Result<UnixStream, ClientError> {
    loop {
        match UnixStream::connect(path) {
            Err(_) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            connected => return connected.map_err(ClientError::system("connect to the server")),
        }
    }
}

impl Session {
    /// Agrees with the server on features, and reads the configuration of its device.
    pub(crate) fn agree(stream: UnixStream, wishes: &Wishes) -> Result<Self, ClientError> {
        let doing = "duplicate the connection";
        let other = stream.try_clone().map_err(ClientError::system(doing))?;
        let mut frontend = Frontend::from_stream(other, u64::from(wishes.queues));
        frontend.set_owner().map_err(ClientError::message("SET_OWNER"))?;
        let found = frontend.get_features().map_err(ClientError::message("GET_FEATURES"))?;
        let needed = wishes.features_needed | PROTOCOL_FEATURES;
        if found & needed != needed {
            return Err(ClientError::Features { what: "features", needed, found });
        }
        let features = found & wishes.features | PROTOCOL_FEATURES;
        let protocol = agree_protocol(&mut frontend, wishes)?;
        if protocol.contains(VhostUserProtocolFeatures::MQ) {
            let found = frontend.get_queue_num().map_err(ClientError::message("GET_QUEUE_NUM"))?;
            let needed = u64::from(wishes.queues);
            if found < needed {
                return Err(ClientError::TooFew { what: "queues", needed, found });
            }
        }
        frontend.set_features(features).map_err(ClientError::message("SET_FEATURES"))?;
        let config = read_config(&mut frontend)?;
        Ok(Self { frontend, stream, features, protocol, config, call_last: wishes.call_last })
    }

    /// Starts everything: the log, the memory, and each queue at its base.
    pub(crate) fn begin(
        &mut self,
        log: Option<&Log>,
        memory: &Memory,
        links: &[Arc<Link>],
        bases: &[u16],
    ) -> Result<(), ClientError> {
        if let Some(log) = log {
            self.set_in_flight_log(log)?;
        }
        self.share(memory)?;
        for (link, base) in links.iter().zip(bases) {
            self.start(link, memory, *base)?;
        }
        Ok(())
    }

    /// Returns whether the server has closed the connection.
    pub(crate) fn is_closed(&self) -> Result<bool, ClientError> {
        let mut polled = [PollFd::new(&self.stream, PollFlags::IN)];
        // Nothing comes unasked, so what can be read is the end.
        poll(&mut polled, Some(&Timespec::default())).map_err(ClientError::system("poll"))?;
        Ok(!polled[0].revents().is_empty())
    }

    /// Asks for an in-flight log, if the server has one.
    pub(crate) fn in_flight_log(
        &mut self,
        queues: u16,
        size: u16,
    ) -> Result<Option<Log>, ClientError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            return Ok(None);
        }
        let wanted = VhostUserInflight::new(0, 0, queues, size);
        let (mut description, file) = self
            .frontend
            .get_inflight_fd(&wanted)
            .map_err(ClientError::message("GET_INFLIGHT_FD"))?;
        (description.num_queues, description.queue_size) = (queues, size);
        Ok(Some(Log { description, file }))
    }

    /// Gives the server its in-flight log.
    fn set_in_flight_log(&mut self, log: &Log) -> Result<(), ClientError> {
        let fd = log.file.as_raw_fd();
        let set = self.frontend.set_inflight_fd(&log.description, fd);
        set.map_err(ClientError::message("SET_INFLIGHT_FD"))
    }

    /// Shares the memory with the server.
    fn share(&mut self, memory: &Memory) -> Result<(), ClientError> {
        let info = |shared: Shared<'_>| VhostUserMemoryRegionInfo {
            guest_phys_addr: shared.guest_address,
            memory_size: shared.len,
            userspace_addr: shared.user_address,
            mmap_offset: shared.offset,
            mmap_handle: shared.file.as_raw_fd(),
        };
        let regions: Vec<_> = memory.shared().map(info).collect();
        if !self.protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            let set = self.frontend.set_mem_table(&regions);
            return set.map(drop).map_err(ClientError::message("SET_MEM_TABLE"));
        }
        let found =
            self.frontend.get_max_mem_slots().map_err(ClientError::message("GET_MAX_MEM_SLOTS"))?;
        let needed = holdfast_units::to_u64(regions.len());
        if found < needed {
            return Err(ClientError::TooFew { what: "memory slots", needed, found });
        }
        for region in &regions {
            self.frontend.add_mem_region(region).map_err(ClientError::message("ADD_MEM_REG"))?;
        }
        Ok(())
    }

    /// Takes a region away from the server, or gives it back.
    pub(crate) fn set_region(
        &mut self,
        shared: &Shared<'_>,
        is_there: bool,
    ) -> Result<(), ClientError> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: shared.guest_address,
            memory_size: shared.len,
            userspace_addr: shared.user_address,
            mmap_offset: shared.offset,
            mmap_handle: shared.file.as_raw_fd(),
        };
        if is_there {
            let added = self.frontend.add_mem_region(&region);
            added.map(drop).map_err(ClientError::message("ADD_MEM_REG"))
        } else {
            self.frontend.remove_mem_region(&region).map_err(ClientError::message("REM_MEM_REG"))
        }
    }

    /// Starts a queue from the request with the running number `base` on.
    pub(crate) fn start(
        &mut self,
        link: &Link,
        memory: &Memory,
        base: u16,
    ) -> Result<(), ClientError> {
        let index = usize::from(link.index);
        let [descriptors, available, used] = link.addresses.map(|address| {
            memory.user_address(address).expect("the queue is in the memory that is shared")
        });
        let addresses = VringConfigData {
            queue_max_size: link.size,
            queue_size: link.size,
            flags: 0,
            desc_table_addr: descriptors,
            used_ring_addr: used,
            avail_ring_addr: available,
            log_addr: None,
        };
        let to = &mut self.frontend;
        to.set_vring_num(index, link.size).map_err(ClientError::message("SET_VRING_NUM"))?;
        to.set_vring_base(index, base).map_err(ClientError::message("SET_VRING_BASE"))?;
        to.set_vring_addr(index, &addresses).map_err(ClientError::message("SET_VRING_ADDR"))?;
        if !self.call_last {
            self.set_call(link)?;
        }
        let kick = self.frontend.set_vring_kick(index, link.kick.event());
        kick.map_err(ClientError::message("SET_VRING_KICK"))?;
        self.enable(link.index, true)?;
        if self.call_last { self.set_call(link) } else { Ok(()) }
    }

    fn set_call(&self, link: &Link) -> Result<(), ClientError> {
        let index = usize::from(link.index);
        let set = self.frontend.set_vring_call(index, link.call.event());
        set.map_err(ClientError::message("SET_VRING_CALL"))?;
        let set = self.frontend.set_vring_err(index, link.error.event());
        set.map_err(ClientError::message("SET_VRING_ERR"))
    }

    /// Lets the server take requests off a queue, or not.
    pub(crate) fn enable(&mut self, index: u16, enable: bool) -> Result<(), ClientError> {
        let set = self.frontend.set_vring_enable(usize::from(index), enable);
        set.map_err(ClientError::message("SET_VRING_ENABLE"))
    }

    /// Stops a queue. Returns the running number of the request that the server would take next.
    pub(crate) fn stop(&self, index: u16) -> Result<u32, ClientError> {
        let base = self.frontend.get_vring_base(usize::from(index));
        base.map_err(ClientError::message("GET_VRING_BASE"))
    }
}

fn agree_protocol(
    frontend: &mut Frontend,
    wishes: &Wishes,
) -> Result<VhostUserProtocolFeatures, ClientError> {
    let found = frontend.get_protocol_features();
    let found = found.map_err(ClientError::message("GET_PROTOCOL_FEATURES"))?;
    if !found.contains(wishes.protocol_needed) {
        return Err(ClientError::Features {
            what: "protocol features",
            needed: wishes.protocol_needed.bits(),
            found: found.bits(),
        });
    }
    let agreed = found & wishes.protocol;
    let set = frontend.set_protocol_features(agreed);
    set.map_err(ClientError::message("SET_PROTOCOL_FEATURES"))?;
    if agreed.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    Ok(agreed)
}

fn read_config(frontend: &mut Frontend) -> Result<BlkConfig, ClientError> {
    let len = u32::try_from(BlkConfig::LEN).expect("some bytes");
    let flags = VhostUserConfigFlags::empty();
    let read = frontend.get_config(0, len, flags, &[0; BlkConfig::LEN]);
    let (_, bytes) = read.map_err(ClientError::message("GET_CONFIG"))?;
    BlkConfig::parse(&bytes)
}
