//! The text form of `java.util.Properties`, with line numbers.
//!
//! `key=value`, `key: value` or `key value`; `#` and `!` comments; a line that ends in an odd number
//! of backslashes goes on in the next one; `\t \n \r \f \uXXXX` and `\` before any other character.
//! One difference: spaces at the end of a value are dropped, because nobody means them.

use std::iter::Peekable;
use std::str::Chars;

use super::{ConfigError, Warning};
use raftmq_host::limits::CONFIG_REQUEST_BYTES_MAX;

/// Start of the place of an entry that the command line gives.
const ARGUMENT: &str = "--set ";

/// One `key=value` of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, unescaped.
    pub key: String,
    /// The value, unescaped, without spaces around it.
    pub value: String,
    /// The file as given on the command line, or `--set KEY=VALUE`.
    pub file: String,
    /// Line the key stands in, from 1; 0 when it stands in no file.
    pub line: usize,
}

impl Entry {
    /// Where it stands: `file:line`, or `--set KEY=VALUE`.
    #[must_use]
    pub fn place(&self) -> String {
        place(&self.file, self.line)
    }
}

/// `file:line`, or the file alone for what stands in no line.
pub(super) fn place(file: &str, line: usize) -> String {
    if line == 0 {
        file.to_owned()
    } else {
        format!("{file}:{line}")
    }
}

/// The entries of one file, or of several on top of each other; each key once, the last one given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// File names as given on the command line, for messages about what no file has.
    pub file: String,
    /// In the order of the lines that won.
    pub entries: Vec<Entry>,
    /// One for every key that was given before.
    pub warnings: Vec<Warning>,
}

impl Properties {
    /// Parses `text`; fails only on a broken `\uXXXX`.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let mut properties = Self {
            file: file.to_owned(),
            entries: Vec::new(),
            warnings: Vec::new(),
        };
        let mut problems = Vec::new();
        for (line, logical) in logical_lines(text) {
            match split(&logical) {
                Ok((key, value)) => properties.add(Entry {
                    key,
                    value,
                    file: file.to_owned(),
                    line,
                }),
                Err(text) => problems.push(format!("{file}:{line}: {text}")),
            }
        }
        if problems.is_empty() {
            Ok(properties)
        } else {
            Err(ConfigError { problems })
        }
    }

    /// The text of a request. Unlike that of a file, it is bounded.
    pub fn parse_request(text: &[u8]) -> Result<Self, String> {
        if text.len() > CONFIG_REQUEST_BYTES_MAX {
            return Err("the configuration is too long".to_owned());
        }
        let text = std::str::from_utf8(text).map_err(|_| "the configuration is not UTF-8")?;
        Self::parse(text, "request").map_err(|error| error.to_string())
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| entry.value.as_str())
    }

    /// Where `key` stands.
    #[must_use]
    pub fn place_of(&self, key: &str) -> Option<String> {
        self.entries
            .iter()
            .find(|entry| entry.key == key)
            .map(Entry::place)
    }

    /// One `KEY=VALUE` of the command line; the value is taken as it is.
    pub fn of_argument(argument: &str) -> Result<Self, ConfigError> {
        let file = format!("{ARGUMENT}{argument}");
        let pair = argument
            .split_once('=')
            .map(|(key, value)| (key.trim(), value.trim()));
        match pair {
            Some((key, value)) if !key.is_empty() => Ok(Self {
                entries: vec![Entry {
                    key: key.to_owned(),
                    value: value.to_owned(),
                    file: file.clone(),
                    line: 0,
                }],
                file,
                warnings: Vec::new(),
            }),
            _ => Err(ConfigError {
                problems: vec![format!("{file}: must be KEY=VALUE")],
            }),
        }
    }

    /// Lays `later` on top: its keys win, which is what it is for and no cause for a warning.
    pub fn overlay(&mut self, later: Self) {
        let wins = |key: &str| later.entries.iter().any(|entry| entry.key == key);
        self.entries.retain(|entry| !wins(&entry.key));
        self.entries.extend(later.entries);
        self.warnings.extend(later.warnings);
        if !later.file.starts_with(ARGUMENT) {
            self.file = format!("{}, {}", self.file, later.file);
        }
    }

    fn add(&mut self, entry: Entry) {
        if let Some(at) = self
            .entries
            .iter()
            .position(|earlier| earlier.key == entry.key)
        {
            let earlier = self.entries.remove(at);
            self.warnings.push(Warning {
                file: self.file.clone(),
                line: entry.line,
                text: format!(
                    "key '{}' was given in line {} already; this one counts",
                    entry.key, earlier.line
                ),
            });
        }
        self.entries.push(entry);
    }
}

