//! The client: memory, queues, and the connection that may have to be made again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_virtqueue::Rings;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::config::BlkConfig;
use crate::queue::{BlkQueue, Link, Sizes};
use crate::session::{Log, Session, Wishes, connect};
use crate::{ClientError, Memory};

/// What a client has and wants.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many queues.
    pub queues: u16,
    /// Descriptors of each queue: a power of two.
    pub queue_size: u16,
    /// How many segments a request may have at most.
    pub segments_max: u16,
    /// Bytes for buffers, in all regions together. What the queues need comes on top.
    pub memory_bytes: u64,
    /// How many regions the memory has. See [`Memory`].
    pub regions: u16,
    /// Whether to ask for event indexes.
    pub event_index: bool,
    /// Whether to ask for indirect descriptors.
    pub indirect: bool,
    /// Whether to ask for an in-flight log.
    pub in_flight_log: bool,
    /// Whether to ask for memory slots, to share region by region.
    pub memory_slots: bool,
    /// Whether to ask for answers to all messages.
    pub answers: bool,
    /// Whether to give the server the eventfd for calls after a queue has begun, as QEMU does with the
    /// final one. A server that comes after another may then have something to call for before it can.
    pub call_last: bool,
    /// How long to try to connect.
    pub patience: Duration,
}

impl Default for Options {
    /// One queue of 128 descriptors, 64 MiB in one region, and everything that the server has.
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 128,
            segments_max: 128,
            memory_bytes: 64 << 20,
            regions: 1,
            event_index: true,
            indirect: true,
            in_flight_log: true,
            memory_slots: true,
            answers: true,
            call_last: false,
            patience: Duration::from_secs(10),
        }
    }
}

impl Options {
    fn wishes(&self) -> Wishes {
        let bits = |bits: &[(u32, bool)]| {
            bits.iter().filter(|(_, wanted)| *wanted).fold(0, |all, (bit, _)| all | 1_u64 << bit)
        };
        let features = bits(&[
            (VIRTIO_F_VERSION_1, true),
            (VIRTIO_RING_F_EVENT_IDX, self.event_index),
            (VIRTIO_RING_F_INDIRECT_DESC, self.indirect),
            (VIRTIO_BLK_F_SIZE_MAX, true),
            (VIRTIO_BLK_F_SEG_MAX, true),
            (VIRTIO_BLK_F_RO, true),
            (VIRTIO_BLK_F_BLK_SIZE, true),
            (VIRTIO_BLK_F_FLUSH, true),
            (VIRTIO_BLK_F_TOPOLOGY, true),
            (VIRTIO_BLK_F_CONFIG_WCE, true),
            (VIRTIO_BLK_F_MQ, true),
            (VIRTIO_BLK_F_DISCARD, true),
            (VIRTIO_BLK_F_WRITE_ZEROES, true),
        ]);
        let mut protocol = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG;
        protocol.set(VhostUserProtocolFeatures::REPLY_ACK, self.answers);
        protocol.set(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS, self.memory_slots);
        protocol.set(VhostUserProtocolFeatures::INFLIGHT_SHMFD, self.in_flight_log);
        Wishes {
            features,
            features_needed: bits(&[(VIRTIO_F_VERSION_1, true)]),
            protocol,
            protocol_needed: VhostUserProtocolFeatures::CONFIG,
            queues: self.queues,
            call_last: self.call_last,
        }
    }
}

/// A client of a vhost-user-blk server.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    patience: Duration,
    wishes: Wishes,
    memory: Arc<Memory>,
    session: Session,
    links: Vec<Arc<Link>>,
    /// Those that were not taken.
    queues: Vec<Option<BlkQueue>>,
    log: Option<Log>,
    /// Where stopped queues go on.
    bases: Option<Vec<u16>>,
}

impl Client {
    /// Connects to the server at a socket, makes memory and queues, and starts the queues.
    ///
    /// # Errors
    ///
    /// [`ClientError`], of any kind that is not about requests.
    pub fn connect(path: &Path, options: &Options) -> Result<Self, ClientError> {
        Rings::check_size(u32::from(options.queue_size))?;
        let mut wishes = options.wishes();
        let stream = connect(path, Instant::now() + options.patience)?;
        let session = Session::agree(stream, &wishes)?;
        // Another server must have what this one has.
        wishes.features = session.features;
        wishes.features_needed = session.features;
        wishes.protocol_needed |= session.protocol & VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        let sizes = Sizes::new(options.queue_size, options.segments_max);
        let regions = options.regions.max(1);
        let queues_each = u64::from(options.queues.div_ceil(regions));
        let bytes_each = options.memory_bytes.div_ceil(u64::from(regions));
        let memory = Memory::new(regions, bytes_each + queues_each * sizes.bytes())?;
        let memory = Arc::new(memory);
        let has = |bit: u32| session.features & 1 << bit != 0;
        let (event_index, indirect) =
            (has(VIRTIO_RING_F_EVENT_IDX), has(VIRTIO_RING_F_INDIRECT_DESC));
        let queues = (0..options.queues)
            .map(|index| BlkQueue::new(index, sizes, &memory, event_index, indirect))
            .collect::<Result<Vec<_>, _>>()?;
        let mut client = Self {
            path: path.into(),
            patience: options.patience,
            wishes,
            memory,
            session,
            links: queues.iter().map(|queue| Arc::clone(queue.link())).collect(),
            queues: queues.into_iter().map(Some).collect(),
            log: None,
            bases: None,
        };
        client.log = client.session.in_flight_log(options.queues, options.queue_size)?;
        let bases = vec![0; client.links.len()];
        client.session.begin(client.log.as_ref(), &client.memory, &client.links, &bases)?;
        Ok(client)
    }

