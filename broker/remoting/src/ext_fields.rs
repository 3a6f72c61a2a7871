//! The custom header of a command: an ordered map from string to string.
//!
//! A send has fourteen fields, so this map costs two allocations whatever the number of fields:
//! one text that holds all keys and values, and one list of spans into it.

use std::fmt::{self, Write as _};

/// Why a field of a request header cannot be used. Its text is a sentence fit for a remark.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A required field is absent.
    #[error("the custom field <{field}> is null")]
    Missing {
        /// Name of the field.
        field: String,
    },
    /// A field does not hold what it must.
    #[error("the custom field <{field}> must be {expected}, not '{value}'")]
    Invalid {
        /// Name of the field.
        field: String,
        /// What would be right, with its article.
        expected: &'static str,
        /// What was there, cut to 64 characters.
        value: String,
    },
}

#[derive(Clone, Copy, Debug)]
struct Span {
    key_start: u32,
    value_start: u32,
    value_end: u32,
}

/// Ordered map of the extFields of one command. A key occurs once.
#[derive(Clone, Default)]
pub struct ExtFields {
    text: String,
    spans: Vec<Span>,
}

impl ExtFields {
    /// An empty map; allocates nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty map with room for `text_bytes` bytes of keys and values.
    pub(crate) fn with_capacity(fields: usize, text_bytes: usize) -> Self {
        Self {
            text: String::with_capacity(text_bytes),
            spans: Vec::with_capacity(fields),
        }
    }

    /// Value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.position(key).map(|at| self.value(self.spans[at]))
    }

    /// Whether `key` is there.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.position(key).is_some()
    }

    /// Sets `key`; a present key keeps its place.
    pub fn insert(&mut self, key: &str, value: impl fmt::Display) {
        self.insert_with(key, |text| {
            write!(text, "{value}").expect("a String takes every text");
        });
    }

    /// Sets `key` to what `write` appends to the text it is given.
    pub(crate) fn insert_with(&mut self, key: &str, write: impl FnOnce(&mut String)) {
        let at = self.position(key);
        let key_start = self.end();
        self.text.push_str(key);
        let value_start = self.end();
        write(&mut self.text);
        let span = Span {
            key_start,
            value_start,
            value_end: self.end(),
        };
        match at {
            Some(at) => self.spans[at] = span,
            None => self.spans.push(span),
        }
    }

    /// Takes `key` out; true when it was there.
    pub fn remove(&mut self, key: &str) -> bool {
        let at = self.position(key);
        if let Some(at) = at {
            self.spans.remove(at);
        }
        at.is_some()
    }

    /// Fields in order of insertion.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.spans
            .iter()
            .map(|span| (self.key(*span), self.value(*span)))
    }

    /// Number of fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is no field.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Bytes of all keys and values, or a little more: what an encoder reserves.
    pub(crate) fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// Value of `key`, or an error that names it.
    ///
    /// # Errors
    /// [`HeaderError::Missing`].
    pub fn required_str(&self, key: &str) -> Result<&str, HeaderError> {
        self.get(key).ok_or_else(|| HeaderError::Missing {
            field: key.to_owned(),
        })
    }

    /// Value of `key` as int32.
    ///
    /// # Errors
    /// [`HeaderError`] when it is absent or no int32.
    pub fn required_i32(&self, key: &str) -> Result<i32, HeaderError> {
        required(key, self.optional_i32(key))
    }

    /// Value of `key` as int64.
    ///
    /// # Errors
    /// [`HeaderError`] when it is absent or no int64.
    pub fn required_i64(&self, key: &str) -> Result<i64, HeaderError> {
        required(key, self.optional_i64(key))
    }

    /// Value of `key` as boolean.
    ///
    /// # Errors
    /// [`HeaderError`] when it is absent or no boolean.
    pub fn required_bool(&self, key: &str) -> Result<bool, HeaderError> {
        required(key, self.optional_bool(key))
    }

    /// Value of `key`, if it is there.
    ///
    /// # Errors
    /// None; the signature is that of its siblings.
    pub fn optional_str(&self, key: &str) -> Result<Option<&str>, HeaderError> {
        Ok(self.get(key))
    }

    /// Value of `key` as int32, if it is there.
    ///
    /// # Errors
    /// [`HeaderError::Invalid`] when it is no int32.
    pub fn optional_i32(&self, key: &str) -> Result<Option<i32>, HeaderError> {
        self.optional(key, "a 32-bit integer", |value| value.parse().ok())
    }

    /// Value of `key` as int64, if it is there.
    ///
    /// # Errors
    /// [`HeaderError::Invalid`] when it is no int64.
    pub fn optional_i64(&self, key: &str) -> Result<Option<i64>, HeaderError> {
        self.optional(key, "a 64-bit integer", |value| value.parse().ok())
    }

    /// Value of `key` as boolean, if it is there. As in Java, everything but `true` is false; an
    /// empty value counts as absent.
    ///
    /// # Errors
    /// None; the signature is that of its siblings.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>, HeaderError> {
        self.optional(key, "true or false", |value| {
            Some(value.eq_ignore_ascii_case("true"))
        })
    }

    fn optional<T>(
        &self,
        key: &str,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, HeaderError> {
        let Some(value) = self.get(key).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        match parse(value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(HeaderError::Invalid {
                field: key.to_owned(),
                expected,
                value: value.chars().take(64).collect(),
            }),
        }
    }

    fn position(&self, key: &str) -> Option<usize> {
        self.spans.iter().position(|span| {
            (span.value_start - span.key_start) as usize == key.len() && self.key(*span) == key
        })
    }

    fn key(&self, span: Span) -> &str {
        &self.text[span.key_start as usize..span.value_start as usize]
    }

    fn value(&self, span: Span) -> &str {
        &self.text[span.value_start as usize..span.value_end as usize]
    }

    fn end(&self) -> u32 {
        u32::try_from(self.text.len()).expect("a header is far below 4 GiB")
    }
}

