//! Owns the text form of a log: one line per entry, for tests and for people who support a broker.
//! Reads the files as they are, also of a log that does not open; changes nothing.

use std::fmt::Write;
use std::path::Path;

use crate::disk::Disk;
use crate::error::StoreError;
use crate::record::{EntryKind, HEADER_BYTES, Header, HeaderFault};
use crate::segment::{SCAN_BYTES, Segment, base_of};
use crate::vote::VoteFile;

/// The entries of all segments in a folder, and for each segment why its list ends.
pub fn dump(disk: &dyn Disk, dir: &Path) -> Result<String, StoreError> {
    let names = disk
        .list(dir)
        .map_err(|source| StoreError::io("list", dir, source))?;
    let mut text = String::new();
    for base in names.iter().filter_map(|name| base_of(name)) {
        dump_segment(disk, dir, base, &mut text)?;
    }
    Ok(text)
}

/// Address below which the log in a folder is known to have been synced: damage there is never taken
/// for a torn write.
pub fn synced_watermark(disk: &dyn Disk, dir: &Path) -> Result<u64, StoreError> {
    let vote = VoteFile::open(disk, dir, false)?;
    Ok(vote.hints().synced_physical)
}

fn dump_segment(
    disk: &dyn Disk,
    dir: &Path,
    base: u64,
    text: &mut String,
) -> Result<(), StoreError> {
    let segment = Segment::new(dir, base, 0, 0);
    let file = segment.file(disk)?;
    let len = file
        .len()
        .map_err(|source| StoreError::io("read", segment.path(), source))?;
    let end = base.saturating_add(len);
    let mut reader = segment.reader(disk, end, SCAN_BYTES)?;
    line(text, format_args!("segment {}", segment.name()));
    let mut at = base;
    while at < end {
        let (header, crc) = match Header::decode(reader.get(at, HEADER_BYTES)?) {
            Ok(decoded) => decoded,
            Err(HeaderFault::Zero) => {
                line(text, format_args!("  {at} zeros"));
                return Ok(());
            }
            Err(HeaderFault::Damaged(reason)) => {
                line(text, format_args!("  {at} damaged: {reason}"));
                return Ok(());
            }
        };
        let kind = match header.kind {
            EntryKind::Blank => "blank",
            EntryKind::Normal => "normal",
            EntryKind::Membership => "membership",
        };
        let payload_bytes = header.total_bytes as usize - HEADER_BYTES;
        let payload = reader.get(at + HEADER_BYTES as u64, payload_bytes)?;
        let whole = payload.len() == payload_bytes && crc32c::crc32c(payload) == header.payload_crc;
        let verdict = match (whole, header.physical_offset == at) {
            (true, true) => "",
            (false, _) => " PAYLOAD DAMAGED",
            (true, false) => " WRONG ADDRESS",
        };
        let (id, count, previous) = (header.id, header.count, header.previous_crc);
        line(
            text,
            format_args!(
                "  {at} {id} {kind} count {count} payload {payload_bytes} \
                 crc {previous:08x}>{crc:08x}{verdict}"
            ),
        );
        at += u64::from(header.total_bytes);
    }
    Ok(())
}

fn line(text: &mut String, row: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{row}");
}
