//! The header of a frame in both forms, JSON and ROCKETMQ (binary).
//!
//! ```text
//! binary: code i16 | language u8 | version i16 | opaque i32 | flag i32
//!         | remark length i32, remark | extFields length i32, (key length i16, key, value length
//!         i32, value)*
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    code::LanguageCode,
    command::{RemotingCommand, SerializeType},
    ext_fields::ExtFields,
    json::{self, JsonError, Scalar, Scanner},
    limits::EXT_FIELDS_MAX,
};

/// Why a header cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderDecodeError {
    /// The header is not UTF-8.
    #[error("the header is not UTF-8")]
    NotUtf8,
    /// The JSON text is wrong.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A binary header ends early or a length inside it lies.
    #[error("the binary header ends inside its {field}")]
    Truncated {
        /// What was being read.
        field: &'static str,
    },
    /// More extFields than [`EXT_FIELDS_MAX`].
    #[error("the header has more than {EXT_FIELDS_MAX} extFields")]
    TooManyFields,
}

fn empty_command(serialize: SerializeType) -> RemotingCommand {
    RemotingCommand {
        code: 0,
        language: LanguageCode::JAVA,
        version: 0,
        opaque: 0,
        flag: 0,
        remark: None,
        ext_fields: ExtFields::new(),
        serialize,
        body: Bytes::new(),
    }
}

/// Reads a JSON header. Unknown fields are passed over.
pub(crate) fn decode_json(header: &[u8]) -> Result<RemotingCommand, HeaderDecodeError> {
    let text = std::str::from_utf8(header).map_err(|_| HeaderDecodeError::NotUtf8)?;
    let mut command = empty_command(SerializeType::Json);
    let mut scanner = Scanner::new(text);
    scanner.expect(b'{', "expected an object")?;
    if !scanner.take(b'}') {
        loop {
            let key = scanner.string()?;
            scanner.expect(b':', "expected a colon")?;
            decode_json_field(&key, &mut scanner, &mut command)?;
            if !scanner.take_separator(b'}')? {
                break;
            }
        }
    }
    scanner.expect_end()?;
    Ok(command)
}

fn decode_json_field(
    key: &str,
    scanner: &mut Scanner<'_>,
    command: &mut RemotingCommand,
) -> Result<(), HeaderDecodeError> {
    match key {
        "code" => command.code = scanner.integer()?,
        "version" => command.version = scanner.integer()?,
        "opaque" => command.opaque = scanner.integer()?,
        "flag" => command.flag = scanner.integer()?,
        "language" => {
            command.language = match scanner.scalar()? {
                Scalar::Null => LanguageCode::JAVA,
                Scalar::Text(name) => LanguageCode::from_name(&name),
                Scalar::Other(number) => number.parse().map_or(LanguageCode::OTHER, LanguageCode),
            };
        }
        "remark" => {
            command.remark = match scanner.scalar()? {
                Scalar::Null => None,
                Scalar::Text(text) => Some(text.into_owned()),
                Scalar::Other(text) => Some(text.to_owned()),
            };
        }
        "extFields" => command.ext_fields = decode_json_ext_fields(scanner)?,
        _ => scanner.skip_value(1)?,
    }
    Ok(())
}

fn decode_json_ext_fields(scanner: &mut Scanner<'_>) -> Result<ExtFields, HeaderDecodeError> {
    if scanner.peek() == Some(b'n') {
        scanner.skip_value(1)?;
        return Ok(ExtFields::new());
    }
    scanner.expect(b'{', "expected the object of extFields")?;
    if scanner.take(b'}') {
        return Ok(ExtFields::new());
    }
    let mut fields = ExtFields::with_capacity(16, 256);
    loop {
        let key = scanner.string()?;
        scanner.expect(b':', "expected a colon")?;
        match scanner.scalar()? {
            Scalar::Null => {}
            Scalar::Text(text) => fields.insert_with(&key, |out| out.push_str(&text)),
            Scalar::Other(text) => fields.insert_with(&key, |out| out.push_str(text)),
        }
        if fields.len() > EXT_FIELDS_MAX {
            return Err(HeaderDecodeError::TooManyFields);
        }
        if !scanner.take_separator(b'}')? {
            return Ok(fields);
        }
    }
}

