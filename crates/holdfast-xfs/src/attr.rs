//! Extended attributes, by the names that Linux gives them.

mod acl;

use holdfast_bio::BlockDevice;
use holdfast_units::{to_u64, to_usize};
use holdfast_xfs_format::{
    AttrEntry, AttrLeaf, AttrValue, BlockKind, FileBlock, ForkFormat, FormatError, Identity, Ino,
    Namespace, RemoteBlock, RemoteHeader, ShortAttr, Structure, hash_name,
};

use crate::error::XfsError;
use crate::extents::{ExtentList, MappingState};
use crate::hashes::find_leaf;
use crate::inode::{Fork, Inode};
use crate::mount::{Block, Xfs, of, run};
use crate::source::Piece;

const KINDS: &[BlockKind] = &[BlockKind::AttrLeaf, BlockKind::DaNode];
const LEAF: &[BlockKind] = &[BlockKind::AttrLeaf];

/// The prefixes of names, by whose they are.
const PREFIXES: [(Namespace, &[u8]); 3] = [
    (Namespace::User, b"user."),
    (Namespace::Trusted, b"trusted."),
    (Namespace::Security, b"security."),
];

/// An attribute that was looked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    namespace: Namespace,
    name: &'a [u8],
}

/// A value, or where it is.
enum Found {
    Value(Vec<u8>),
    Remote { block: u32, len: u32 },
}

impl<D: BlockDevice> Xfs<D> {
    /// Returns the names of all attributes of a file, as listxattr(2) does for an administrator: those
    /// of `trusted.` are among them.
    ///
    /// # Errors
    ///
    /// [`XfsError::Corrupt`], and whatever the device says.
    pub fn attributes(&mut self, inode: &Inode) -> Result<Vec<Vec<u8>>, XfsError> {
        let corrupt = XfsError::of_inode(inode.ino());
        let mut names = Vec::new();
        let Some(fork) = inode.attributes() else { return Ok(names) };
        if fork.format == ForkFormat::Local {
            let short = ShortAttr::parse(inode.bytes_of(fork)).map_err(&corrupt)?;
            add_names(&mut names, short.entries()).map_err(corrupt)?;
            return Ok(names);
        }
        let Some(mut block) = self.attribute_leaf(inode, fork, 0)? else { return Ok(names) };
        let list = self.fork_extents(inode, fork)?;
        let mut left = list.end();
        loop {
            let leaf = AttrLeaf::parse(&block.bytes).map_err(&corrupt)?;
            add_names(&mut names, leaf.entries()).map_err(&corrupt)?;
            let Some(next) = leaf.next else { return Ok(names) };
            left = left.checked_sub(1).ok_or_else(|| corrupt(circle(next)))?;
            block = self.attribute_block(inode.ino(), &list, next, LEAF)?;
        }
    }

