//! What a process has used so far, read from `/proc`: processor time, memory, bytes written.

use std::fs;

/// Ticks per second of the times in `/proc/PID/stat`. Source: Linux's USER_HZ, 100 on every
/// architecture that this program runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Use of one process at one moment, since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    /// User and system time of all threads. Unit: seconds.
    pub cpu_seconds: f64,
    /// Resident memory now. Unit: bytes.
    pub rss_bytes: u64,
    /// Largest resident memory since the start. Unit: bytes.
    pub rss_peak_bytes: u64,
    /// Bytes that the process caused to be sent to disks. Unit: bytes.
    pub disk_write_bytes: u64,
}

impl Usage {
    /// Reads the use of process `pid`; `None` when it is gone or this is not Linux.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
        let status = read("status")?;
        // The counters of another user's process cannot be read; the rest still can.
        let io = read("io").unwrap_or_default();
        Some(Self {
            cpu_seconds: cpu_ticks(&read("stat")?)? as f64 / TICKS_PER_SECOND,
            rss_bytes: field(&status, "VmRSS:").unwrap_or(0) * 1024,
            rss_peak_bytes: field(&status, "VmHWM:").unwrap_or(0) * 1024,
            disk_write_bytes: field(&io, "write_bytes:").unwrap_or(0),
        })
    }
}

/// utime + stime: fields 14 and 15. The name before them may hold spaces and brackets, so the
/// count starts behind its last bracket, at field 3.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "42 (a) b)) S 1 2 3 4 5 6 7 8 9 10 700 55 0 0 20 0";
        assert_eq!(cpu_ticks(stat), Some(755));
    }

    #[test]
    fn fields_are_found_by_name() {
        let status = "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n";
        assert_eq!(field(status, "VmRSS:"), Some(1024));
        assert_eq!(field(status, "VmHWM:"), Some(2048));
        assert_eq!(field(status, "VmSwap:"), None);
    }

    #[test]
    fn this_process_has_used_memory() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.rss_bytes > 0 && usage.rss_peak_bytes >= usage.rss_bytes);
    }
}
