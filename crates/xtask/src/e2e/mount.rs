//! XFS that the kernel made, mounted by us and by the kernel at the same time: every look at it is the same.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Outcome;
use super::scene::{Background, Scene};
use crate::packages;
use crate::run::command;

const START: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(10);

/// Makes an image, and fills it by the kernel.
const FILL: &str = r#"
truncate -s 600M image
mkfs.xfs -q image
mkdir kernel ours
mount -o loop image kernel
cd kernel
mkdir -p many deep/er/still empty
(cd many && seq -f 'an-entry-of-a-large-directory-%05g' 1 20000 | xargs touch)
head -c 48M /dev/urandom > big
head -c 100001 /dev/urandom > deep/er/still/odd
truncate -s 1T sparse
for at in 3m 7g 900g; do xfs_io -c "pwrite -q -S 7 $at 70000" sparse; done
xfs_io -f -c 'falloc 0 8m' -c 'pwrite -q -S 9 1m 64k' reserved
xfs_io -f -c 'pwrite -q 0 5000' plain
i=0; while [ $i -lt 400 ]; do echo "pwrite -q -S $((i % 250 + 1)) $((i * 12))k 4k"; i=$((i + 1)); done |
    xfs_io -f fragmented > /dev/null
cp --reflink=always big shared
ln big hard
ln -s big link
ln -s "$(head -c 1000 /dev/zero | tr '\0' x)" long-link
touch "$(head -c 255 /dev/zero | tr '\0' n)"
mknod node c 259 300
mkfifo pipe
setfattr -n user.small -v value big
setfattr -n user.large -v "$(head -c 40000 /dev/zero | tr '\0' y)" big
setfattr -n trusted.secret -v 1 big
i=0; while [ $i -lt 100 ]; do setfattr -n user.attribute-$i -v $i deep; i=$((i + 1)); done
setfacl -m u:1000:r,m::rw shared
setfacl -d -m u:1000:rx deep/er
chmod 6751 plain
touch -d '1910-01-02 03:04:05.123456789' before
touch -d '2400-01-02 03:04:05.987654321' after
cd ..
xfs_io -r -c bmap kernel/many > many.bmap
umount kernel
"#;

/// Prints all that is known of what is below a directory but for the contents.
const LIST: &str = r#"
cd "$0"
find . -printf '%p %i %y %m %n %U %G %s %b %k %A+ %T+ %C+ %l\n' | LC_ALL=C sort
find . \( -type c -o -type b \) -exec stat -c '%n %t %T' {} +
find . -print0 | LC_ALL=C sort -z | xargs -0 getfattr -h -d -m - -e hex
find deep shared plain -print0 | xargs -0 getfacl
stat -f -c '%b %f %a %c %d %s %S' .
"#;

/// Prints where data and holes are. Before anything is read: the kernel calls cached zeros data.
const HOLES: &str = r#"
cd "$0"
for file in sparse reserved fragmented big plain before; do xfs_io -r -c 'seek -a -r 0' "$file"; done
"#;

/// Prints a sum of each file's contents, of four files at a time.
const SUMS: &str = r#"
cd "$0"
find . -type f -size +0 ! -name sparse -print0 | xargs -0 -P 4 -n 1 sha256sum | LC_ALL=C sort
for at in 3 7168 921600; do dd if=sparse bs=1M skip=$at count=1 status=none | sha256sum; done
"#;

/// Reads around the page cache, in the sizes of programs and in odd ones, two at a time.
const DIRECT: &str = r#"
for size in 4k 1M 3M; do
    dd if=ours/big iflag=direct bs=$size status=none | cmp - kernel/big &
    dd if=ours/fragmented iflag=direct bs=$size status=none | cmp - kernel/fragmented
    wait $!
done
dd if=ours/deep/er/still/odd iflag=direct bs=3001 status=none | cmp - kernel/deep/er/still/odd
fio --name=direct --filename=ours/big --readonly --rw=randread --direct=1 --bs=64k --ioengine=libaio \
    --iodepth=16 --numjobs=4 --size=48m --io_size=48m --group_reporting
