//! Offset message ids: where a message is stored, as upper-case hexadecimal digits of ip (4 or 16
//! bytes), port (int32) and physical offset (int64). A client that views a message by such an id
//! dials the address inside it.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The text is no offset message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an offset message id has 32 or 56 hexadecimal digits")]
pub struct MessageIdError;

/// The id of the message at `physical_offset` of the broker at `store_host`.
#[must_use]
pub fn encode(store_host: SocketAddr, physical_offset: u64) -> String {
    let mut id = String::with_capacity(56);
    let written = match store_host.ip().to_canonical() {
        IpAddr::V4(ip) => write!(id, "{:08X}", ip.to_bits()),
        IpAddr::V6(ip) => write!(id, "{:032X}", ip.to_bits()),
    };
    written
        .and_then(|()| write!(id, "{:08X}{physical_offset:016X}", store_host.port()))
        .expect("a String takes every text");
    id
}

/// Address and physical offset inside `id`.
///
/// # Errors
/// [`MessageIdError`].
pub fn decode(id: &str) -> Result<(SocketAddr, u64), MessageIdError> {
    let is_hex = id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hex || !matches!(id.len(), 32 | 56) {
        return Err(MessageIdError);
    }
    let (host, offset) = id.split_at(id.len() - 16);
    let (ip, port) = host.split_at(host.len() - 8);
    let ip = if ip.len() == 8 {
        u32::from_str_radix(ip, 16).map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)))
    } else {
        u128::from_str_radix(ip, 16).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
    };
    let ip = ip.map_err(|_| MessageIdError)?;
    let port = u32::from_str_radix(port, 16)
        .ok()
        .and_then(|port| u16::try_from(port).ok());
    let offset = u64::from_str_radix(offset, 16).map_err(|_| MessageIdError)?;
    Ok((SocketAddr::new(ip, port.ok_or(MessageIdError)?), offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_both_ways() {
        let v4 = "127.0.0.1:10911".parse().unwrap();
        assert_eq!(
            encode(v4, 0x1_0000_00AB),
            "7F00000100002A9F00000001000000AB"
        );
        let v6: SocketAddr = "[2001:db8::1]:65535".parse().unwrap();
        for (host, offset) in [(v4, 0), (v4, u64::MAX), (v6, 77)] {
            let id = encode(host, offset);
            assert_eq!(decode(&id), Ok((host, offset)));
            assert_eq!(decode(&id.to_lowercase()), Ok((host, offset)));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let bad_port = "7F0000010001000000000001000000AB";
        for id in [
            "",
            "7F",
            &"G".repeat(32),
            &"0".repeat(33),
            "é",
            bad_port,
            &"é".repeat(16),
        ] {
            assert_eq!(decode(id), Err(MessageIdError), "{id}");
        }
    }
}
