//! What `holdfast serve` says first: what is served, and how to attach to it.

use std::io::Write;

use holdfast_socket::{Address, Listener};
use indicatif::BinaryBytes;

use crate::backing::OpenVolume;
use crate::cli::Serve;
use crate::metrics;

/// Says what is served and how to attach to it.
pub(crate) fn announce(
    open: &OpenVolume,
    listeners: &[Listener],
    shown: Option<&Listener>,
    arguments: &Serve,
) {
    let geometry = open.volume.geometry();
    let mode = if open.volume.is_read_only() { ", read-only" } else { "" };
    let mut text = format!(
        "serving {}: {} in sectors of {} bytes, guard {}{mode}\n",
        open.path().display(),
        BinaryBytes(geometry.capacity()),
        geometry.sector(),
        open.volume.protection().kind,
    );
    if let Some(listener) = shown {
        text += &match listener.address() {
            Address::Tcp(address) => format!("metrics at http://{address}{}\n", metrics::PATH),
            address @ Address::Unix(_) => format!("metrics at {address}, {}\n", metrics::PATH),
        };
    }
    for listener in listeners {
        let uri = holdfast_nbd::uri(listener.address());
        let client = match listener.address() {
            Address::Unix(path) => format!("nbd-client -unix {} /dev/nbd0", path.display()),
            Address::Tcp(address) => {
                format!("nbd-client {} {} /dev/nbd0", address.ip(), address.port())
            }
        };
        text += &format!(
            "\nlistening at {}; attach with\n  qemu-img info '{uri}'\n  nbdcopy disk.img '{uri}'\n  \
             qemu-system-x86_64 -drive 'file={uri},format=raw,if=virtio,discard=unmap'\n  {client}\n",
            listener.address()
        );
    }
    for path in &arguments.vhost_user {
        let (path, queues) = (path.display(), arguments.queues);
        text += &format!(
            "\nlistening at {path} for a virtual machine; attach with\n  qemu-system-x86_64 -m 1G \\\n    \
             -machine memory-backend=mem -object memory-backend-memfd,id=mem,size=1G,share=on \\\n    \
             -chardev socket,id=disk,path={path},reconnect=1 \\\n    \
             -device vhost-user-blk-pci,chardev=disk,num-queues={queues}\n  \
             (from QEMU 9.2 on reconnect-ms=1000 instead of reconnect=1)\n"
        );
    }
    // Whoever started the server may have closed its output, and wants it to run all the same.
    let _closed = writeln!(std::io::stdout(), "{text}");
}
