//! What is printed of a file, for people and for programs.

use std::fmt::Write;

use holdfast_xfs::{Kind, Stat, Timestamp};
use serde::Serialize;

/// A file, for programs.
#[derive(Serialize)]
pub(super) struct JsonFile {
    path: String,
    /// The bytes of a path that is not UTF-8, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    inode: u64,
    #[serde(rename = "type")]
    kind: &'static str,
    /// Type and permissions, as stat(2) has them.
    mode: u16,
    links: u32,
    uid: u32,
    gid: u32,
    size: u64,
    /// In units of 512 bytes.
    blocks: u64,
    io_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<JsonDevice>,
    accessed: JsonTime,
    modified: JsonTime,
    changed: JsonTime,
    created: JsonTime,
    generation: u32,
    project: u32,
    extents: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// The bytes of a target that is not UTF-8, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    target_bytes: Option<String>,
}

#[derive(Serialize)]
struct JsonDevice {
    major: u32,
    minor: u32,
}

#[derive(Serialize)]
struct JsonTime {
    seconds: i64,
    nanoseconds: u32,
}

impl From<Timestamp> for JsonTime {
    fn from(Timestamp { seconds, nanoseconds }: Timestamp) -> Self {
        Self { seconds, nanoseconds }
    }
}

impl JsonFile {
    pub(super) fn new(path: &[u8], stat: &Stat, target: Option<&[u8]>) -> Self {
        Self {
            path: String::from_utf8_lossy(path).into_owned(),
            path_bytes: unless_text(path),
            inode: stat.ino.0,
            kind: kind_name(stat.kind),
            mode: stat.mode,
            links: stat.links,
            uid: stat.uid,
            gid: stat.gid,
            size: stat.size,
            blocks: stat.sectors,
            io_bytes: stat.io_bytes,
            device: stat.device.map(|(major, minor)| JsonDevice { major, minor }),
            accessed: stat.accessed.into(),
            modified: stat.modified.into(),
            changed: stat.changed.into(),
            created: stat.created.into(),
            generation: stat.generation,
            project: stat.project,
            extents: stat.extents,
            target: target.map(|target| String::from_utf8_lossy(target).into_owned()),
            target_bytes: target.and_then(unless_text),
        }
    }
}

fn unless_text(bytes: &[u8]) -> Option<String> {
    str::from_utf8(bytes).is_err().then(|| hexadecimal(bytes))
}

/// Returns bytes in hexadecimal.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// Returns the word for a kind of file.
pub(super) const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Regular => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Block => "block-device",
        Kind::Character => "character-device",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
    }
}

/// Returns type and permissions as ls(1) prints them.
pub(super) fn permissions(stat: &Stat) -> String {
    let kind = match stat.kind {
        Kind::Regular => '-',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::Block => 'b',
        Kind::Character => 'c',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    };
    let mut text = String::from(kind);
    for (shift, special, letters) in
        [(6, 0o4000, ['s', 'S']), (3, 0o2000, ['s', 'S']), (0, 0o1000, ['t', 'T'])]
    {
        let bits = stat.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, stat.mode & special != 0) {
            (true, true) => letters[0],
            (false, true) => letters[1],
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Returns a point in time in UTC, to the second or to the nanosecond.
pub(super) fn time(time: Timestamp, is_exact: bool) -> String {
    const DAY: i64 = 24 * 60 * 60;
    let (days, second) = (time.seconds.div_euclid(DAY), time.seconds.rem_euclid(DAY));
    let (year, month, day) = date(days);
    let (hours, minutes, seconds) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02}");
    if is_exact {
        // Writing to a string cannot fail.
        let _infallible = write!(text, ".{:09}", time.nanoseconds);
    }
    text
}

/// Returns year, month and day of a day counted from 1970, in the Gregorian calendar.
const fn date(days: i64) -> (i64, i64, i64) {
    /// From the first of March of the year 0 to 1970.
    const TO_1970: i64 = 719_468;
    /// The days of 400 years, after which the calendar repeats.
    const ERA: i64 = 146_097;
    let days = days + TO_1970;
    let (era, day) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    // Years begin in March here, so that a leap day is the last of its year.
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + carry, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_whole_range_are_printed() {
        // `date -u -d @SECONDS`
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (-2_147_483_648, "1901-12-13 20:45:52"),
            (951_782_400, "2000-02-29 00:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (16_299_260_425, "2486-07-02 20:20:25"),
        ] {
            assert_eq!(time(Timestamp { seconds, nanoseconds: 0 }, false), text);
        }
    }

    #[test]
    fn nanoseconds_have_nine_digits() {
        let text = time(Timestamp { seconds: 0, nanoseconds: 7 }, true);
        assert_eq!(text, "1970-01-01 00:00:00.000000007");
    }
}