    /// Returns what the device says of itself.
    pub const fn config(&self) -> &BlkConfig {
        &self.session.config
    }

    /// Returns the features that were agreed on, as bits.
    pub const fn features(&self) -> u64 {
        self.session.features
    }

    /// Returns whether a feature was agreed on, by the number of its bit.
    pub const fn has_feature(&self, bit: u32) -> bool {
        self.session.features & 1 << bit != 0
    }

    /// Returns the features of the vhost-user protocol that were agreed on, as bits.
    pub const fn protocol_features(&self) -> u64 {
        self.session.protocol.bits()
    }

    /// Returns whether the server has an in-flight log.
    pub const fn has_in_flight_log(&self) -> bool {
        self.log.is_some()
    }

    /// Returns the memory that is shared with the server.
    pub const fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Returns how many queues there are.
    pub fn queues(&self) -> u16 {
        u16::try_from(self.links.len()).expect("no more than were asked for")
    }

    /// Returns a queue by its number.
    ///
    /// # Panics
    ///
    /// When there is none, or it was taken.
    pub fn queue(&mut self, index: u16) -> &mut BlkQueue {
        let queue = self.queues[usize::from(index)].as_mut();
        queue.expect("the caller has not taken the queue")
    }

    /// Takes a queue away by its number, to be driven by another thread.
    ///
    /// # Panics
    ///
    /// When there is none, or it was taken.
    pub fn take_queue(&mut self, index: u16) -> BlkQueue {
        let queue = self.queues[usize::from(index)].take();
        queue.expect("the caller has not taken the queue")
    }

    /// Puts a queue back that was taken from this client.
    pub fn put_queue(&mut self, queue: BlkQueue) {
        let index = usize::from(queue.index());
        assert!(Arc::ptr_eq(queue.link(), &self.links[index]), "the queue is of this client");
        self.queues[index] = Some(queue);
    }

    /// Returns whether the server has closed the connection, as the kernel does for one that died.
    ///
    /// # Errors
    ///
    /// [`ClientError::System`].
    pub fn is_closed(&self) -> Result<bool, ClientError> {
        self.session.is_closed()
    }

    /// Connects again after the server has ended, and lets requests in flight go on. Each queue begins
    /// where its used ring ends, as with QEMU, and is kicked. With an in-flight log the queues may be
    /// in use by other threads all the time. Without one, the requests in flight are made available
    /// once more, so the queues must not be taken.
    ///
    /// # Errors
    ///
    /// [`ClientError`], of the last try of those that were made until the patience was over.
    pub fn reconnect(&mut self) -> Result<(), ClientError> {
        let deadline = Instant::now() + self.patience;
        self.bases = None;
        loop {
            match self.reconnect_once(deadline) {
                // A server that ends again while it begins. What it lacks it will lack again.
                Err(ClientError::Message { .. }) if Instant::now() < deadline => {}
                done => return done,
            }
        }
    }

    fn reconnect_once(&mut self, deadline: Instant) -> Result<(), ClientError> {
        let stream = connect(&self.path, deadline)?;
        self.session = Session::agree(stream, &self.wishes)?;
        if self.log.is_none() {
            for (queue, index) in self.queues.iter_mut().zip(0..) {
                let queue = queue.as_mut().ok_or(ClientError::Taken { queue: index })?;
                queue.driver().rewind()?;
            }
        }
        let bases: Vec<_> = self.links.iter().map(|link| link.used_index()).collect();
        self.session.begin(self.log.as_ref(), &self.memory, &self.links, &bases)?;
        self.links.iter().try_for_each(|link| link.kick.ring())
    }

    /// Stops all queues. The server ends all requests that it has taken before it answers. Returns the
    /// running number of the request that it would take next, for each queue.
    ///
    /// # Errors
    ///
    /// [`ClientError::Message`]; some queues may be stopped then.
    pub fn stop(&mut self) -> Result<Vec<u16>, ClientError> {
        let mut bases = Vec::with_capacity(self.links.len());
        for link in &self.links {
            let found = self.session.stop(link.index)?;
            let range = || ClientError::TooFew {
                what: "bits of a running number",
                needed: u64::from(found),
                found: u64::from(u16::MAX),
            };
            bases.push(u16::try_from(found).map_err(|_| range())?);
        }
        self.bases = Some(bases.clone());
        Ok(bases)
    }

    /// Starts all queues again, where they were stopped, and kicks them.
    ///
    /// # Errors
    ///
    /// [`ClientError::Message`]; some queues may be started then.
    pub fn resume(&mut self) -> Result<(), ClientError> {
        let Some(bases) = self.bases.take() else { return Ok(()) };
        for (link, base) in self.links.iter().zip(bases) {
            self.session.start(link, &self.memory, base)?;
        }
        self.links.iter().try_for_each(|link| link.kick.ring())
    }

    /// Lets the server take requests off a queue, or not. It takes none off one that is not enabled.
    ///
    /// # Errors
    ///
    /// [`ClientError::Message`].
    pub fn enable(&mut self, index: u16, enable: bool) -> Result<(), ClientError> {
        self.session.enable(index, enable)
    }

    /// Takes a region of the memory away from the server, or gives it back, where memory slots were
    /// agreed on.
    ///
    /// # Errors
    ///
    /// [`ClientError::Message`].
    ///
    /// # Panics
    ///
    /// When there is no such region.
    pub fn set_region(&mut self, region: usize, is_there: bool) -> Result<(), ClientError> {
        let shared = self.memory.shared().nth(region).expect("there is such a region");
        self.session.set_region(&shared, is_there)
    }
}