    /// Returns the value of an attribute by its whole name, such as `user.comment`, or `None` when the
    /// file has none of that name.
    ///
    /// # Errors
    ///
    /// [`XfsError::Corrupt`], and whatever the device says.
    pub fn attribute(&mut self, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>, XfsError> {
        if let Some(stored) = acl::stored_name(name) {
            let wanted = Wanted { namespace: Namespace::Trusted, name: stored };
            let value = self.stored_attribute(inode, wanted)?;
            let value = value.map(|value| acl::decode(&value)).transpose();
            return value.map_err(XfsError::of_inode(inode.ino()));
        }
        let split = PREFIXES.iter().find_map(|&(namespace, prefix)| {
            let name = name.strip_prefix(prefix).filter(|name| !name.is_empty())?;
            Some(Wanted { namespace, name })
        });
        split.map_or(Ok(None), |wanted| self.stored_attribute(inode, wanted))
    }

    fn stored_attribute(
        &mut self,
        inode: &Inode,
        wanted: Wanted<'_>,
    ) -> Result<Option<Vec<u8>>, XfsError> {
        let Some(fork) = inode.attributes() else { return Ok(None) };
        if fork.format == ForkFormat::Local {
            let corrupt = XfsError::of_inode(inode.ino());
            let short = ShortAttr::parse(inode.bytes_of(fork)).map_err(&corrupt)?;
            let found = find(short.entries(), wanted).map_err(corrupt)?;
            return found.map(|found| self.value(inode, fork, found)).transpose();
        }
        let found = self.find_in_leaves(inode, fork, wanted)?;
        found.map(|found| self.value(inode, fork, found)).transpose()
    }

    fn find_in_leaves(
        &mut self,
        inode: &Inode,
        fork: &Fork,
        wanted: Wanted<'_>,
    ) -> Result<Option<Found>, XfsError> {
        let corrupt = XfsError::of_inode(inode.ino());
        let hash = hash_name(wanted.name);
        let Some(mut block) = self.attribute_leaf(inode, fork, hash)? else { return Ok(None) };
        let list = self.fork_extents(inode, fork)?;
        let mut left = list.end();
        loop {
            let leaf = AttrLeaf::parse(&block.bytes).map_err(&corrupt)?;
            if let Some(found) = find(leaf.find(hash), wanted).map_err(&corrupt)? {
                return Ok(Some(found));
            }
            let Some(next) = leaf.next.filter(|_| leaf.may_go_on(hash)) else { return Ok(None) };
            left = left.checked_sub(1).ok_or_else(|| corrupt(circle(next)))?;
            block = self.attribute_block(inode.ino(), &list, next, LEAF)?;
        }
    }

    /// Returns the first leaf that may have attributes of a hash.
    fn attribute_leaf(
        &mut self,
        inode: &Inode,
        fork: &Fork,
        hash: u32,
    ) -> Result<Option<Block>, XfsError> {
        let list = self.fork_extents(inode, fork)?;
        if list.extents().is_empty() {
            return Ok(None);
        }
        let ino = inode.ino();
        find_leaf(ino, 0, hash, |number, is_leaf| {
            self.attribute_block(ino, &list, number, if is_leaf { LEAF } else { KINDS })
        })
    }

    fn attribute_block(
        &mut self,
        ino: Ino,
        list: &ExtentList,
        number: u32,
        kinds: &[BlockKind],
    ) -> Result<Block, XfsError> {
        let address = self.attribute_address(ino, list, u64::from(number))?;
        self.block(&run(address, self.superblock.geometry.block.len()), kinds, ino)
    }

    /// Returns where a block of the attributes is, in bytes from the start of the device.
    fn attribute_address(&self, ino: Ino, list: &ExtentList, number: u64) -> Result<u64, XfsError> {
        let geometry = &self.superblock.geometry;
        let offset = number * geometry.block.bytes();
        let found = list.find(FileBlock(number)).map(|_| list.map(offset, geometry));
        match found.map(|mapping| (mapping.offset, mapping.state)) {
            Some((start, MappingState::Mapped { address })) => Ok(address + (offset - start)),
            _ => {
                let (structure, field) = (Structure::AttrLeaf, "hole at block");
                let fault = FormatError::Range { structure, field, found: number };
                Err(XfsError::of_inode(ino)(fault))
            }
        }
    }

    fn value(&mut self, inode: &Inode, fork: &Fork, found: Found) -> Result<Vec<u8>, XfsError> {
        let (first, len) = match found {
            Found::Value(value) => return Ok(value),
            Found::Remote { block, len } => (u64::from(block), u64::from(len)),
        };
        let ino = inode.ino();
        let list = self.fork_extents(inode, fork)?;
        let size = self.superblock.geometry.block;
        let payload = size.bytes() - to_u64(size_of::<RemoteHeader>());
        let addresses: Vec<u64> = (first..first + len.div_ceil(payload))
            .map(|number| self.attribute_address(ino, &list, number))
            .collect::<Result<_, _>>()?;
        let mut bytes = vec![0; addresses.len() * size.len()];
        let pieces = addresses.iter().zip(0..).map(|(&address, index)| Piece {
            address,
            target: index * size.len()..(index + 1) * size.len(),
        });
        self.source.read(pieces, &mut bytes).map_err(|error| of(ino, error))?;
        let mut value = Vec::with_capacity(to_usize(len));
        for (block, address) in bytes.chunks_exact(size.len()).zip(addresses) {
            let kind = BlockKind::AttrRemote;
            let uuid = &self.superblock.metadata_uuid;
            let done = to_u64(value.len());
            let part = kind
                .verify(block, &Identity { uuid, address, owner: ino.0 })
                .and_then(|()| RemoteBlock::parse(kind, block, done, len - done))
                .map_err(XfsError::at(ino, address))?;
            value.extend_from_slice(part.payload);
        }
        let (structure, found) = (Structure::AttrRemote, to_u64(value.len()));
        if found != len {
            let fault = FormatError::Range { structure, field: "length", found };
            return Err(XfsError::of_inode(ino)(fault));
        }
        Ok(value)
    }
}

/// Finds an attribute among some.
fn find<'a>(
    mut entries: impl Iterator<Item = Result<AttrEntry<'a>, FormatError>>,
    wanted: Wanted<'_>,
) -> Result<Option<Found>, FormatError> {
    let is_wanted = |entry: &AttrEntry<'_>| {
        !entry.is_incomplete && entry.namespace == wanted.namespace && entry.name == wanted.name
    };
    let found = entries.find(|entry| entry.as_ref().map_or(true, is_wanted)).transpose()?;
    Ok(found.map(|entry| match entry.value {
        AttrValue::Local(value) => Found::Value(value.to_vec()),
        AttrValue::Remote { block, len } => Found::Remote { block, len },
    }))
}

/// Adds the names that attributes have in Linux.
fn add_names<'a>(
    names: &mut Vec<Vec<u8>>,
    entries: impl Iterator<Item = Result<AttrEntry<'a>, FormatError>>,
) -> Result<(), FormatError> {
    for entry in entries {
        let AttrEntry { namespace, name, is_incomplete, .. } = entry?;
        if is_incomplete {
            continue;
        }
        if namespace == Namespace::Trusted
            && let Some(name) = acl::linux_name(name)
        {
            names.push(name.to_vec());
        }
        let prefix = PREFIXES.iter().find(|(known, _)| *known == namespace);
        names.extend(prefix.map(|(_, prefix)| [prefix, name].concat()));
    }
    Ok(())
}

const fn circle(next: u32) -> FormatError {
    let found = next as u64;
    FormatError::Range { structure: Structure::AttrLeaf, field: "next leaf", found }
}
