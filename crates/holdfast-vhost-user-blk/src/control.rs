//! What a front end says on its socket: the memory, the queues, the features. None of it is on the way
//! of a request.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use holdfast_iov::{GuestMemory, GuestRegion, Place, Region};
use holdfast_units::{to_u64, to_usize};
use holdfast_virtqueue::{Inflight, QUEUE_SIZE_MAX, Rings, Virtqueue};
use rustix::fs::{MemfdFlags, SealFlags};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use crate::config::{self, Config, has};
use crate::counters::ClientCounters;
use crate::dirty::DirtyLog;
use crate::queue::{Command, Mailbox, Reactor, Setup, Tuning};
use crate::shared::{check_call, check_event, check_size, map, region};
use crate::target::{Description, Target};

/// The most regions of memory. The kernel's vhost has 509.
const REGIONS_MAX: usize = 509;

/// The most bytes of a dirty log: a bit for each page that can be addressed with 52 bits.
const LOG_MAX: u64 = 1 << 37;

/// What a front end has said of a queue.
#[derive(Debug, Default)]
struct Vring {
    size: u16,
    base: u16,
    addresses: Option<Addresses>,
    /// The front end has given a kick, or said that there is none.
    kicked: bool,
    kick: Option<File>,
    call: Option<File>,
    error: Option<File>,
    enabled: bool,
    running: Option<Running>,
}

#[derive(Clone, Copy, Debug)]
struct Addresses {
    descriptors: u64,
    available: u64,
    used: u64,
    log_used: Option<u64>,
}

/// The thread of a queue.
#[derive(Debug)]
struct Running {
    mailbox: Arc<Mailbox>,
    thread: JoinHandle<io::Result<u16>>,
}

/// The memory of the in-flight logs of all queues.
#[derive(Debug)]
struct InflightArea {
    region: Arc<Region>,
    queue_size: u16,
}

/// The disk as one front end sees it.
pub(crate) struct Control<T: Target> {
    target: Arc<T>,
    disk: Description,
    tuning: Tuning,
    counters: Arc<ClientCounters>,
    offered: u64,
    features: u64,
    config: Config,
    memory: Arc<GuestMemory>,
    inflight: Option<InflightArea>,
    log: Option<Arc<DirtyLog>>,
    vrings: Vec<Vring>,
}

/// Returns the error for what a front end may not ask.
pub(crate) fn refuse(why: impl Into<String>) -> Error {
    let why = why.into();
    tracing::warn!("a front end was refused: {why}");
    Error::ReqHandlerError(io::Error::new(io::ErrorKind::InvalidInput, why))
}

pub(crate) fn failed(error: io::Error) -> Error {
    tracing::error!("a queue cannot be served: {error}");
    Error::ReqHandlerError(error)
}

impl<T: Target> Control<T> {
    /// Begins with a front end that has said nothing yet. `disk` describes the target.
    pub(crate) fn new(
        target: Arc<T>,
        disk: Description,
        tuning: Tuning,
        counters: Arc<ClientCounters>,
        queues: u16,
    ) -> Self {
        Self {
            offered: config::features(&disk),
            features: 0,
            config: Config::new(&disk, queues),
            memory: Arc::default(),
            inflight: None,
            log: None,
            vrings: (0..queues).map(|_| Vring::default()).collect(),
            target,
            disk,
            tuning,
            counters,
        }
    }

    /// Ends all queues: what was taken is finished.
    pub(crate) fn stop_all(&mut self) {
        for index in 0..self.vrings.len() {
            self.stop(index);
        }
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let count = self.vrings.len();
        self.vrings
            .get_mut(to_usize(u64::from(index)))
            .ok_or_else(|| refuse(format!("queue {index} of {count}")))
    }

    fn write_through(&self) -> bool {
        // Virtio 1.3, 5.2.6.2: a driver that cannot flush needs durable writes.
        let chosen = has(self.features, VIRTIO_BLK_F_CONFIG_WCE) && !self.config.writeback();
        !has(self.features, VIRTIO_BLK_F_FLUSH) || chosen
    }

