//! How much memory the process may use: what the machine has, or the limit of its container.

use std::path::Path;

/// Assumed where the machine does not say. Unit: bytes.
const UNKNOWN_BYTES: u64 = 1 << 30;

/// Memory that this process may use. Unit: bytes.
pub fn of_this_machine() -> u64 {
    bytes_of(|path| std::fs::read_to_string(path).ok())
}

/// As [`of_this_machine`], from files that `read` reads.
fn bytes_of(read: impl Fn(&str) -> Option<String>) -> u64 {
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().filter_map(files_of).flatten();
    // "max", and a number near 2^63, mean that there is no limit.
    let limits = limits.filter_map(|file| read(&file)?.trim().parse::<u64>().ok());
    let machine = read("/proc/meminfo").as_deref().and_then(total_bytes);
    let machine = machine.unwrap_or(UNKNOWN_BYTES);
    limits.chain([machine]).min().unwrap_or(machine)
}

/// Files with the limits of a control group and of those around it; `line` is one of
/// `/proc/self/cgroup`, `number:controllers:path`. Inside a container the path may be that of the
/// machine, which is not there; the one at the top is its own then.
fn files_of(line: &str) -> Option<Vec<String>> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (top, file) = if controllers.is_empty() {
        ("/sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|name| name == "memory") {
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return None;
    };
    let groups = Path::new(path).ancestors().filter_map(Path::to_str);
    let files = groups.map(|group| format!("{top}{}/{file}", group.trim_end_matches('/')));
    Some(files.collect())
}

/// The `MemTotal` of `/proc/meminfo`.
fn total_bytes(meminfo: &str) -> Option<u64> {
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: (&str, &str) = (
        "/proc/meminfo",
        "MemTotal:       8000000 kB\nMemFree: 1 kB\n",
    );

    fn bytes(files: &[(&str, &str)]) -> u64 {
        bytes_of(|path| {
            let mut files = files.iter().chain([&MEMINFO]);
            let found = files.find(|(name, _)| *name == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn without_a_limit_it_is_the_memory_of_the_machine() {
        assert_eq!(bytes(&[]), 8_000_000 * 1024);
        let unlimited = [
            ("/proc/self/cgroup", "4:memory:/\n0::/\n"),
            ("/sys/fs/cgroup/memory.max", "max\n"),
            (
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
        ];
        assert_eq!(bytes(&unlimited), 8_000_000 * 1024);
        assert_eq!(bytes_of(|_| None), UNKNOWN_BYTES);
    }

    #[test]
    fn the_smallest_limit_around_the_process_counts() {
        let second = [
            ("/proc/self/cgroup", "0::/pods/broker\n"),
            ("/sys/fs/cgroup/pods/broker/memory.max", "2000000000\n"),
            ("/sys/fs/cgroup/pods/memory.max", "1000000000\n"),
        ];
        assert_eq!(bytes(&second), 1_000_000_000);
        let first = [
            (
                "/proc/self/cgroup",
                "5:cpu:/\n4:memory,hugetlb:/docker/0123\n",
            ),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
        ];
        assert_eq!(bytes(&first), 512 << 20);
    }
}
