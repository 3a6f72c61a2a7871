//! Topics, groups, offsets, locks and keys told as short stories: what each command answers, what
//! it changes, what it leaves alone.

use super::*;
use crate::{Reject, Reply};

const TOPIC_NOT_EXIST: Reply = Reply::Rejected {
    reason: Reject::TopicNotExist,
};

/// Q2, N1.
#[test]
fn topic_grows_new_queues_and_hides_old_ones() {
    let mut replica = Replica::with_topics();
    let numbers = |replica: &Replica| {
        let topic = replica.state.topic("T").unwrap();
        topic
            .queues
            .iter()
            .map(|queue| queue.number)
            .collect::<Vec<_>>()
    };
    replica.apply(5, &[append("T", 1, "kept")]);
    assert!(replica.apply(6, &[put_topic("T", 4, 1)]).metadata_changed);
    assert_eq!(numbers(&replica), [0, 1, 3, 4]);
    replica.apply(7, &[put_topic("T", 1, 1)]);
    assert_eq!(numbers(&replica), [0, 1, 3, 4]);
    replica.apply(8, &[put_topic("T", 2, 5)]);
    assert_eq!(numbers(&replica), [0, 1, 3, 4, 5]);
    assert_eq!(replica.state.topic("T").unwrap().queues[1].next_offset, 1);
}

#[test]
fn put_topic_that_changes_nothing_keeps_the_version() {
    let mut replica = Replica::with_topics();
    let version = replica.state.topic_version();
    assert_eq!((version.counter, version.timestamp_ms), (2, 1));
    let absent_only = Command::PutTopic {
        config: topic_config("T", 8, 8),
        only_if_absent: true,
    };
    let out = replica.apply(9, &[put_topic("T", 2, 2), absent_only]);
    assert_eq!(out.replies, [Reply::Done, Reply::Done]);
    assert!(!out.metadata_changed);
    assert_eq!(replica.state.topic_version(), version);
    replica.apply(10, &[put_topic("T", 3, 3)]);
    let version = replica.state.topic_version();
    assert_eq!((version.counter, version.timestamp_ms), (3, 10));
}

#[test]
fn changes_of_attributes_that_cross_each_other_both_count() {
    let mut replica = Replica::with_topics();
    replica.apply(2, &[change_topic("T", &[("+a", "1"), ("+b", "1")])]);
    // Two clients that have both seen the attributes as they are now.
    let out = replica.apply(
        3,
        &[
            change_topic("T", &[("+a", "2"), ("-b", "")]),
            change_topic("T", &[("+c", "3"), ("d", "4")]),
        ],
    );
    assert_eq!(out.replies, [Reply::Done, Reply::Done]);
    let attributes = &replica.state.topic("T").unwrap().config.attributes;
    assert_eq!(*attributes, texts(&[("a", "2"), ("c", "3"), ("d", "4")]));
    let changed = [(4, "T".to_owned()), (5, "T".to_owned())];
    assert_eq!(out.topics_changed, changed);
    let same = |changes| match change_topic("T", changes) {
        Command::ChangeTopic { config } => replica.state.has_topic_as(&config),
        _ => false,
    };
    assert!(same(&[("+a", "2"), ("-x", "")]));
    assert!(!same(&[("+a", "1")]) && !same(&[("-a", "")]));
    let again = replica.apply(4, &[change_topic("T", &[("+a", "2"), ("-x", "")])]);
    assert!(!again.metadata_changed && again.topics_changed.is_empty());

    replica.apply(5, &[change_group("g", &[("+a", "1")])]);
    replica.apply(6, &[change_group("g", &[("+b", "2")])]);
    let attributes = &replica.state.group("g").unwrap().attributes;
    assert_eq!(*attributes, texts(&[("a", "1"), ("b", "2")]));
}

/// Q4.
#[test]
fn attributes_cannot_be_piled_up_without_end() {
    let mut replica = Replica::with_topics();
    let half = "v".repeat(crate::limits::ATTRIBUTES_BYTES_MAX / 2);
    replica.apply(2, &[change_group("g", &[("+a", &half)])]);
    let out = replica.apply(3, &[change_group("g", &[("+b", &half)])]);
    let reason = Reject::LimitReached;
    assert_eq!(out.replies, [Reply::Rejected { reason }]);
    let attributes = &replica.state.group("g").unwrap().attributes;
    assert!(attributes.contains_key("a") && !attributes.contains_key("b"));
}

