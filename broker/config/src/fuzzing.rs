//! For `raftmq::fuzzing`: text that configuration is made of.

use super::RaftPeer;
use super::field::Field;
use super::properties::{Properties, escape};

/// A properties file: its entries, one a line.
#[must_use]
pub fn java_properties(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let properties = Properties::parse(text, "f").ok()?;
    let lines = properties.entries.iter();
    let lines = lines.map(|entry| format!("{}={}\n", key(&entry.key), escape(&entry.value)));
    Some(lines.collect::<String>().into_bytes())
}

/// As [`escape`]; a key ends at its first space, wherever that is.
fn key(text: &str) -> String {
    let mut escaped = String::new();
    for character in escape(text).chars() {
        if character.is_whitespace() {
            escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// The value of `dLegerPeers`.
#[must_use]
pub fn raft_peers(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut peers: Vec<RaftPeer> = Vec::new();
    peers.set(std::str::from_utf8(bytes).ok()?).ok()?;
    Some(peers.show().into_bytes())
}
