//! From fastjson's own JSON to standard JSON. fastjson leaves integer keys of maps bare and writes
//! objects as keys: `{0:"a"}`, `{{"queueId":0}:1}`. Both become strings here.

use crate::{
    json::{self, JsonError, Scanner},
    limits::JSON_DEPTH_MAX,
};

/// `text` with every key a string; an object that was a key becomes its text.
pub(super) fn to_standard_json(text: &str) -> Result<Vec<u8>, JsonError> {
    let mut scanner = Scanner::new(text);
    let mut out = Vec::with_capacity(text.len() + text.len() / 8);
    value(&mut scanner, 0, &mut out)?;
    scanner.expect_end()?;
    Ok(out)
}

fn value(scanner: &mut Scanner<'_>, depth: usize, out: &mut Vec<u8>) -> Result<(), JsonError> {
    if depth > JSON_DEPTH_MAX {
        return Err(scanner.error("nested too deeply"));
    }
    match scanner.peek() {
        Some(b'{') => members(scanner, depth, *b"{}", out),
        Some(b'[') => members(scanner, depth, *b"[]", out),
        _ => copy(scanner, depth, out),
    }
}

/// The members of an object or array; only those of an object have keys.
fn members(
    scanner: &mut Scanner<'_>,
    depth: usize,
    [open, close]: [u8; 2],
    out: &mut Vec<u8>,
) -> Result<(), JsonError> {
    scanner.expect(open, "expected an opening bracket")?;
    out.push(open);
    if scanner.take(close) {
        out.push(close);
        return Ok(());
    }
    loop {
        if open == b'{' {
            key(scanner, depth + 1, out)?;
            scanner.expect(b':', "expected a colon")?;
            out.push(b':');
        }
        value(scanner, depth + 1, out)?;
        if !scanner.take_separator(close)? {
            out.push(close);
            return Ok(());
        }
        out.push(b',');
    }
}

/// A key. One that is no string is quoted as it stands, so nothing inside it is looked at and the
/// output stays within a small multiple of the input.
fn key(scanner: &mut Scanner<'_>, depth: usize, out: &mut Vec<u8>) -> Result<(), JsonError> {
    if scanner.peek() == Some(b'"') {
        return copy(scanner, depth, out);
    }
    let start = scanner.position();
    scanner.skip_value(depth)?;
    json::write_string(scanner.since(start), out);
    Ok(())
}

/// A value without keys of its own, as it stands.
fn copy(scanner: &mut Scanner<'_>, depth: usize, out: &mut Vec<u8>) -> Result<(), JsonError> {
    let start = scanner.position();
    scanner.skip_value(depth)?;
    out.extend_from_slice(scanner.since(start).as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standard(text: &str) -> String {
        String::from_utf8(to_standard_json(text).unwrap()).unwrap()
    }

    #[test]
    fn only_keys_that_are_no_strings_are_quoted() {
        assert_eq!(
            standard(r#"{"a":{0:"x:1",-12: [1,2,{3:4}]},"b{5:":"\"{6:"}"#),
            r#"{"a":{"0":"x:1","-12":[1,2,{"3":4}]},"b{5:":"\"{6:"}"#
        );
        assert_eq!(standard(r#"{{"t":"T"}:7}"#), r#"{"{\"t\":\"T\"}":7}"#);
        for plain in [r#"{"a":[],"b":{},"c":null}"#, "[1,true]", "\"x\""] {
            assert_eq!(standard(plain), plain);
        }
    }

    #[test]
    fn nested_keys_do_not_make_the_output_grow() {
        let nested = format!("{}1{}", "{".repeat(60), ":1}".repeat(60));
        assert!(to_standard_json(&nested).unwrap().len() < nested.len() * 2);
        let deep = "[".repeat(100_000);
        assert!(to_standard_json(&deep).is_err());
    }
}
