//! How the value of a key is read from text and shown again, per type.

use std::net::IpAddr;
use std::path::PathBuf;

use super::peers::RaftPeer;
use super::{BrokerRole, FlushDiskType, GroupFormation};

/// A configuration value that has a text form.
pub(super) trait Field {
    /// Takes the value from text. The error completes the sentence "key must be ...".
    fn set(&mut self, text: &str) -> Result<(), String>;

    /// The text that `set` reads back.
    fn show(&self) -> String;
}

/// Numbers: decimal, as Java reads them.
macro_rules! number_field {
    ($($number:ty),*) => {$(
        impl Field for $number {
            fn set(&mut self, text: &str) -> Result<(), String> {
                let range = || format!("a number from 0 to {}", <$number>::MAX);
                *self = text.parse().map_err(|_| range())?;
                Ok(())
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

number_field!(u8, u16, u32, u64);

impl Field for bool {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = match text {
            _ if text.eq_ignore_ascii_case("true") => true,
            _ if text.eq_ignore_ascii_case("false") => false,
            _ => return Err("true or false".to_owned()),
        };
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Field for String {
    fn set(&mut self, text: &str) -> Result<(), String> {
        if text.is_empty() {
            return Err("a text".to_owned());
        }
        text.clone_into(self);
        Ok(())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Field for PathBuf {
    fn set(&mut self, text: &str) -> Result<(), String> {
        if text.is_empty() {
            return Err("a path".to_owned());
        }
        *self = Self::from(text);
        Ok(())
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Field for IpAddr {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = text.parse().map_err(|_| "an IP address".to_owned())?;
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl<T: Field + Default> Field for Option<T> {
    fn set(&mut self, text: &str) -> Result<(), String> {
        self.get_or_insert_default().set(text)
    }

    fn show(&self) -> String {
        self.as_ref().map(Field::show).unwrap_or_default()
    }
}

impl Field for FlushDiskType {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = match text {
            "SYNC_FLUSH" => Self::SyncFlush,
            "ASYNC_FLUSH" => Self::AsyncFlush,
            _ => return Err("SYNC_FLUSH or ASYNC_FLUSH".to_owned()),
        };
        Ok(())
    }

    fn show(&self) -> String {
        match self {
            Self::SyncFlush => "SYNC_FLUSH",
            Self::AsyncFlush => "ASYNC_FLUSH",
        }
        .to_owned()
    }
}

impl Field for BrokerRole {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = match text {
            "ASYNC_MASTER" => Self::AsyncMaster,
            "SYNC_MASTER" => Self::SyncMaster,
            "SLAVE" => Self::Slave,
            _ => return Err("ASYNC_MASTER, SYNC_MASTER or SLAVE".to_owned()),
        };
        Ok(())
    }

    fn show(&self) -> String {
        match self {
            Self::AsyncMaster => "ASYNC_MASTER",
            Self::SyncMaster => "SYNC_MASTER",
            Self::Slave => "SLAVE",
        }
        .to_owned()
    }
}

impl Field for GroupFormation {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = match text {
            "peers" => Self::Peers,
            "admin" => Self::Admin,
            _ => return Err("peers or admin".to_owned()),
        };
        Ok(())
    }

    fn show(&self) -> String {
        match self {
            Self::Peers => "peers",
            Self::Admin => "admin",
        }
        .to_owned()
    }
}

/// A `;` separated list of texts.
impl Field for Vec<String> {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = split(text).map(str::to_owned).collect();
        Ok(())
    }

    fn show(&self) -> String {
        self.join(";")
    }
}

/// Hours of the day, `;` separated.
impl Field for Vec<u8> {
    fn set(&mut self, text: &str) -> Result<(), String> {
        let hours: Option<Self> = split(text)
            .map(|hour| hour.parse().ok().filter(|hour| *hour < 24))
            .collect();
        // Without an hour, nothing would ever be deleted before the disk is nearly full.
        let hours = hours.filter(|hours| !hours.is_empty());
        *self = hours.ok_or("hours of the day from 00 to 23, separated by ';'")?;
        Ok(())
    }

    fn show(&self) -> String {
        self.iter()
            .map(|hour| format!("{hour:02}"))
            .collect::<Vec<_>>()
            .join(";")
    }
}

/// Delay levels in milliseconds, written as `1s 5s 1m 2h 1d`.
impl Field for Vec<u64> {
    fn set(&mut self, text: &str) -> Result<(), String> {
        let levels: Option<Self> = text.split_whitespace().map(duration_ms).collect();
        match levels {
            Some(levels) if !levels.is_empty() => *self = levels,
            _ => return Err("durations such as '1s 5s 10s 1m 2h', separated by spaces".to_owned()),
        }
        Ok(())
    }

    fn show(&self) -> String {
        self.iter()
            .map(|&level| show_duration(level))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// `id-host:port`, `;` separated.
impl Field for Vec<RaftPeer> {
    fn set(&mut self, text: &str) -> Result<(), String> {
        let peers: Option<Self> = split(text).map(RaftPeer::parse).collect();
        match peers {
            Some(peers) if !peers.is_empty() => *self = peers,
            _ => {
                return Err(
                    "'n0-host:port;n1-host:port;...' with ids of a letter and a number".to_owned(),
                );
            }
        }
        Ok(())
    }

    fn show(&self) -> String {
        let peers = self
            .iter()
            .map(|peer| format!("{}-{}", peer.name, peer.address));
        peers.collect::<Vec<_>>().join(";")
    }
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(';')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

/// Milliseconds per unit, the largest unit first.
const UNITS: [(char, u64); 4] = [
    ('d', 86_400_000),
    ('h', 3_600_000),
    ('m', 60_000),
    ('s', 1_000),
];

fn duration_ms(text: &str) -> Option<u64> {
    let unit = text.chars().last()?.to_ascii_lowercase();
    let (_, unit_ms) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    text[..text.len() - 1]
        .parse::<u64>()
        .ok()?
        .checked_mul(unit_ms)
}

/// The shortest exact form, in the unit a user would write.
fn show_duration(ms: u64) -> String {
    let unit = UNITS
        .into_iter()
        .find(|(_, unit_ms)| ms >= *unit_ms && ms.is_multiple_of(*unit_ms));
    let (name, unit_ms) = unit.unwrap_or(('s', 1_000));
    format!("{}{name}", ms / unit_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_levels_read_back_as_they_are_shown() {
        let mut levels: Vec<u64> = Vec::new();
        levels.set("1s 90s 1m 2h 1d").unwrap();
        assert_eq!(levels, [1_000, 90_000, 60_000, 7_200_000, 86_400_000]);
        assert_eq!(levels.show(), "1s 90s 1m 2h 1d");
    }

    #[test]
    fn delay_levels_of_another_form_are_refused() {
        for text in [
            "",
            "1",
            "s",
            "1x",
            "-1s",
            "1 s",
            "99999999999999999999s",
            "\u{e9}",
        ] {
            assert!(Vec::<u64>::new().set(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hours_are_hours_of_a_day() {
        let mut hours: Vec<u8> = Vec::new();
        hours.set("04; 16").unwrap();
        assert_eq!((hours.show().as_str(), hours), ("04;16", vec![4, 16]));
        assert!(Vec::<u8>::new().set("24").is_err());
    }
}
