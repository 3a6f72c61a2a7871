//! A small JSON scanner and string writer. The header decoder uses it because a header is read for
//! every request, the body decoder because fastjson writes maps that are not JSON.
//!
//! Tolerated beyond JSON: raw control characters in strings, as some C++ clients send them.

use std::borrow::Cow;

use crate::limits::JSON_DEPTH_MAX;

/// What is wrong with a JSON text, and where. The position is a byte offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {position} of the JSON text")]
pub struct JsonError {
    /// What is wrong.
    pub reason: &'static str,
    /// Where.
    pub position: usize,
}

/// A cursor over a JSON text.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    text: &'a str,
    position: usize,
}

/// A value whose text is taken as it is, unescaped when it was a string.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scalar<'a> {
    /// `null`.
    Null,
    /// A string without its quotes and escapes.
    Text(Cow<'a, str>),
    /// A number, boolean, object or array as it stands there.
    Other(&'a str),
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, position: 0 }
    }

    pub(crate) fn error(&self, reason: &'static str) -> JsonError {
        JsonError {
            reason,
            position: self.position,
        }
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// The text from `start` to here. `start` is an earlier [`Self::position`].
    pub(crate) fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.position).unwrap_or_default()
    }

    /// Next byte that is no white space, without taking it.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(byte) = bytes.get(self.position) {
            match byte {
                b' ' | b'\n' | b'\r' | b'\t' => self.position += 1,
                _ => return Some(*byte),
            }
        }
        None
    }

    /// Takes `byte` if it comes next.
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.position += usize::from(found);
        found
    }

    /// Takes `byte`, which must come next.
    pub(crate) fn expect(&mut self, byte: u8, reason: &'static str) -> Result<(), JsonError> {
        if self.take(byte) {
            Ok(())
        } else {
            Err(self.error(reason))
        }
    }

    /// Nothing may follow but white space.
    pub(crate) fn expect_end(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("unexpected text")),
        }
    }

    /// After a member: true when another follows, false when `close` was taken.
    pub(crate) fn take_separator(&mut self, close: u8) -> Result<bool, JsonError> {
        if self.take(b',') {
            return Ok(true);
        }
        self.expect(close, "expected a comma or the closing bracket")?;
        Ok(false)
    }

    /// A string. Borrowed when it has no escapes.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        self.expect(b'"', "expected a string")?;
        let start = self.position;
        let rest = &self.text.as_bytes()[start..];
        let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'));
        match plain.map(|length| (length, rest[length])) {
            Some((length, b'"')) => {
                self.position = start + length + 1;
                Ok(Cow::Borrowed(&self.text[start..start + length]))
            }
            Some((length, _)) => {
                self.position = start + length;
                self.escaped_string(&self.text[start..start + length])
                    .map(Cow::Owned)
            }
            None => Err(self.error("unterminated string")),
        }
    }

    fn escaped_string(&mut self, head: &str) -> Result<String, JsonError> {
        let mut out = String::with_capacity(head.len() + 32);
        out.push_str(head);
        loop {
            let rest = &self.text.as_bytes()[self.position..];
            let Some(length) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) else {
                return Err(self.error("unterminated string"));
            };
            out.push_str(&self.text[self.position..self.position + length]);
            self.position += length + 1;
            if rest[length] == b'"' {
                return Ok(out);
            }
            out.push(self.escape()?);
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let Some(kind) = self.text.as_bytes().get(self.position) else {
            return Err(self.error("unterminated string"));
        };
        // No slicing is needed after a kind that is not ASCII: it is an error.
        let plain = match kind {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                self.position += 1;
                return self.unicode_escape();
            }
            _ => return Err(self.error("unknown escape")),
        };
        self.position += 1;
        Ok(plain)
    }

    /// The four digits after `\u`, and the second half of a surrogate pair. A half alone becomes
    /// U+FFFD, as Java's encoder does.
    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let unit = self.hex_unit()?;
        let high = (0xD800..0xDC00).contains(&unit);
        if high && self.text[self.position..].starts_with("\\u") {
            let back = self.position;
            self.position += 2;
            let low = self.hex_unit()?;
            if (0xDC00..0xE000).contains(&low) {
                let code = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.position = back;
        }
        Ok(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex_unit(&mut self) -> Result<u32, JsonError> {
        let digits = self.text.get(self.position..self.position + 4);
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let unit = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let unit = unit.ok_or_else(|| self.error("expected four hexadecimal digits"))?;
        self.position += 4;
        Ok(unit)
    }

    /// A value as text.
    pub(crate) fn scalar(&mut self) -> Result<Scalar<'a>, JsonError> {
        if self.peek() == Some(b'"') {
            return self.string().map(Scalar::Text);
        }
        let start = self.position;
        self.skip_value(0)?;
        match self.since(start) {
            "null" => Ok(Scalar::Null),
            text => Ok(Scalar::Other(text)),
        }
    }

    /// An int32, bare or as a string. `null` is zero, as for a Java primitive.
    pub(crate) fn integer(&mut self) -> Result<i32, JsonError> {
        let value = self.scalar()?;
        let parsed = match &value {
            Scalar::Null => Some(0),
            Scalar::Text(text) => text.trim().parse().ok(),
            Scalar::Other(text) => text.parse().ok(),
        };
        parsed.ok_or_else(|| self.error("expected a 32-bit integer"))
    }

    /// Passes over any value. `depth` counts the brackets around it.
    pub(crate) fn skip_value(&mut self, depth: usize) -> Result<(), JsonError> {
        if depth > JSON_DEPTH_MAX {
            return Err(self.error("nested too deeply"));
        }
        match self.peek() {
            Some(b'"') => self.string().map(|_| ()),
            Some(b'{') => self.skip_object(depth),
            Some(b'[') => self.skip_array(depth),
            Some(_) => self.skip_literal(),
            None => Err(self.error("expected a value")),
        }
    }

    fn skip_object(&mut self, depth: usize) -> Result<(), JsonError> {
        self.position += 1;
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            // Any value is passed over as a key: fastjson writes objects and numbers there.
            self.skip_value(depth + 1)?;
            self.expect(b':', "expected a colon")?;
            self.skip_value(depth + 1)?;
            if !self.take_separator(b'}')? {
                return Ok(());
            }
        }
    }

    fn skip_array(&mut self, depth: usize) -> Result<(), JsonError> {
        self.position += 1;
        if self.take(b']') {
            return Ok(());
        }
        loop {
            self.skip_value(depth + 1)?;
            if !self.take_separator(b']')? {
                return Ok(());
            }
        }
    }

    fn skip_literal(&mut self) -> Result<(), JsonError> {
        let start = self.position;
        let bytes = self.text.as_bytes();
        while let Some(b'0'..=b'9' | b'a'..=b'z' | b'E' | b'+' | b'-' | b'.') =
            bytes.get(self.position)
        {
            self.position += 1;
        }
        let literal = self.since(start);
        let number = literal.starts_with(|first: char| first == '-' || first.is_ascii_digit())
            && literal.parse::<f64>().is_ok();
        if number || matches!(literal, "null" | "true" | "false") {
            Ok(())
        } else {
            Err(JsonError {
                reason: "expected a value",
                position: start,
            })
        }
    }
}