    /// Returns the log to be kept, if the front end wants one now.
    fn active_log(&self) -> Option<Arc<DirtyLog>> {
        self.log.clone().filter(|_| has(self.features, config::LOG_ALL))
    }

    fn rings(&self, vring: &Vring) -> Result<Rings> {
        let addresses = vring.addresses.ok_or_else(|| refuse("a queue without addresses"))?;
        let size = Rings::check_size(u32::from(vring.size)).map_err(|e| refuse(e.to_string()))?;
        let place = |address, len| {
            self.memory.user_place(address, len).map_err(|error| refuse(error.to_string()))
        };
        let descriptors = place(addresses.descriptors, Rings::descriptors_len(size))?;
        let available = place(addresses.available, Rings::available_len(size))?;
        let used = place(addresses.used, Rings::used_len(size))?;
        Rings::new(u32::from(size), descriptors, available, used)
            .map_err(|error| refuse(error.to_string()))
    }

    /// Starts a queue of which everything has been said.
    fn start_if_ready(&mut self, index: usize) -> Result<()> {
        let vring = &self.vrings[index];
        let ready = vring.kicked && vring.enabled && vring.addresses.is_some();
        if !ready || vring.running.is_some() {
            return Ok(());
        }
        let rings = self.rings(vring)?;
        let inflight = self.inflight_of(index, vring.size)?;
        let event_index = has(self.features, VIRTIO_RING_F_EVENT_IDX);
        let virtqueue = Virtqueue::new(rings, event_index, vring.base, inflight);
        let own = |file: &Option<File>| -> Result<Option<OwnedFd>> {
            file.as_ref()
                .map(File::try_clone)
                .transpose()
                .map(|f| f.map(Into::into))
                .map_err(failed)
        };
        let setup = Setup {
            virtqueue,
            memory: Arc::clone(&self.memory),
            kick: own(&vring.kick)?,
            call: own(&vring.call)?,
            error: own(&vring.error)?,
            log: self.active_log(),
            log_used: vring.addresses.and_then(|addresses| addresses.log_used),
            write_through: self.write_through(),
            disk: self.disk,
        };
        let running = self.spawn(index, setup).map_err(failed)?;
        self.vrings[index].running = Some(running);
        Ok(())
    }

