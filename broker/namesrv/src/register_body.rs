//! The registration of a broker (103): header, checksum, plain or compressed body.

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use raftmq_remoting::body::{self, DataVersion};
use raftmq_remoting::{RemotingCommand, ResponseCode};

use super::requests::Reject;
use super::route_table::{ConnectionId, Queues, Registration};
use raftmq_host::limits::{
    NAMESRV_NAME_BYTES_MAX, NAMESRV_REGISTER_INFLATED_BYTES_MAX, NAMESRV_TOPICS_PER_BROKER_MAX,
};

type Topics = Vec<(String, Queues)>;

/// CRC-32 as RocketMQ carries it in headers: without the sign bit.
pub(super) fn checksum(body: &[u8]) -> i32 {
    i32::try_from(crc32fast::hash(body) & 0x7fff_ffff).expect("31 bits fit i32")
}

/// Parses the registration that came over `connection`.
pub(super) fn decode(
    command: &RemotingCommand,
    connection: ConnectionId,
) -> Result<Registration, Reject> {
    let fields = &command.ext_fields;
    let text = |name| short(fields.required_str(name)?).map(str::to_owned);
    let expected = fields.optional_i32("bodyCrc32")?.unwrap_or(0);
    if expected != 0 && expected != checksum(&command.body) {
        return Err(malformed("bodyCrc32 does not match the body"));
    }
    let broker_id = fields.required_i64("brokerId")?;
    let heartbeat_timeout_ms = fields.optional_i64("heartbeatTimeoutMillis")?;
    let (version, topics) = if command.body.is_empty() {
        (DataVersion::default(), Topics::new())
    } else if fields.optional_bool("compressed")?.unwrap_or(false) {
        inflate(&command.body)?
    } else {
        parse(&command.body)?
    };
    if topics.len() > NAMESRV_TOPICS_PER_BROKER_MAX {
        return Err(malformed("too many topics"));
    }
    let mut topic_names = topics.iter().map(|(topic, _)| topic);
    if topic_names.any(|topic| topic.len() > NAMESRV_NAME_BYTES_MAX) {
        return Err(malformed("the name of a topic is too long"));
    }
    Ok(Registration {
        cluster_name: text("clusterName")?,
        broker_name: text("brokerName")?,
        broker_address: text("brokerAddr")?,
        broker_id: u64::try_from(broker_id).map_err(|_| malformed("brokerId is negative"))?,
        ha_server_address: short(fields.get("haServerAddr").unwrap_or_default())?.to_owned(),
        heartbeat_timeout_ms: heartbeat_timeout_ms.and_then(|time| u64::try_from(time).ok()),
        enable_acting_master: fields.optional_bool("enableActingMaster")?.unwrap_or(false),
        version,
        topics,
        topics_are_all: false,
        connection,
    })
}

/// Names and addresses stay in memory for as long as the broker is registered.
fn short(text: &str) -> Result<&str, Reject> {
    if text.len() > NAMESRV_NAME_BYTES_MAX {
        return Err(malformed("a name or an address is too long"));
    }
    Ok(text)
}

fn malformed(text: impl std::fmt::Display) -> Reject {
    Reject(
        ResponseCode::SYSTEM_ERROR,
        format!("register broker: {text}"),
    )
}

fn parse(body: &[u8]) -> Result<(DataVersion, Topics), Reject> {
    let body: body::RegisterBrokerBody = body::decode(body).map_err(malformed)?;
    let wrapper = body.topic_config_serialize_wrapper;
    let topics = wrapper
        .topic_config_table
        .into_iter()
        .map(|(topic, config)| {
            let queues = Queues {
                read_queue_nums: config.read_queue_nums,
                write_queue_nums: config.write_queue_nums,
                perm: config.perm,
                topic_sys_flag: config.topic_sys_flag,
            };
            (topic, queues)
        });
    Ok((wrapper.data_version, topics.collect()))
}

/// How many topics a body names; 0 when it is refused.
pub(super) fn count_topics(body: &[u8], compressed: bool) -> usize {
    let read = if compressed { inflate } else { parse };
    read(body).map_or(0, |(_, topics)| topics.len())
}

/// The compressed form: zlib over length-prefixed parts, the version, the number of topics, then
/// one line per topic. What follows (filter servers, static topics) is of no concern here.
fn inflate(body: &[u8]) -> Result<(DataVersion, Topics), Reject> {
    let mut reader = ZlibDecoder::new(body).take(NAMESRV_REGISTER_INFLATED_BYTES_MAX);
    let mut part = Vec::new();
    read_part(&mut reader, &mut part)?;
    let version = body::decode(&part).map_err(malformed)?;
    let count = read_length(&mut reader)?;
    if count > NAMESRV_TOPICS_PER_BROKER_MAX {
        return Err(malformed("too many topics"));
    }
    let mut topics = Topics::new();
    for _ in 0..count {
        read_part(&mut reader, &mut part)?;
        let line = std::str::from_utf8(&part).map_err(malformed)?;
        topics.push(topic_line(line).ok_or_else(|| malformed(format_args!("topic '{line}'")))?);
    }
    Ok((version, topics))
}

fn read_length(reader: &mut impl Read) -> Result<usize, Reject> {
    let mut length = [0; 4];
    reader.read_exact(&mut length).map_err(malformed)?;
    usize::try_from(i32::from_be_bytes(length)).map_err(|_| malformed("negative length"))
}