/// Appends `text` as a JSON string with its quotes.
pub(crate) fn write_string(text: &str, out: &mut Vec<u8>) {
    const HEX: [u8; 16] = *b"0123456789abcdef";
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut written = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..0x20 => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                &[b'\\', b'u', b'0', b'0', high, low]
            }
            _ => continue,
        };
        out.extend_from_slice(&bytes[written..at]);
        out.extend_from_slice(escape);
        written = at + 1;
    }
    out.extend_from_slice(&bytes[written..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unquote(text: &str) -> Result<String, JsonError> {
        let mut scanner = Scanner::new(text);
        let string = scanner.string()?.into_owned();
        scanner.expect_end().map(|()| string)
    }

    #[test]
    fn strings_come_back_as_they_were() {
        for text in ["", "plain", "q\"b\\s/", "\u{1}a\u{2}\n\r\t", "täg 火 😀"] {
            let mut out = Vec::new();
            write_string(text, &mut out);
            let written = String::from_utf8(out).unwrap();
            assert_eq!(unquote(&written).unwrap(), text);
            assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        }
    }

    #[test]
    fn escapes_of_every_kind_are_read() {
        assert_eq!(
            unquote(r#""\u00e4\ud83d\ude00\/\b\f""#).unwrap(),
            "ä😀/\u{8}\u{c}"
        );
        assert_eq!(unquote(r#""\ud83dx""#).unwrap(), "\u{fffd}x");
        assert_eq!(unquote(r#""\ud83d\u0041""#).unwrap(), "\u{fffd}A");
        for bad in [
            r#""\x""#,
            r#""\u12""#,
            r#""\u+123""#,
            "\"open",
            r#""\"#,
            "\"\\é\"",
            "\"\\u123é\"",
        ] {
            assert!(unquote(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_are_passed_over_whole() {
        for value in [
            "1",
            "-1.5e+3",
            "null",
            "[1,[ ],{ }]",
            r#"{"a":{"b":[true,false]}}"#,
            r#"{1:2}"#,
        ] {
            let mut scanner = Scanner::new(value);
            scanner.skip_value(0).unwrap();
            assert_eq!(scanner.since(0), value);
        }
        let deep = "[".repeat(100_000);
        assert_eq!(
            Scanner::new(&deep).skip_value(0).unwrap_err().reason,
            "nested too deeply"
        );
        for bad in [
            "", "[1", "{\"a\"}", "nul", "1.2.3", "inf", "+", "{,}", "[1,]",
        ] {
            assert!(Scanner::new(bad).skip_value(0).is_err(), "{bad}");
        }
    }
}