    fn spawn(&self, index: usize, setup: Setup) -> io::Result<Running> {
        let mailbox = Mailbox::new()?;
        let (target, tuning) = (Arc::clone(&self.target), self.tuning);
        let counters = Arc::clone(self.counters.queue(index));
        let theirs = Arc::clone(&mailbox);
        let (started, wait) = std::sync::mpsc::sync_channel(1);
        let thread =
            std::thread::Builder::new().name(format!("vhost queue {index}")).spawn(move || {
                match Reactor::new(&*target, &tuning, setup, counters, theirs) {
                    Ok(reactor) => {
                        // The other thread waits for this.
                        let _waiting = started.send(Ok(()));
                        reactor.run().inspect_err(|error| {
                            tracing::error!("queue {index} cannot go on: {error}");
                        })
                    }
                    Err(error) => {
                        let _waiting = started.send(Err(error));
                        Ok(0)
                    }
                }
            })?;
        match wait.recv() {
            Ok(Ok(())) => Ok(Running { mailbox, thread }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the thread of a queue ended at once")),
        }
    }

    /// Ends a queue, and remembers which request would be next.
    fn stop(&mut self, index: usize) {
        let Some(Running { mailbox, thread }) = self.vrings[index].running.take() else { return };
        mailbox.waker.stop();
        match thread.join() {
            Ok(Ok(base)) => self.vrings[index].base = base,
            Ok(Err(_)) => {}
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn inflight_of(&self, index: usize, size: u16) -> Result<Option<Inflight>> {
        let Some(area) = &self.inflight else { return Ok(None) };
        let len = Inflight::len_for(area.queue_size);
        let place = Place::new(&area.region, index * len, len)
            .map_err(|error| refuse(format!("the in-flight log: {error}")))?;
        Inflight::new(place, size).map(Some).map_err(|error| refuse(error.to_string()))
    }

    /// Makes the guest's memory another, also for queues that run.
    fn set_memory(&mut self, regions: Vec<GuestRegion>) -> Result<()> {
        let memory = GuestMemory::new(regions).map_err(|error| refuse(error.to_string()))?;
        self.memory = Arc::new(memory);
        for index in 0..self.vrings.len() {
            let Some(running) = &self.vrings[index].running else { continue };
            match self.rings(&self.vrings[index]) {
                Ok(rings) => {
                    running.mailbox.carry_out(Command::Memory(Arc::clone(&self.memory), rings));
                }
                Err(error) => {
                    // Its rings are gone: what was taken is finished in the memory that it has.
                    self.stop(index);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Has all running queues carry a command out.
    fn tell_all(&self, command: impl Fn() -> Command) {
        for running in self.vrings.iter().filter_map(|vring| vring.running.as_ref()) {
            running.mailbox.carry_out(command());
        }
    }
}

impl<T: Target> VhostUserBackendReqHandlerMut for Control<T> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        // The protocol has given it up, and recommends to disable the queues at most.
        self.stop_all();
        for vring in &mut self.vrings {
            (vring.enabled, vring.kicked) = (false, false);
        }
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop_all();
        self.features = 0;
        self.config = Config::new(&self.disk, self.config.queues());
        for vring in &mut self.vrings {
            *vring = Vring::default();
        }
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered != 0 {
            return Err(refuse(format!("features {features:#x} of {:#x}", self.offered)));
        }
        self.features = features;
        if has(features, config::LOG_ALL) {
            tracing::info!("a guest is being migrated: what is written to its memory is logged");
        }
        self.tell_all(|| Command::Log(self.active_log()));
        self.tell_all(|| Command::WriteThrough(self.write_through()));
        if !has(features, config::PROTOCOL_FEATURES) {
            for index in 0..self.vrings.len() {
                self.vrings[index].enabled = true;
                self.start_if_ready(index)?;
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        if table.len() != files.len() {
            return Err(refuse(format!("{} files for {} regions", files.len(), table.len())));
        }
        check_size(table.iter().map(|entry| entry.memory_size))?;
        let regions = table.iter().zip(&files).map(|(entry, file)| region(entry, file));
        self.set_memory(regions.collect::<Result<_>>()?)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = Rings::check_size(num).map_err(|error| refuse(error.to_string()))?;
        let vring = self.vring(index)?;
        if vring.running.is_some() && vring.size != size {
            return Err(refuse(format!("queue {index} runs and cannot have another size")));
        }
        vring.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let log_used = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        let addresses = Addresses { descriptors: descriptor, available, used, log_used };
        self.vring(index)?.addresses = Some(addresses);
        let at = to_usize(u64::from(index));
        // Said of a running queue, this starts or ends the logging of its used ring.
        if self.vrings[at].running.is_some() {
            self.stop(at);
        }
        self.start_if_ready(at)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| refuse(format!("a base of {base:#x}")))?;
        let vring = self.vring(index)?;
        if vring.running.is_some() {
            return Err(refuse(format!("queue {index} runs and cannot have another base")));
        }
        vring.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.vring(index)?;
        let at = to_usize(u64::from(index));
        self.stop(at);
        let vring = &mut self.vrings[at];
        // It begins again with a new kick.
        (vring.kicked, vring.kick, vring.call) = (false, None, None);
        Ok(VhostUserVringState::new(index, u32::from(vring.base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let at = usize::from(index);
        self.vring(u32::from(index))?;
        check_event(file.as_ref())?;
        // A queue has its kick from its start on.
        self.stop(at);
        let vring = &mut self.vrings[at];
        (vring.kicked, vring.kick) = (true, file);
        self.start_if_ready(at)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        check_call(file.as_ref())?;
        let call = file.as_ref().map(File::try_clone).transpose().map_err(failed)?;
        let vring = self.vring(u32::from(index))?;
        vring.call = file;
        if let Some(running) = &vring.running {
            running.mailbox.carry_out(Command::Call(call.map(Into::into)));
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        check_call(file.as_ref())?;
        let error = file.as_ref().map(File::try_clone).transpose().map_err(failed)?;
        let vring = self.vring(u32::from(index))?;
        vring.error = file;
        if let Some(running) = &vring.running {
            running.mailbox.carry_out(Command::Error(error.map(Into::into)));
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(to_u64(self.vrings.len()))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let vring = self.vring(index)?;
        vring.enabled = enable;
        if let Some(running) = &vring.running {
            running.mailbox.carry_out(Command::Enable(enable));
            return Ok(());
        }
        self.start_if_ready(to_usize(u64::from(index)))
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        Ok(self.config.read(to_usize(u64::from(offset)), to_usize(u64::from(size))))
    }

    fn set_config(
        &mut self,
        offset: u32,
        bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        if !self.config.write(to_usize(u64::from(offset)), bytes) {
            return Err(refuse(format!("{} bytes of configuration at {offset}", bytes.len())));
        }
        self.tell_all(|| Command::WriteThrough(self.write_through()));
        Ok(())
    }

    fn set_gpu_socket(&mut self, _backend: GpuBackend) -> Result<()> {
        Err(refuse("a disk has no display"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(refuse("a disk shares no objects"))
    }

    fn get_inflight_fd(
        &mut self,
        inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        let VhostUserInflight { num_queues, queue_size, .. } = *inflight;
        if queue_size == 0 || queue_size > QUEUE_SIZE_MAX || num_queues == 0 {
            return Err(refuse(format!("an in-flight log of {num_queues} x {queue_size}")));
        }
        let bytes = to_u64(Inflight::len_for(queue_size) * usize::from(num_queues));
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let made = rustix::fs::memfd_create("holdfast-inflight", flags).and_then(|memory| {
            rustix::fs::ftruncate(&memory, bytes)?;
            rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW)?;
            Ok(memory)
        });
        let memory = made.map_err(|error| failed(error.into()))?;
        Ok((VhostUserInflight::new(bytes, 0, num_queues, queue_size), memory.into()))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let VhostUserInflight { mmap_size, mmap_offset, num_queues, queue_size } = *inflight;
        let needed = to_u64(Inflight::len_for(queue_size) * usize::from(num_queues));
        if queue_size == 0 || queue_size > QUEUE_SIZE_MAX || mmap_size < needed || num_queues == 0 {
            return Err(refuse(format!(
                "an in-flight log of {mmap_size} bytes for {num_queues} queues of {queue_size}"
            )));
        }
        let region = map(&file, mmap_offset, needed)?;
        self.inflight = Some(InflightArea { region, queue_size });
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(to_u64(REGIONS_MAX))
    }

    fn add_mem_region(
        &mut self,
        added: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        if self.memory.regions().len() == REGIONS_MAX {
            return Err(refuse(format!("more than {REGIONS_MAX} regions of memory")));
        }
        let mut regions = self.memory.regions().to_vec();
        let lens = regions.iter().map(|region| to_u64(region.region.len()));
        check_size(lens.chain([added.memory_size]))?;
        regions.push(region(added, &file)?);
        self.set_memory(regions)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, removed: &VhostUserSingleMemoryRegion) -> Result<()> {
        let mut regions = self.memory.regions().to_vec();
        let before = regions.len();
        // The protocol tells regions by these three.
        regions.retain(|region| {
            region.guest_address != removed.guest_phys_addr
                || region.user_address != removed.user_addr
                || to_u64(region.region.len()) != removed.memory_size
        });
        if regions.len() == before {
            let address = removed.guest_phys_addr;
            return Err(refuse(format!("there is no region at {address:#x} to be removed")));
        }
        self.set_memory(regions)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(refuse("there is no state beside the queues"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(refuse("there is no state beside the queues"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(refuse("a disk shares no memory of its own"))
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        if log.mmap_size > LOG_MAX {
            return Err(refuse(format!("a dirty log of {:#x} bytes", log.mmap_size)));
        }
        let region = map(&file, log.mmap_offset, log.mmap_size)?;
        let bits = Place::new(&region, 0, region.len()).map_err(|e| refuse(e.to_string()))?;
        self.log = Some(Arc::new(DirtyLog::new(bits)));
        self.tell_all(|| Command::Log(self.active_log()));
        Ok(())
    }
}