/// Reads a part into `part`, whose memory grows only with the bytes that come.
fn read_part(reader: &mut impl Read, part: &mut Vec<u8>) -> Result<(), Reject> {
    let length = read_length(reader)?;
    part.clear();
    let read = reader
        .take(length as u64)
        .read_to_end(part)
        .map_err(malformed)?;
    if read == length {
        Ok(())
    } else {
        Err(malformed("body ends early"))
    }
}

/// The compressed form of a registration; [`inflate`] reads it.
pub(super) fn deflate(body: &body::RegisterBrokerBody) -> io::Result<Vec<u8>> {
    let wrapper = &body.topic_config_serialize_wrapper;
    // Topics resemble each other: the quickest form is small enough.
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    write_part(&mut encoder, &body::encode(&wrapper.data_version))?;
    write_length(&mut encoder, wrapper.topic_config_table.len())?;
    for (topic, config) in &wrapper.topic_config_table {
        let (read, write, perm) = (config.read_queue_nums, config.write_queue_nums, config.perm);
        // A name server does not use the filter type; every topic has the default one.
        let line = format!("{topic} {read} {write} {perm} SINGLE_TAG {{}}");
        write_part(&mut encoder, line.as_bytes())?;
    }
    write_part(&mut encoder, b"[]")?;
    write_length(&mut encoder, 0)?;
    encoder.finish()
}

fn write_length(out: &mut impl Write, length: usize) -> io::Result<()> {
    let length = i32::try_from(length).map_err(io::Error::other)?;
    out.write_all(&length.to_be_bytes())
}

fn write_part(out: &mut impl Write, part: &[u8]) -> io::Result<()> {
    write_length(out, part.len())?;
    out.write_all(part)
}

/// `topic readQueueNums writeQueueNums perm filterType [attributes]`.
fn topic_line(line: &str) -> Option<(String, Queues)> {
    let mut words = line.split(' ');
    let topic = words.next().filter(|topic| !topic.is_empty())?;
    let queues = Queues {
        read_queue_nums: words.next()?.parse().ok()?,
        write_queue_nums: words.next()?.parse().ok()?,
        perm: words.next()?.parse().ok()?,
        topic_sys_flag: 0,
    };
    Some((topic.to_owned(), queues))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed(parts: &[&[u8]]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        for part in parts {
            encoder.write_all(part).unwrap();
        }
        encoder.finish().unwrap()
    }

    fn sized(text: &str) -> Vec<u8> {
        let mut part = (text.len() as u32).to_be_bytes().to_vec();
        part.extend_from_slice(text.as_bytes());
        part
    }

    const VERSION: &str = r#"{"counter":7,"stateVersion":3,"timestamp":5}"#;

    #[test]
    fn a_compressed_body_is_version_then_topic_lines() {
        let body = compressed(&[
            &sized(VERSION),
            &2_u32.to_be_bytes(),
            &sized("T 4 8 6 SINGLE_TAG {}"),
            &sized("U 1 1 4 SINGLE_TAG"),
            &sized("[]"),
            &0_u32.to_be_bytes(),
        ]);
        let (version, topics) = inflate(&body).unwrap();
        assert_eq!(
            version,
            DataVersion {
                state_version: 3,
                timestamp: 5,
                counter: 7
            }
        );
        let queues = |read_queue_nums, write_queue_nums, perm| Queues {
            read_queue_nums,
            write_queue_nums,
            perm,
            topic_sys_flag: 0,
        };
        let expected = [
            ("T".to_owned(), queues(4, 8, 6)),
            ("U".to_owned(), queues(1, 1, 4)),
        ];
        assert_eq!(topics, expected);
    }

    #[test]
    fn broken_compressed_bodies_are_refused() {
        let short = compressed(&[&sized(VERSION), &1_u32.to_be_bytes(), &9_u32.to_be_bytes()]);
        let many = compressed(&[&sized(VERSION), &i32::MAX.to_be_bytes()]);
        let negative = compressed(&[&u32::MAX.to_be_bytes()]);
        let line = compressed(&[&sized(VERSION), &1_u32.to_be_bytes(), &sized("T x")]);
        for body in [&short[..], &many, &negative, &line, b"no zlib", b""] {
            assert!(inflate(body).is_err());
        }
    }

    #[test]
    fn a_body_that_inflates_without_end_is_cut() {
        let zeros = vec![b'0'; 1 << 20];
        let length = i32::MAX.to_be_bytes();
        let parts: Vec<&[u8]> = std::iter::once(&length[..])
            .chain(std::iter::repeat_n(&zeros[..], 65))
            .collect();
        assert!(inflate(&compressed(&parts)).is_err());
    }

    #[test]
    fn a_body_is_read_back_from_its_compressed_form() {
        let mut body = body::RegisterBrokerBody::default();
        let wrapper = &mut body.topic_config_serialize_wrapper;
        wrapper.data_version.counter = 9;
        for topic in ["T", "U"] {
            let config = body::TopicConfig::new(topic, 4, 6);
            wrapper.topic_config_table.insert(topic.to_owned(), config);
        }
        let plain = parse(&body::encode(&body)).unwrap();
        assert_eq!(inflate(&deflate(&body).unwrap()).unwrap(), plain);
    }

    #[test]
    fn the_checksum_has_no_sign_bit() {
        // CRC-32 of "123456789" is cbf43926.
        assert_eq!(checksum(b"123456789"), 0x4bf4_3926);
    }
}
