//! The trees of hashes that directories and attributes have.

use holdfast_xfs_format::{BlockKind, DaNode, FormatError, Ino, NODE_LEVEL_MAX, Structure};

use crate::error::XfsError;
use crate::mount::Block;

/// Goes down a tree of hashes from a block of it to the first leaf that may have a hash; `None` when no leaf
/// can. `read` returns a block by its number, and is told whether that can only be a leaf.
pub(crate) fn find_leaf(
    ino: Ino,
    mut number: u32,
    hash: u32,
    mut read: impl FnMut(u32, bool) -> Result<Block, XfsError>,
) -> Result<Option<Block>, XfsError> {
    let corrupt = XfsError::of_inode(ino);
    let mut level_max = NODE_LEVEL_MAX;
    loop {
        let block = read(number, level_max == 0)?;
        if block.kind() != Some(BlockKind::DaNode) {
            return Ok(Some(block));
        }
        let node = DaNode::parse(&block.bytes).map_err(&corrupt)?;
        if node.level > level_max {
            let (structure, found) = (Structure::DaNode, u64::from(node.level));
            return Err(corrupt(FormatError::Range { structure, field: "level", found }));
        }
        level_max = node.level - 1;
        let Some(below) = node.find(hash) else { return Ok(None) };
        number = below;
    }
}
