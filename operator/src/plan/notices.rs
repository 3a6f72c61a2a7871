//! What a person should hear of, as Events: the difference between two statuses. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::crd::{GroupStatus, RaftClusterStatus};

use super::conditions::INVALID;

/// An Event to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whether it is a warning.
    pub warning: bool,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub note: String,
}

fn normal(reason: &str, note: String) -> Notice {
    Notice {
        warning: false,
        reason: reason.to_owned(),
        note,
    }
}

fn warning(reason: &str, note: String) -> Notice {
    Notice {
        warning: true,
        reason: reason.to_owned(),
        note,
    }
}

/// What happened between two statuses.
pub(super) fn between(before: &RaftClusterStatus, after: &RaftClusterStatus) -> Vec<Notice> {
    let mut notices = Vec::new();
    let blank = GroupStatus::default();
    for group in &after.groups {
        let old = before.group(&group.name).unwrap_or(&blank);
        of_group(old, group, &mut notices);
    }
    let became = |kind: &str, status: &str| -> Option<&Condition> {
        let new = find(&after.conditions, kind).filter(|condition| condition.status == status)?;
        let old = find(&before.conditions, kind);
        let is_new = old.is_none_or(|old| old.status != status || old.reason != new.reason);
        is_new.then_some(new)
    };
    if let Some(condition) = became("Ready", "True") {
        notices.push(normal("Ready", condition.message.clone()));
    }
    if let Some(condition) = became("Degraded", "True") {
        notices.push(warning(&condition.reason, condition.message.clone()));
    }
    if let Some(condition) = became("Progressing", "False").filter(|one| one.reason == INVALID) {
        notices.push(warning(INVALID, condition.message.clone()));
    }
    if let Some(condition) = became("ConfigApplied", "False") {
        notices.push(normal("RestartNeeded", condition.message.clone()));
    }
    notices
}

fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn of_group(before: &GroupStatus, after: &GroupStatus, notices: &mut Vec<Notice>) {
    let name = &after.name;
    match (&before.bootstrap, &after.bootstrap) {
        (None, Some(new)) if new.formed => {
            let note = format!("group {name} existed before this resource and is taken over");
            notices.push(normal("GroupAdopted", note));
        }
        (None, Some(_)) => {
            let note = format!(
                "group {name} is going to be formed from {} brokers",
                after.members.len()
            );
            notices.push(normal("FormingGroup", note));
        }
        (Some(old), Some(new)) if !old.formed && new.formed => {
            notices.push(normal("GroupFormed", format!("group {name} is formed")));
        }
        _ => {}
    }
    if let (Some(leader), Some(term)) = (&after.leader, after.term)
        && before.term != Some(term)
    {
        let note = format!("group {name}: {leader} leads in term {term}");
        notices.push(normal("LeaderElected", note));
    }
}