/// Writes a JSON header: fields in alphabetical order as Java does, absent ones left out.
pub(crate) fn encode_json(command: &RemotingCommand, out: &mut BytesMut) {
    let mut text = Vec::with_capacity(json_bytes_estimate(command));
    text.extend_from_slice(b"{\"code\":");
    put_integer(command.code, &mut text);
    if !command.ext_fields.is_empty() {
        text.extend_from_slice(b",\"extFields\":{");
        for (at, (key, value)) in command.ext_fields.iter().enumerate() {
            if at > 0 {
                text.push(b',');
            }
            json::write_string(key, &mut text);
            text.push(b':');
            json::write_string(value, &mut text);
        }
        text.push(b'}');
    }
    text.extend_from_slice(b",\"flag\":");
    put_integer(command.flag, &mut text);
    text.extend_from_slice(b",\"language\":\"");
    text.extend_from_slice(command.language.name().as_bytes());
    text.extend_from_slice(b"\",\"opaque\":");
    put_integer(command.opaque, &mut text);
    if let Some(remark) = &command.remark {
        text.extend_from_slice(b",\"remark\":");
        json::write_string(remark, &mut text);
    }
    text.extend_from_slice(b",\"serializeTypeCurrentRPC\":\"");
    text.extend_from_slice(command.serialize.name().as_bytes());
    text.extend_from_slice(b"\",\"version\":");
    put_integer(command.version, &mut text);
    text.push(b'}');
    out.extend_from_slice(&text);
}

/// Enough for nearly every header, so that its text grows at most once.
fn json_bytes_estimate(command: &RemotingCommand) -> usize {
    let remark = command.remark.as_ref().map_or(0, String::len);
    160 + remark + command.ext_fields.text_bytes() * 5 / 4 + command.ext_fields.len() * 6
}

fn put_integer(value: i32, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 11];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    out.extend_from_slice(&digits[at..]);
}

/// Reads a binary header.
pub(crate) fn decode_binary(mut header: &[u8]) -> Result<RemotingCommand, HeaderDecodeError> {
    const FIXED_BYTES: usize = 13;
    if header.len() < FIXED_BYTES {
        return Err(HeaderDecodeError::Truncated {
            field: "fixed part",
        });
    }
    let mut command = empty_command(SerializeType::RocketMq);
    command.code = i32::from(header.get_i16());
    command.language = LanguageCode(header.get_u8());
    command.version = i32::from(header.get_i16());
    command.opaque = header.get_i32();
    command.flag = header.get_i32();
    let remark = take_text(&mut header, "remark")?;
    // Java's binary form cannot tell an empty text from none and reads both as none.
    command.remark = Some(remark)
        .filter(|text| !text.is_empty())
        .map(str::to_owned);
    let mut fields = take_block(&mut header, "extFields")?;
    if fields.is_empty() {
        return Ok(command);
    }
    command.ext_fields = ExtFields::with_capacity(16, fields.len());
    while !fields.is_empty() {
        if command.ext_fields.len() >= EXT_FIELDS_MAX {
            return Err(HeaderDecodeError::TooManyFields);
        }
        let key_length = fields
            .try_get_i16()
            .ok()
            .and_then(|length| usize::try_from(length).ok());
        let key = key_length.and_then(|length| fields.split_off(..length));
        let key = key.ok_or(HeaderDecodeError::Truncated { field: "extFields" })?;
        let key = std::str::from_utf8(key).map_err(|_| HeaderDecodeError::NotUtf8)?;
        let value = take_text(&mut fields, "extFields")?;
        if !value.is_empty() {
            command
                .ext_fields
                .insert_with(key, |out| out.push_str(value));
        }
    }
    Ok(command)
}

fn take_block<'a>(from: &mut &'a [u8], field: &'static str) -> Result<&'a [u8], HeaderDecodeError> {
    let length = from
        .try_get_i32()
        .ok()
        .and_then(|length| usize::try_from(length).ok());
    let block = length.and_then(|length| from.split_off(..length));
    block.ok_or(HeaderDecodeError::Truncated { field })
}

fn take_text<'a>(from: &mut &'a [u8], field: &'static str) -> Result<&'a str, HeaderDecodeError> {
    let block = take_block(from, field)?;
    std::str::from_utf8(block).map_err(|_| HeaderDecodeError::NotUtf8)
}

/// Writes a binary header. Code and version are cut to int16, as Java does.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the binary form has 16 bits for them"
)]
pub(crate) fn encode_binary(command: &RemotingCommand, out: &mut BytesMut) {
    out.put_i16(command.code as i16);
    out.put_u8(command.language.0);
    out.put_i16(command.version as i16);
    out.put_i32(command.opaque);
    out.put_i32(command.flag);
    put_text(command.remark.as_deref().unwrap_or_default(), out);
    let length = command
        .ext_fields
        .iter()
        .map(|(key, value)| 6 + key.len() + value.len())
        .sum();
    put_length(length, out);
    for (key, value) in command.ext_fields.iter() {
        let key_length = i16::try_from(key.len()).expect("names of extFields are short");
        out.put_i16(key_length);
        out.put_slice(key.as_bytes());
        put_text(value, out);
    }
}

fn put_text(text: &str, out: &mut BytesMut) {
    put_length(text.len(), out);
    out.put_slice(text.as_bytes());
}

fn put_length(length: usize, out: &mut BytesMut) {
    out.put_i32(i32::try_from(length).expect("a header is far below 2 GiB"));
}
