//! Bits of the two `sysFlag` integers: the one stored with a message and the one of a pull.

/// The body is compressed.
pub const COMPRESSED: i32 = 0x1;
/// The message has several tags; written by no current client.
pub const MULTI_TAGS: i32 = 0x2;
/// A half message of a transaction.
pub const TRANSACTION_PREPARED: i32 = 0x4;
/// A committed transactional message.
pub const TRANSACTION_COMMIT: i32 = 0x8;
/// A rolled back transactional message.
pub const TRANSACTION_ROLLBACK: i32 = 0xC;
/// Both transaction bits; zero under this mask = not transactional.
pub const TRANSACTION_MASK: i32 = 0xC;
/// The born host is an IPv6 address of 16 bytes.
pub const BORN_HOST_V6: i32 = 0x10;
/// The store host is an IPv6 address of 16 bytes.
pub const STORE_HOST_V6: i32 = 0x20;
/// The consumer has to unpack the body of an inner batch.
pub const NEED_UNWRAP_INNER_BATCH: i32 = 0x40;
/// The record is an inner batch.
pub const INNER_BATCH: i32 = 0x80;
/// The three bits that name the compression.
pub const COMPRESSION_MASK: i32 = 0x700;
/// Compressed with LZ4.
pub const COMPRESSION_LZ4: i32 = 0x100;
/// Compressed with ZSTD.
pub const COMPRESSION_ZSTD: i32 = 0x200;
/// Compressed with ZLIB; zero under the mask together with [`COMPRESSED`] means ZLIB too.
pub const COMPRESSION_ZLIB: i32 = 0x300;

/// Pull: `commitOffset` of the header is to be stored.
pub const PULL_COMMIT_OFFSET: i32 = 0x1;
/// Pull: hold the request until a message arrives or `suspendTimeoutMillis` ends.
pub const PULL_SUSPEND: i32 = 0x2;
/// Pull: the header carries the subscription.
pub const PULL_SUBSCRIPTION: i32 = 0x4;
/// Pull: class filter; no longer served by anyone.
pub const PULL_CLASS_FILTER: i32 = 0x8;
/// Pull: from a lite pull consumer.
pub const PULL_LITE: i32 = 0x10;

/// The transaction bits of a stored message.
#[must_use]
pub fn transaction_type(sys_flag: i32) -> i32 {
    sys_flag & TRANSACTION_MASK
}

/// `sys_flag` with its transaction bits replaced by `transaction`, one of the constants above.
#[must_use]
pub fn with_transaction(sys_flag: i32, transaction: i32) -> i32 {
    (sys_flag & !TRANSACTION_MASK) | (transaction & TRANSACTION_MASK)
}

/// Whether `bit` is set.
#[must_use]
pub fn has(sys_flag: i32, bit: i32) -> bool {
    sys_flag & bit == bit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_bits_are_replaced_and_others_kept() {
        let prepared = COMPRESSED | TRANSACTION_PREPARED | BORN_HOST_V6;
        let committed = with_transaction(prepared, TRANSACTION_COMMIT);
        assert_eq!(transaction_type(committed), TRANSACTION_COMMIT);
        assert_eq!(committed & !TRANSACTION_MASK, prepared & !TRANSACTION_MASK);
        assert!(has(committed, COMPRESSED) && !has(committed, STORE_HOST_V6));
    }
}
