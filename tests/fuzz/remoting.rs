//! What clients and tools send.

use bytes::{Bytes, BytesMut};
use raftmq_remoting::message::{MessageRecord, MessageView, views};
use raftmq_remoting::properties::{Properties, find_property, iter_properties};
use raftmq_remoting::tags::TagExpression;
use raftmq_remoting::{batch, frame as frames, message_id as ids};

/// A frame with its header in either form.
pub fn frame(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    let Ok(Some(command)) = frames::decode(&mut buffer) else {
        return;
    };
    assert!(command.body.len() <= bytes.len());
    let mut encoded = BytesMut::new();
    frames::encode(&command, &mut encoded);
    let again = frames::decode(&mut encoded);
    assert_eq!(again.as_ref(), Ok(&Some(command)), "a frame means the same");
    assert!(encoded.is_empty(), "a frame is read as a whole");
}

/// A stored message, and several in a row.
pub fn message_record(bytes: &[u8]) {
    let shared = Bytes::copy_from_slice(bytes);
    for view in views(bytes).take(64).flatten() {
        assert!(view.total_size() as usize <= bytes.len());
    }
    let whole = MessageRecord::decode(&shared);
    if let Ok(view) = MessageView::new(bytes) {
        let size = view.total_size() as usize;
        assert!(size <= bytes.len());
        let (topic, queue) = (view.topic().to_owned(), view.queue_id());
        if let Ok(record) = MessageRecord::decode(&shared.slice(..size)) {
            assert_eq!((record.topic, record.queue_id), (topic, queue));
        }
    }
    let Ok(record) = whole else { return };
    let mut encoded = BytesMut::new();
    if record.encode(&mut encoded).is_err() {
        return;
    }
    // Encoding settles what has two forms: an IPv4 address within IPv6 becomes one of IPv4.
    let settled = MessageRecord::decode(&encoded.clone().freeze());
    let settled = settled.expect("what was encoded is read");
    let mut again = BytesMut::new();
    assert_eq!(settled.encode(&mut again), Ok(()));
    assert_eq!(again, encoded, "a record means the same");
    assert_eq!((settled.body, settled.topic), (record.body, record.topic));
}

/// The properties of a message.
pub fn properties(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for (name, value) in iter_properties(text) {
        assert!(name.len() + value.len() <= text.len());
    }
    let mut parsed = Properties::parse(text);
    let first = parsed.iter().next().map(|(name, _)| name.to_owned());
    if let Some(name) = first {
        let found = find_property(text, &name).map(str::to_owned);
        assert_eq!(found.as_deref(), parsed.get(&name));
        parsed.set(&name, "other");
        assert_eq!(parsed.get(&name), Some("other"));
        parsed.remove(&name);
    }
    let again = Properties::parse(parsed.as_str());
    let pairs: Vec<_> = parsed.iter().collect();
    assert_eq!(again.iter().collect::<Vec<_>>(), pairs);
}

/// The body of a batch.
pub fn batch_body(bytes: &[u8]) {
    let body = Bytes::copy_from_slice(bytes);
    let items: Vec<_> = batch::items(&body).collect();
    assert!(items.len() <= bytes.len() + 1);
    let Ok(items) = items.into_iter().collect::<Result<Vec<_>, _>>() else {
        return;
    };
    let mut encoded = BytesMut::new();
    for item in &items {
        if batch::encode_item(item, &mut encoded).is_err() {
            return;
        }
    }
    let again: Result<Vec<_>, _> = batch::items(&encoded.freeze()).collect();
    assert_eq!(again, Ok(items), "a batch means the same");
}

/// A message id that a tool asks for.
pub fn message_id(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok((host, offset)) = ids::decode(text) {
        assert_eq!(ids::decode(&ids::encode(host, offset)), Ok((host, offset)));
    }
}

/// A tag expression of a subscription.
pub fn tag_expression(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(expression) = TagExpression::parse(text) {
        assert!(expression.tags().len() <= text.len() + 1);
        let _ = expression.matches(0);
    }
}
