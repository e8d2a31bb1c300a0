//! Files of a mount are written at random by fsx, which knows what must be in them; then `xfs_repair` and
//! the kernel's XFS look at the image. The last is in a volume.

use std::fs;
use std::time::Duration;

use anyhow::Result;

use super::Outcome;
use super::mount::{Mount, Unmounted, shell};
use super::scene::Scene;
use crate::packages;
use crate::run::command;

pub(super) const NAME: &str = "fsx";
/// How many operations each mount sees unless more are asked for.
pub(super) const OPERATIONS: u32 = 2000;
/// How much longer the scenario may take for each operation, of all mounts together.
pub(super) const LIMIT: Duration = Duration::from_millis(40);

/// What fsx does, and how often. Linux has no more than one call that copies a range, and the file system
/// none, so that it would be reads and writes.
const OPERATIONS_WANTED: &str = "\
flen = 1048576
[opsize]
max = 131072
[weights]
close_open = 1
invalidate = 1
read = 10
write = 10
mapread = 5
mapwrite = 5
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 5
sendfile = 2
posix_fadvise = 1
";

/// Makes an image with files to be written, one of which has all its blocks in common with another.
const MAKE: &str = r#"
rm -f image
truncate -s 320M image
mkfs.xfs -q "$@" image
mkdir -p kernel ours
mount -o loop image kernel
head -c 700001 /dev/urandom > kernel/origin
cp --reflink=always kernel/origin kernel/written
sha256sum < kernel/origin > origin.sum
touch kernel/times
umount kernel
"#;

/// What fsx does not: single bytes beside each other through the page cache and around it, times, sizes,
/// and what is refused.
const CHANGE: &str = r#"
cd ours
dd if=/dev/urandom of=origin bs=777 count=3 seek=100 conv=notrunc oflag=direct status=none
printf x | dd of=origin bs=1 seek=700001 conv=notrunc status=none
dd if=origin iflag=direct bs=1M status=none | cmp - origin
sha256sum < origin > ../origin.sum
touch -d '1910-01-02 03:04:05.123456789' times
test "$(stat -c %y times)" = '1910-01-02 03:04:05.123456789 +0000'
printf word >> times
test "$(stat -c %Y times)" -gt 1700000000
touch -m -d '2100-01-02 03:04:05.5' times
xfs_io -c 'falloc -k 0 1m' -c 'fzero 100 4000' times
test "$(stat -c '%s %b' times)" = '4100 2048'
truncate -s 3 times
for change in 'touch new' 'rm origin' 'mv origin x' 'ln origin x' 'mkdir x' 'chmod 0 origin' 'setfattr -n user.x origin'; do
    $change 2>&1 | grep -q 'Read-only file system'
done
xfs_io -c 'fcollapse 0 4096' written 2>&1 | grep -q 'not supported'
"#;

/// What the kernel must find.
const JUDGE: &str = r#"
xfs_repair -n image
mount -o loop,ro image kernel
cmp kernel/written copy
sha256sum < kernel/origin | cmp - origin.sum
test "$(cat kernel/times)" = wor
umount kernel
"#;

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    if !packages::is_root()? {
        return Ok(Outcome::Skipped("only root may mount the kernel's XFS"));
    }
    if scene.given.fsx.is_none() {
        return Ok(Outcome::Skipped("fsx could not be installed from crates.io"));
    }
    let _unmounted = Unmounted::all(scene);
    fs::write(scene.path("fsx.toml"), OPERATIONS_WANTED)?;
    let small: &[&str] = &["-b", "size=1024", "-m", "rmapbt=1"];
    for (seed, options, how, volume) in [
        ("1", &[][..], &["--rw", "--direct-io"][..], None),
        ("2", small, &["--rw", "--direct-io"], None),
        ("3", small, &["--rw"], None),
        ("4", small, &["--rw", "--direct-io"], Some("volume.hf")),
    ] {
        scene.ok(shell(MAKE, &["sh"]).args(options))?;
        if let Some(volume) = volume {
            scene.ok(&mut scene.holdfast(&["import", "image", volume]))?;
        }
        let ours = Mount::start_with(scene, volume.unwrap_or("image"), how)?;
        fsx(scene, seed)?;
        scene.ok(&mut shell(CHANGE, &[]))?;
        scene.ok(&mut command("umount", &["ours"]))?;
        ours.ended()?;
        if let Some(volume) = volume {
            scene.ok(&mut scene.holdfast(&["verify", volume]))?;
            fs::remove_file(scene.path("image"))?;
            scene.ok(&mut scene.holdfast(&["export", volume, "image"]))?;
        }
        scene.ok(&mut shell(JUDGE, &[]))?;
    }
    Ok(Outcome::Passed)
}

/// Lets fsx write a file, and keeps a copy of what is in it then.
fn fsx(scene: &Scene, seed: &str) -> Result<()> {
    let Some(program) = scene.given.fsx.as_ref().and_then(|path| path.to_str()) else {
        anyhow::bail!("the path of fsx is not UTF-8");
    };
    let count = scene.given.operations.to_string();
    let arguments = ["-f", "fsx.toml", "-P", ".", "-N", &count, "-S", seed, "ours/written"];
    scene.quiet(&mut command(program, &arguments))?;
    scene.ok(&mut command("cp", &["ours/written", "copy"]))?;
    Ok(())
}