fn required<T>(key: &str, value: Result<Option<T>, HeaderError>) -> Result<T, HeaderError> {
    value?.ok_or_else(|| HeaderError::Missing {
        field: key.to_owned(),
    })
}

impl fmt::Debug for ExtFields {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.iter()).finish()
    }
}

impl PartialEq for ExtFields {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for ExtFields {}

impl<K: AsRef<str>, V: fmt::Display> FromIterator<(K, V)> for ExtFields {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(fields: I) -> Self {
        let mut all = Self::new();
        for (key, value) in fields {
            all.insert(key.as_ref(), value);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order_and_the_last_value_of_a_key_wins() {
        let mut fields = ExtFields::from_iter([("topic", "T"), ("queueId", "1"), ("bname", "b")]);
        fields.insert("queueId", 22);
        assert!(fields.remove("topic"));
        assert!(!fields.remove("topic"));
        fields.insert("topic", "U");
        let all: Vec<_> = fields.iter().collect();
        assert_eq!(all, [("queueId", "22"), ("bname", "b"), ("topic", "U")]);
        assert_eq!((fields.len(), fields.get("queue")), (3, None));
    }

    #[test]
    fn errors_name_the_field_and_the_bad_value() {
        let fields = ExtFields::from_iter([("queueId", "x"), ("offset", "9000000000"), ("f", "")]);
        assert_eq!(fields.required_i64("offset"), Ok(9_000_000_000));
        assert_eq!(
            fields.required_i32("offset").unwrap_err().to_string(),
            "the custom field <offset> must be a 32-bit integer, not '9000000000'"
        );
        assert_eq!(
            fields.required_str("topic").unwrap_err().to_string(),
            "the custom field <topic> is null"
        );
        assert!(fields.optional_i32("queueId").is_err());
        assert_eq!(fields.optional_i32("f"), Ok(None));
        assert!(fields.required_i32("f").is_err());
        assert_eq!(fields.optional_bool("queueId"), Ok(Some(false)));
    }
}