/// Q4.
#[test]
fn topic_beyond_the_limits_is_rejected() {
    let mut replica = Replica::default();
    let long = "x".repeat(crate::limits::NAME_BYTES_MAX + 1);
    let many = crate::limits::QUEUES_PER_TOPIC_MAX + 1;
    let out = replica.apply(
        1,
        &[
            put_topic("", 1, 1),
            put_topic(&long, 1, 1),
            put_topic("T", 1, many),
            put_group(""),
        ],
    );
    let invalid = Reply::Rejected {
        reason: Reject::InvalidCommand,
    };
    assert_eq!(out.replies, vec![invalid; 4]);
    let value = "v".repeat(crate::limits::METADATA_COMMAND_BYTES_MAX);
    let out = replica.apply(2, &[put_kv("n", "k", &value)]);
    assert_eq!(
        out.replies,
        [Reply::Rejected {
            reason: Reject::LimitReached
        }]
    );
    assert!(!out.metadata_changed);
}

/// Q3, O1, L2.
#[test]
fn deleted_topic_takes_its_numbers_offsets_and_locks_with_it() {
    let mut replica = Replica::with_topics();
    replica.apply(
        5,
        &[
            append("T", 0, "a"),
            commit_one("g", "T", 0, 1, CommitMode::Set),
        ],
    );
    replica.apply(
        5,
        &[
            commit_one("g", "U", 0, 4, CommitMode::Set),
            lock("g", "c", &[("T", 1)], 5),
        ],
    );
    let out = replica.apply(6, &[delete_topic("T"), delete_topic("T")]);
    assert_eq!(out.replies, [Reply::Done, Reply::Done]);
    assert_eq!(out.removed_queues, [0, 1]);
    assert!(out.metadata_changed);
    assert_eq!(replica.state.topic("T"), None);
    assert_eq!(replica.state.consumer_offset("g", "T", 0), None);
    assert_eq!(replica.state.lock_owner("g", "T", 1), None);
    assert_eq!(replica.state.consumer_offset("g", "U", 0), Some(4));
    replica.apply(7, &[put_topic("T", 1, 1)]);
    let queue = replica.state.topic("T").unwrap().queues[0];
    assert_eq!((queue.number, queue.next_offset), (3, 0));
}

#[test]
fn deleted_group_keeps_its_offsets_unless_told_to_clean_them() {
    let mut replica = Replica::with_topics();
    replica.apply(
        5,
        &[
            commit_one("g", "T", 0, 3, CommitMode::Set),
            lock("g", "c", &[("T", 0)], 5),
        ],
    );
    let delete = |clean_offset| Command::DeleteGroup {
        group: "g".to_owned(),
        clean_offset,
    };
    assert!(replica.apply(6, &[delete(false)]).metadata_changed);
    assert_eq!(replica.state.group("g"), None);
    assert_eq!(replica.state.lock_owner("g", "T", 0), None);
    assert_eq!(replica.state.consumer_offset("g", "T", 0), Some(3));
    assert!(!replica.apply(7, &[delete(true)]).metadata_changed);
    assert_eq!(replica.state.consumer_offset("g", "T", 0), None);
    assert_eq!(replica.state.group_version().counter, 2);
}

/// O2.
#[test]
fn commit_sets_or_keeps_the_larger_offset() {
    let mut replica = Replica::with_topics();
    let offset_after = |replica: &mut Replica, offset, mode| {
        replica.apply(5, &[commit_one("g", "T", 0, offset, mode)]);
        replica.state.consumer_offset("g", "T", 0)
    };
    assert_eq!(offset_after(&mut replica, 5, CommitMode::Max), Some(5));
    assert_eq!(offset_after(&mut replica, 3, CommitMode::Max), Some(5));
    assert_eq!(offset_after(&mut replica, 3, CommitMode::Set), Some(3));
    assert_eq!(offset_after(&mut replica, 4, CommitMode::Max), Some(4));
}