/// Escapes text so that it reads back as the same value.
#[must_use]
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let is_at_an_end =
        |at: usize, character: char| at == 0 || at + character.len_utf8() == text.len();
    for (at, character) in text.char_indices() {
        match character {
            '\t' => escaped.push_str("\\t"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\u{c}' => escaped.push_str("\\f"),
            // Around a value it would be dropped, even behind a backslash.
            _ if character.is_whitespace() && is_at_an_end(at, character) => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            '\\' | '#' | '!' | '=' | ':' => escaped.extend(['\\', character]),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// Joins continued lines and drops blanks and comments; yields the number of the first line.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut logical: Vec<(usize, String)> = Vec::new();
    let mut continued = false;
    // A byte order mark is not part of the first key.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if !continued && (line.is_empty() || line.starts_with(['#', '!'])) {
            continue;
        }
        let backslashes = line.len() - line.trim_end_matches('\\').len();
        let goes_on = backslashes % 2 == 1;
        let part = if goes_on {
            &line[..line.len() - 1]
        } else {
            line
        };
        match logical.last_mut() {
            Some((_, joined)) if continued => joined.push_str(part),
            _ => logical.push((index + 1, part.to_owned())),
        }
        continued = goes_on;
    }
    logical
}

/// Splits a logical line at its first unescaped `=`, `:` or space.
fn split(line: &str) -> Result<(String, String), String> {
    let mut characters = line.trim_end().chars().peekable();
    let mut key = String::new();
    while let Some(&character) = characters.peek() {
        if matches!(character, '=' | ':') || character.is_whitespace() {
            break;
        }
        characters.next();
        push_unescaped(&mut key, character, &mut characters)?;
    }
    skip_spaces(&mut characters);
    if characters
        .next_if(|character| matches!(character, '=' | ':'))
        .is_some()
    {
        skip_spaces(&mut characters);
    }
    let mut value = String::new();
    while let Some(character) = characters.next() {
        push_unescaped(&mut value, character, &mut characters)?;
    }
    Ok((key, value))
}

fn skip_spaces(characters: &mut Peekable<Chars<'_>>) {
    while characters
        .next_if(|character| character.is_whitespace())
        .is_some()
    {}
}

fn push_unescaped(
    text: &mut String,
    character: char,
    rest: &mut Peekable<Chars<'_>>,
) -> Result<(), String> {
    if character != '\\' {
        text.push(character);
        return Ok(());
    }
    match rest.next() {
        Some('t') => text.push('\t'),
        Some('n') => text.push('\n'),
        Some('r') => text.push('\r'),
        Some('f') => text.push('\u{c}'),
        Some('u') => {
            let first = unicode_unit(rest)?;
            text.push(unicode_character(first, rest)?);
        }
        Some(other) => text.push(other),
        None => {}
    }
    Ok(())
}

fn unicode_unit(rest: &mut Peekable<Chars<'_>>) -> Result<u16, String> {
    let digits: String = rest.by_ref().take(4).collect();
    if digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        Ok(u16::from_str_radix(&digits, 16).expect("four hexadecimal digits fit u16"))
    } else {
        Err(format!(
            "\\u must be followed by four hexadecimal digits, not '{digits}'"
        ))
    }
}