"#;

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    if !packages::is_root()? {
        return Ok(Outcome::Skipped("only root may mount the kernel's XFS"));
    }
    let _unmounted = Unmounted::all(scene);
    scene.ok(&mut shell(FILL, &[]))?;

    // What is mounted below must stay.
    scene.ok(&mut command("mount", &["-t", "tmpfs", "below", "ours"]))?;
    let ours = Mount::start(scene, "image")?;
    scene.ok(&mut command("mount", &["-o", "ro,loop", "image", "kernel"]))?;
    for script in [HOLES, LIST, SUMS] {
        compare(scene, script)?;
    }
    scene.ok(&mut shell(DIRECT, &[]))?;
    refuses_changes(scene)?;
    scene.ok(&mut command("umount", &["ours"]))?;
    ours.ended()?;
    scene.ok(&mut command("umount", &["ours"]))?;

    volume(scene)?;
    stop_in_use(scene)?;
    corrupt(scene)?;
    Ok(Outcome::Passed)
}

/// What both mounts print must be the same.
fn compare(scene: &Scene, script: &str) -> Result<()> {
    let [kernel, ours] = ["kernel", "ours"].map(|name| scene.ok(&mut shell(script, &[name])));
    let (kernel, ours) = (kernel?, ours?);
    let differing = kernel.lines().zip(ours.lines()).find(|(kernel, ours)| kernel != ours);
    ensure!(differing.is_none(), "the kernel says, and we say: {differing:?}");
    ensure!(!kernel.is_empty() && kernel.len() == ours.len(), "one of them says less");
    Ok(())
}

fn refuses_changes(scene: &Scene) -> Result<()> {
    for change in ["touch ours/new", "rm ours/big", "truncate -s 1 ours/big", "chmod 0 ours/big"] {
        let refused = scene.code(&mut shell(change, &[]), 1)?;
        let said = refused.stderr.trim();
        ensure!(said.ends_with("Read-only file system"), "`{change}`: {said}");
    }
    Ok(())
}

/// The same file system inside a volume, which ends by SIGTERM.
fn volume(scene: &Scene) -> Result<()> {
    scene.ok(&mut scene.holdfast(&["import", "image", "volume.hf"]))?;
    let ours = Mount::start(scene, "volume.hf")?;
    for script in [LIST, SUMS] {
        compare(scene, script)?;
    }
    scene.ok(&mut shell(DIRECT, &[]))?;
    rot(scene)?;
    scene.ok(&mut command("umount", &["kernel"]))?;
    ours.terminate(scene)?;
    ours.ended()
}

/// A sector of a file rots in the volume: who reads it gets an error, and nobody else.
fn rot(scene: &Scene) -> Result<()> {
    const SECTOR: usize = 4096;
    const NUMBER: u64 = 10_000;
    let mut wanted = [0; SECTOR];
    File::open(scene.path("kernel/big"))?.read_exact_at(&mut wanted, NUMBER * 4096)?;
    let volume = OpenOptions::new().read(true).write(true).open(scene.path("volume.hf"))?;
    let place = find(&volume, &wanted)?.context("a sector of a file is not in the volume")?;
    wanted[7] ^= 1;
    volume.write_all_at(&wanted, place)?;
    let read = |number| {
        let read = format!("dd if=ours/big iflag=direct bs=4k skip={number} count=1 of=taken");
        shell(&read, &[])
    };
    let refused = scene.code(&mut read(NUMBER), 1)?;
    ensure!(refused.stderr.contains("Input/output error"), "{}", refused.stderr.trim());
    scene.ok(&mut read(NUMBER - 1))?;
    scene.ok(&mut read(NUMBER + 1))?;
    let log = fs::read_to_string(scene.path("server.log"))?;
    ensure!(log.contains("guard tag mismatch"), "the log does not say that a sector is corrupt");
    Ok(())
}

/// Finds a sector in a file.
fn find(file: &File, wanted: &[u8]) -> Result<Option<u64>> {
    let mut bytes = vec![0; 256 * wanted.len()];
    let mut at = 0;
    loop {
        let len = file.read_at(&mut bytes, at)?;
        if len == 0 {
            return Ok(None);
        }
        let found = bytes[..len].chunks_exact(wanted.len()).position(|sector| sector == wanted);
        if let Some(index) = found {
            return Ok(Some(at + u64::try_from(index * wanted.len())?));
        }
        at += u64::try_from(len)?;
    }
}

