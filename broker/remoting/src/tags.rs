//! Tags: the hash the queue index keeps for a message, and the tag expressions of consumers.

/// Java's `String.hashCode`: over UTF-16 units, wrapping.
#[must_use]
pub fn java_string_hash(text: &str) -> i32 {
    let hash = |hash: i32, unit: u16| hash.wrapping_mul(31).wrapping_add(i32::from(unit));
    text.encode_utf16().fold(0, hash)
}

/// The tags code of a message: hash of its tag, sign-extended; 0 without a tag.
#[must_use]
pub fn tags_code(tag: Option<&str>) -> i64 {
    tag.filter(|tag| !tag.is_empty())
        .map_or(0, |tag| i64::from(java_string_hash(tag)))
}

/// A tag expression without any tag in it, as `||`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tag expression names no tag")]
pub struct TagExpressionError;

/// What a consumer wants: everything, or messages with one of some tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagExpression {
    tags: Vec<String>,
    /// Hashes of `tags`, sorted. Empty = everything.
    codes: Vec<i64>,
}

impl TagExpression {
    /// Reads `A || B`. Nothing, an empty text and `*` mean everything.
    ///
    /// # Errors
    /// [`TagExpressionError`] when there are separators and nothing else.
    pub fn parse(expression: &str) -> Result<Self, TagExpressionError> {
        if expression.is_empty() || expression == "*" {
            return Ok(Self::default());
        }
        let pieces = expression
            .split("||")
            .map(str::trim)
            .filter(|tag| !tag.is_empty());
        let mut tags: Vec<String> = Vec::new();
        for tag in pieces {
            if !tags.iter().any(|known| known == tag) {
                tags.push(tag.to_owned());
            }
        }
        if tags.is_empty() {
            return Err(TagExpressionError);
        }
        let mut codes: Vec<i64> = tags.iter().map(|tag| tags_code(Some(tag))).collect();
        codes.sort_unstable();
        codes.dedup();
        Ok(Self { tags, codes })
    }

    /// An expression known by its hashes only, as a subscription carries them.
    #[must_use]
    pub fn from_codes(codes: impl IntoIterator<Item = i32>) -> Self {
        let mut codes: Vec<i64> = codes.into_iter().map(i64::from).collect();
        codes.sort_unstable();
        codes.dedup();
        Self {
            tags: Vec::new(),
            codes,
        }
    }

    /// Whether everything is wanted.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.codes.is_empty()
    }

    /// The tags in order, without repetition; empty when everything is wanted or only hashes are
    /// known.
    #[must_use]
    pub fn tags(&self) -> &[String] {
        &self.tags
    }

    /// Whether a message with this tags code may be wanted. Hashes collide; the client compares
    /// the tag itself.
    #[must_use]
    pub fn matches(&self, tags_code: i64) -> bool {
        self.is_all() || self.codes.binary_search(&tags_code).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_the_one_of_java() {
        assert_eq!(java_string_hash(""), 0);
        assert_eq!(java_string_hash("TagA"), 2_598_919);
        // Two UTF-16 units, and an overflow.
        assert_eq!(java_string_hash("😀"), 1_772_899);
        assert_eq!(java_string_hash("polygenelubricants"), i32::MIN);
        assert_eq!(tags_code(Some("polygenelubricants")), i64::from(i32::MIN));
        assert_eq!((tags_code(None), tags_code(Some(""))), (0, 0));
    }

    #[test]
    fn expression_matches_the_tags_it_names() {
        let expression = TagExpression::parse("TagA || B||TagA").unwrap();
        assert_eq!(expression.tags(), ["TagA", "B"]);
        assert!(expression.matches(2_598_919) && expression.matches(66));
        assert!(!expression.matches(0) && !expression.matches(67));
        for all in ["", "*"] {
            assert!(TagExpression::parse(all).unwrap().matches(0));
        }
        assert_eq!(TagExpression::parse(" || "), Err(TagExpressionError));
        assert!(TagExpression::from_codes([66, -1]).matches(-1));
    }
}
