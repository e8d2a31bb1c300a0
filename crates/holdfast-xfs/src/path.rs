//! Walking a path.

use holdfast_bio::BlockDevice;
use holdfast_xfs_format::Kind;

use crate::error::XfsError;
use crate::inode::Inode;
use crate::mount::Xfs;

/// The most symbolic links that one path may lead through, as in Linux.
const SYMLINKS_MAX: usize = 40;

impl<D: BlockDevice> Xfs<D> {
    /// Finds what a path leads to, from the root directory on. Symbolic links are followed, the last one
    /// only if `follow` says so.
    ///
    /// # Errors
    ///
    /// [`XfsError::NotFound`], [`XfsError::NotDirectory`], [`XfsError::TooManySymlinks`],
    /// [`XfsError::Corrupt`], and whatever the device says.
    pub fn walk(&mut self, path: &[u8], follow: bool) -> Result<Inode, XfsError> {
        let mut directory = self.inode(self.root())?;
        let mut names = Vec::new();
        push(&mut names, path);
        let mut must_be_directory = path.ends_with(b"/");
        let mut links = 0;
        while let Some(name) = names.pop() {
            let found = self.lookup(&directory, &name)?;
            let not_found = || XfsError::NotFound { name: path.to_vec() };
            let inode = self.inode(found.ok_or_else(not_found)?)?;
            let is_last = names.is_empty();
            if inode.kind() == Kind::Symlink && (follow || must_be_directory || !is_last) {
                links += 1;
                if links > SYMLINKS_MAX {
                    return Err(XfsError::TooManySymlinks);
                }
                let target = self.read_link(&inode)?;
                if target.starts_with(b"/") {
                    directory = self.inode(self.root())?;
                }
                must_be_directory |= is_last && target.ends_with(b"/");
                push(&mut names, &target);
                continue;
            }
            if !is_last {
                Self::expect_directory(&inode)?;
            }
            directory = inode;
        }
        if must_be_directory {
            Self::expect_directory(&directory)?;
        }
        Ok(directory)
    }
}

/// Puts the names of a path on a stack, the first on top.
fn push(names: &mut Vec<Box<[u8]>>, path: &[u8]) {
    let parts = path.rsplit(|&byte| byte == b'/').filter(|part| !part.is_empty());
    names.extend(parts.map(Box::from));
}