/// Java writes a character outside the basic plane as two units.
fn unicode_character(first: u16, rest: &mut Peekable<Chars<'_>>) -> Result<char, String> {
    let mut units = vec![first];
    if (0xd800..0xdc00).contains(&first) && rest.next() == Some('\\') && rest.next() == Some('u') {
        units.push(unicode_unit(rest)?);
    }
    let decoded: Result<Vec<char>, _> = char::decode_utf16(units).collect();
    match decoded.as_deref() {
        Ok([character]) => Ok(*character),
        _ => Err(format!("\\u{first:04x} is half of a character")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String, usize)> {
        let properties = Properties::parse(text, "f").unwrap();
        properties
            .entries
            .into_iter()
            .map(|entry| (entry.key, entry.value, entry.line))
            .collect()
    }

    fn pair(key: &str, value: &str, line: usize) -> (String, String, usize) {
        (key.to_owned(), value.to_owned(), line)
    }

    #[test]
    fn separators_comments_and_blank_lines_are_those_of_java() {
        let text = "# c\n! c\n\na=1\n b : 2\nc 3\nd\ne=\nf==x\r\n  # tail";
        let expected = [
            ("a", "1", 4),
            ("b", "2", 5),
            ("c", "3", 6),
            ("d", "", 7),
            ("e", "", 8),
            ("f", "=x", 9),
        ];
        assert_eq!(
            pairs(text),
            expected.map(|(key, value, line)| pair(key, value, line))
        );
    }

    #[test]
    fn odd_backslashes_continue_a_line_and_even_ones_end_it() {
        let text = "a=1,\\\n   2\\\\\nb=#x\\\n#y";
        assert_eq!(pairs(text), [pair("a", "1,2\\", 1), pair("b", "#x#y", 3)]);
    }

    #[test]
    fn escapes_are_resolved_in_keys_and_values() {
        let text = "a\\=b\\ c=\\t\\u0041\\ud83d\\ude00\\z";
        assert_eq!(pairs(text), [pair("a=b c", "\tA\u{1f600}z", 1)]);
    }

    #[test]
    fn trailing_spaces_of_a_value_are_dropped() {
        assert_eq!(pairs("a=b  \n"), [pair("a", "b", 1)]);
    }

    #[test]
    fn a_broken_unicode_escape_is_a_problem_with_its_line() {
        let error = Properties::parse("a=1\nb=\\u00g1", "f").unwrap_err();
        let expected = "f:2: \\u must be followed by four hexadecimal digits, not '00g1'";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn the_last_of_two_equal_keys_counts_and_is_warned_of() {
        let properties = Properties::parse("a=1\nb=2\na=3", "f").unwrap();
        assert_eq!(properties.get("a"), Some("3"));
        let warnings: Vec<_> = properties
            .warnings
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            warnings,
            ["f:3: key 'a' was given in line 1 already; this one counts"]
        );
    }

    #[test]
    fn escaped_text_reads_back() {
        for value in [
            " a=b:c#d!e\\f\tg\nh",
            "  two in front, one behind ",
            "a\u{b}",
            "\u{a0}b\u{3000}",
            " ",
            "\\",
        ] {
            let text = format!("key={}", escape(value));
            let properties = Properties::parse(&text, "f").unwrap();
            assert_eq!(properties.get("key"), Some(value));
        }
    }

    #[test]
    fn the_text_of_a_request_is_bounded() {
        let longest = "a".repeat(CONFIG_REQUEST_BYTES_MAX);
        let read = Properties::parse_request(longest.as_bytes()).unwrap();
        assert_eq!(read.get(&longest), Some(""));
        let too_long = Properties::parse_request(format!("{longest}a").as_bytes());
        assert_eq!(too_long.unwrap_err(), "the configuration is too long");
        assert!(Properties::parse_request(b"\xff").is_err());
    }

    #[test]
    fn what_lies_on_top_wins_key_by_key_and_keeps_its_place() {
        let mut properties = Properties::parse("a=1\nb=2\nc=3", "base").unwrap();
        properties.overlay(Properties::parse("b=4", "pod").unwrap());
        properties.overlay(Properties::of_argument("c= x=y ").unwrap());
        let all: Vec<_> = properties.entries.iter().collect();
        let shown = all
            .iter()
            .map(|entry| format!("{} {}={}", entry.place(), entry.key, entry.value));
        assert_eq!(
            shown.collect::<Vec<_>>(),
            ["base:1 a=1", "pod:1 b=4", "--set c= x=y  c=x=y"]
        );
        assert_eq!(properties.file, "base, pod");
        assert_eq!(properties.warnings, []);
        for bad in ["a", "=1", ""] {
            let error = Properties::of_argument(bad).unwrap_err().to_string();
            assert_eq!(error, format!("--set {bad}: must be KEY=VALUE"));
        }
    }
}
