//! What a sector's tuple must say.

use holdfast_bio::{Mismatch, Tag};
use holdfast_checksum::GuardKind;

use crate::tuple::Tuple;

/// How the reference tag is meant (T10 SBC-4, 4.21.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectionType {
    /// The reference tag is the sector's address, in as many bits as there are.
    Type1,
    /// The reference tag counts up from a value that came with the command.
    Type2 {
        /// The tag of the sector at address 0.
        initial: u64,
    },
    /// The reference tag is not checked.
    Type3,
}

/// The protection of a device: how tuples are made and what is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// The kind of guard, and with it the format of the tuple.
    pub kind: GuardKind,
    /// How the reference tag is meant.
    pub protection_type: ProtectionType,
    /// The application tag that every sector has.
    pub application: u16,
    /// Honour the escape values, which say that a sector is not to be checked: an application tag
    /// of 0xffff, and for type 3 a reference tag of all ones with it. Where nobody writes them they
    /// are errors, as any other wrong tag.
    pub escapes: bool,
}

impl Protection {
    /// The application tag that means "do not check".
    pub const ESCAPE: u16 = 0xffff;

    /// Returns the reference tag of sector `lba`, in as many bits as the format has.
    pub fn reference(&self, lba: u64) -> u64 {
        let tag = match self.protection_type {
            ProtectionType::Type1 => lba,
            ProtectionType::Type2 { initial } => initial.wrapping_add(lba),
            ProtectionType::Type3 => 0,
        };
        tag & Tuple::reference_mask(self.kind)
    }

    /// Returns the tuple of sector `lba` with this guard.
    pub fn tuple(&self, lba: u64, guard: u64) -> Tuple {
        Tuple { guard, application: self.application, reference: self.reference(lba) }
    }

    /// Checks the stored tuple of sector `lba` against the checksum of its data.
    ///
    /// The tags that do not depend on the data are judged first: a wrong reference or application
    /// tag is real, while a wrong guard may come from memory that changed meanwhile.
    ///
    /// # Errors
    ///
    /// What disagrees first.
    pub fn check(&self, lba: u64, guard: u64, stored: Tuple) -> Result<(), Mismatch> {
        if self.escapes && self.is_escaped(stored) {
            return Ok(());
        }
        let wrong = |tag, expected, found| Err(Mismatch { tag, lba, expected, found });
        let reference = self.reference(lba);
        if self.protection_type != ProtectionType::Type3 && stored.reference != reference {
            return wrong(Tag::Reference, reference, stored.reference);
        }
        if stored.application != self.application {
            return wrong(Tag::Application, self.application.into(), stored.application.into());
        }
        if stored.guard != guard {
            return wrong(Tag::Guard, stored.guard, guard);
        }
        Ok(())
    }

    fn is_escaped(&self, stored: Tuple) -> bool {
        let reference = match self.protection_type {
            ProtectionType::Type1 | ProtectionType::Type2 { .. } => true,
            ProtectionType::Type3 => stored.reference == Tuple::reference_mask(self.kind),
        };
        stored.application == Self::ESCAPE && reference
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTECTION: Protection = Protection {
        kind: GuardKind::Crc16,
        protection_type: ProtectionType::Type1,
        application: 0x1234,
        escapes: false,
    };

    fn tag_of(protection: Protection, lba: u64, guard: u64, stored: Tuple) -> Option<Tag> {
        protection.check(lba, guard, stored).err().map(|mismatch| mismatch.tag)
    }

    #[test]
    fn each_tag_is_told_apart() {
        let good = PROTECTION.tuple(9, 0xbeef);
        let tag = |stored| tag_of(PROTECTION, 9, 0xbeef, stored);
        assert_eq!(tag(good), None);
        assert_eq!(tag(Tuple { guard: 1, ..good }), Some(Tag::Guard));
        assert_eq!(tag(Tuple { application: 1, ..good }), Some(Tag::Application));
        assert_eq!(tag(Tuple { reference: 1, ..good }), Some(Tag::Reference));
    }

    #[test]
    fn a_mismatch_has_the_address_and_both_values() {
        let stored = PROTECTION.tuple(9, 0xbeef);
        let found = PROTECTION.check(9, 0xdead, stored);
        let expected = Mismatch { tag: Tag::Guard, lba: 9, expected: 0xbeef, found: 0xdead };
        assert_eq!(found, Err(expected));
    }

    #[test]
    fn type_1_of_t10_keeps_32_bits_of_the_address() {
        assert_eq!(PROTECTION.tuple((7 << 32) + 5, 0).reference, 5);
    }

    #[test]
    fn type_2_counts_from_the_initial_tag() {
        let protection_type = ProtectionType::Type2 { initial: 0xffff_ffff };
        assert_eq!(Protection { protection_type, ..PROTECTION }.tuple(1, 0).reference, 0);
    }

    #[test]
    fn type_3_does_not_check_the_reference_tag() {
        let protection = Protection { protection_type: ProtectionType::Type3, ..PROTECTION };
        let stored = Tuple { reference: 77, ..protection.tuple(9, 1) };
        assert_eq!(tag_of(protection, 9, 1, stored), None);
    }

    #[test]
    fn an_escape_counts_only_where_it_is_honoured() {
        let stored = Tuple { guard: 0, application: Protection::ESCAPE, reference: 9 };
        let honouring = Protection { escapes: true, ..PROTECTION };
        assert_eq!(tag_of(honouring, 9, 1, stored), None);
        assert_eq!(tag_of(PROTECTION, 9, 1, stored), Some(Tag::Application));
    }

    #[test]
    fn type_3_escapes_need_both_tags() {
        let protection_type = ProtectionType::Type3;
        let protection = Protection { protection_type, escapes: true, ..PROTECTION };
        let one = Tuple { guard: 0, application: Protection::ESCAPE, reference: 9 };
        let both = Tuple { reference: 0xffff_ffff, ..one };
        assert_eq!(tag_of(protection, 9, 1, one), Some(Tag::Application));
        assert_eq!(tag_of(protection, 9, 1, both), None);
    }
}
