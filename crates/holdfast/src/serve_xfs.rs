//! `holdfast serve --xfs`

use std::io;
use std::sync::{Arc, mpsc};

use anyhow::{Context, bail};
use holdfast_bio::ReadPolicy;
use holdfast_device::Access;
use holdfast_ring::{SharedRing, Waker};
use holdfast_socket::Address;
use holdfast_target::{FileDisk, FileQueue};
use holdfast_vhost_user_blk::{Description, Server, Target};

use crate::Outcome;
use crate::cli::{FileOfXfs, Serve};
use crate::serve::{bind, start_disks};
use crate::signals;
use crate::xfs::{Image, Opened};

/// A file as the queues of virtual machines use it.
struct Disk {
    opened: Arc<Opened>,
    file: FileDisk,
    read_policy: ReadPolicy,
}

impl Target for Disk {
    type Queue = FileQueue<Image>;

    fn describe(&self) -> Description {
        let (capacity, block) = (self.file.capacity(), self.file.block());
        Description { logical_block: block, ..Description::new(capacity, block, "holdfast-xfs") }
    }

    fn queue(&self, ring: &SharedRing, waker: &Arc<Waker>) -> io::Result<Self::Queue> {
        let waker = Arc::clone(waker);
        let queue = self.opened.queue_on(ring, move || waker.wake()).map_err(io::Error::other)?;
        FileQueue::new(&self.file, queue, self.read_policy)
    }
}

pub(crate) fn run(arguments: &Serve, of: &FileOfXfs) -> anyhow::Result<Outcome> {
    let FileOfXfs { image, path } = of;
    if arguments.read_policy == ReadPolicy::Never {
        bail!("--read-policy never is for measuring volumes, and not for a file system");
    }
    // First: whoever reads that we listen may stop us at once.
    let (over, wait) = mpsc::channel();
    signals::on_stop(move || {
        tracing::info!("stopping: what is in flight is finished (once more ends at once)");
        // The server may be stopping already.
        let _stopping = over.send(());
    })?;
    let sockets = arguments.vhost_user.iter().map(|path| bind(&Address::Unix(path.clone())));
    let sockets = sockets.collect::<anyhow::Result<Vec<_>>>()?;
    let opened = Arc::new(Opened::open(image, Access::ReadWrite)?);
    let theirs = Arc::clone(&opened);
    let file = FileDisk::open(move || theirs.queue().map_err(io::Error::other), path.as_bytes())
        .with_context(|| format!("cannot serve {path} of {}", image.display()))?;
    let disk = Disk { opened, file, read_policy: arguments.read_policy };
    let disk = Arc::new(disk);
    let served = start_disks(arguments, &disk, sockets).map(|disks| {
        let (capacity, block) = (disk.file.capacity(), disk.file.block());
        tracing::info!(
            "serving {path} of {}: {capacity} bytes in blocks of {block}, at {}",
            image.display(),
            arguments.vhost_user[0].display()
        );
        // Only an error if the sender is gone, and it is not.
        let _never = wait.recv();
        disks.into_iter().for_each(Server::stop);
    });
    let unmounted = disk.file.close().with_context(|| {
        format!("{} could not be unmounted: run xfs_repair on it", image.display())
    });
    let closed = disk.opened.close();
    served.and(unmounted).and(closed)?;
    tracing::info!("{} is unmounted", image.display());
    Ok(Outcome::Fine)
}