/// SIGTERM while a file is open: it is read to its end, and then the mount ends.
fn stop_in_use(scene: &Scene) -> Result<()> {
    let ours = Mount::start(scene, "image")?;
    let file = File::open(scene.path("ours/big"))?;
    ours.terminate(scene)?;
    let mut bytes = [0; 4096];
    file.read_exact_at(&mut bytes, 40 << 20).context("an open file of a mount that ends")?;
    drop(file);
    ours.ended()
}

/// A directory rots: it cannot be listed, the log says what is where, and all else is there.
fn corrupt(scene: &Scene) -> Result<()> {
    /// In a block of entries, behind its header.
    const INSIDE: u64 = 1000;
    let map = fs::read_to_string(scene.path("many.bmap"))?;
    let first = map.split_once("]: ").and_then(|(_, rest)| rest.split_once(".."));
    let sector: u64 = first.context("no extents of a directory")?.0.parse()?;
    let image = OpenOptions::new().read(true).write(true).open(scene.path("image"))?;
    let mut byte = [0];
    image.read_exact_at(&mut byte, sector * 512 + INSIDE)?;
    image.write_all_at(&[byte[0] ^ 1], sector * 512 + INSIDE)?;

    let ours = Mount::start(scene, "image")?;
    let refused = scene.code(&mut command("ls", &["ours/many"]), 2)?;
    let said = refused.stderr.trim();
    ensure!(said.ends_with("Structure needs cleaning"), "{said}");
    scene.ok(&mut command("ls", &["-l", "ours", "ours/deep"]))?;
    let log = fs::read_to_string(scene.path("server.log"))?;
    let place = format!("at byte {} of the device: corrupt", sector * 512);
    ensure!(log.contains(&place), "the log does not say: {place}");
    scene.ok(&mut command("umount", &["ours"]))?;
    ours.ended()
}

pub(super) fn shell(script: &str, arguments: &[&str]) -> Command {
    let mut shell = command("sh", &["-euc", script]);
    shell.args(arguments);
    shell
}

/// `holdfast mount`, from the mount to its exit status.
pub(super) struct Mount<'a> {
    scene: &'a Scene,
    program: Background,
}

impl<'a> Mount<'a> {
    fn start(scene: &'a Scene, image: &str) -> Result<Self> {
        Self::start_with(scene, image, &[])
    }

    pub(super) fn start_with(scene: &'a Scene, image: &str, options: &[&str]) -> Result<Self> {
        let mut mount = scene.holdfast(&["mount", image, "ours"]);
        let mut program = scene.start(mount.args(options), "server.log")?;
        scene.poll("the mount", Instant::now() + START, || {
            ensure!(program.is_running()?, "the program ended at once; see server.log");
            Ok(is_mounted(&scene.path("ours"), false)?.then_some(()))
        })?;
        Ok(Self { scene, program })
    }

    /// Sends SIGTERM, and waits until nothing is mounted.
    pub(super) fn terminate(&self, scene: &Scene) -> Result<()> {
        scene.ok(&mut shell(&format!("kill -TERM {}", self.program.pid()), &[]))?;
        scene.poll("the mount to go", Instant::now() + STOP, || {
            Ok((!is_mounted(&scene.path("ours"), false)?).then_some(()))
        })
    }

    /// Waits for the end of the program, which must be a success.
    pub(super) fn ended(mut self) -> Result<()> {
        let status = self.scene.wait(&mut self.program, Instant::now() + STOP)?;
        ensure!(status.success(), "the program ended with {status} when it was unmounted");
        Ok(())
    }
}

/// Whether something of ours is mounted there, or with `any` anything.
fn is_mounted(path: &str, any: bool) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(path) && (any || fields.next() == Some("fuse.holdfast"))
    }))
}

/// Where nothing is mounted when this is dropped, whatever the mount is worth.
pub(super) struct Unmounted(String);

impl Unmounted {
    /// Of Linux and of ours.
    pub(super) fn all(scene: &Scene) -> [Self; 2] {
        ["kernel", "ours"].map(|name| Self(scene.path(name)))
    }
}

impl Drop for Unmounted {
    fn drop(&mut self) {
        // There may be one upon another.
        for _ in 0..2 {
            if !is_mounted(&self.0, true).unwrap_or(true) {
                return;
            }
            // It may be gone meanwhile.
            let _ = command("umount", &["--lazy", &self.0]).status();
        }
    }
}