#[test]
fn bad_commits_are_left_out_of_a_good_command() {
    let mut replica = Replica::with_topics();
    let missing = commit("g", "none", 0, 1, CommitMode::Set);
    let beyond = commit("g", "T", 2, 1, CommitMode::Set);
    let good = commit("g", "T", 1, 1, CommitMode::Set);
    let out = replica.apply(
        5,
        &[
            Command::CommitOffsets {
                commits: vec![missing.clone(), good, beyond.clone()],
            },
            Command::CommitOffsets {
                commits: vec![missing, beyond],
            },
            Command::CommitOffsets { commits: vec![] },
            commit_one("g", "T", 0, u64::MAX, CommitMode::Set),
        ],
    );
    let invalid = Reply::Rejected {
        reason: Reject::InvalidCommand,
    };
    assert_eq!(
        out.replies,
        [Reply::Done, TOPIC_NOT_EXIST, Reply::Done, invalid]
    );
    let offsets: Vec<_> = replica.state.consumer_offsets().collect();
    assert_eq!(offsets, [("g", "T", 1, 1)]);
    assert_eq!(
        replica.state.offsets_of_group("g").collect::<Vec<_>>(),
        [("T", 1, 1)]
    );
    assert_eq!(
        replica.state.groups_of_topic("T").collect::<Vec<_>>(),
        ["g"]
    );
    assert_eq!(replica.state.groups_of_topic("U").count(), 0);
}

/// L1.
#[test]
fn lock_has_one_owner_until_unlock_or_expiry() {
    let mut replica = Replica::with_topics();
    let mut locked = |command: Command| replica.apply(5, &[command]).replies.remove(0);
    let both = [("T", 0), ("T", 1)];
    assert_eq!(
        locked(lock("g", "a", &both[..1], 1_000)),
        Reply::Locked(owned(&both[..1]))
    );
    assert_eq!(
        locked(lock("g", "b", &both, 61_000)),
        Reply::Locked(owned(&both[1..]))
    );
    assert_eq!(
        locked(lock("h", "b", &both, 1_000)),
        Reply::Locked(owned(&both))
    );
    // A refresh under a slower clock does not shorten the lock.
    assert_eq!(
        locked(lock("g", "a", &both[..1], 900)),
        Reply::Locked(owned(&both[..1]))
    );
    assert_eq!(
        locked(lock("g", "b", &both[..1], 61_000)),
        Reply::Locked(vec![])
    );
    assert_eq!(
        locked(lock("g", "b", &both[..1], 61_001)),
        Reply::Locked(owned(&both[..1]))
    );
    assert_eq!(locked(unlock("g", "a", &both)), Reply::Done);
    assert_eq!(locked(lock("g", "a", &both, 61_002)), Reply::Locked(vec![]));
    assert_eq!(locked(unlock("g", "b", &both[1..])), Reply::Done);
    assert_eq!(
        locked(lock("g", "a", &both, 61_003)),
        Reply::Locked(owned(&both[1..]))
    );
    assert_eq!(
        locked(lock("g", "a", &[("T", 2), ("none", 0)], 61_003)),
        Reply::Locked(vec![])
    );
    let owner = replica.state.lock_owner("g", "T", 1).unwrap();
    assert_eq!(
        (owner.client_id.as_str(), owner.locked_at_ms),
        ("a", 61_003)
    );
    assert!(!owner.is_expired(121_003) && owner.is_expired(121_004));
}

#[test]
fn keys_are_put_and_deleted_by_namespace() {
    let mut replica = Replica::default();
    replica.apply(
        1,
        &[
            put_kv("n", "k", "1"),
            put_kv("m", "k", "2"),
            put_kv("n", "k", "3"),
        ],
    );
    assert_eq!(replica.state.kv("n", "k"), Some("3"));
    assert_eq!(
        replica.state.kv_entries("m").collect::<Vec<_>>(),
        [("k", "2")]
    );
    let delete = Command::DeleteKv {
        namespace: "n".to_owned(),
        key: "k".to_owned(),
    };
    let out = replica.apply(2, &[delete.clone(), delete]);
    assert_eq!(out.replies, [Reply::Done, Reply::Done]);
    assert!(!out.metadata_changed);
    assert_eq!(replica.state.kv("n", "k"), None);
}
