//! The conditions of a `RaftCluster`, from what was found. Pure.
//!
//! | Condition | True means |
//! | --- | --- |
//! | Ready | all of the below as they should be; what `kubectl wait` waits for |
//! | Available | every group has a leader, and its Service leads there |
//! | Progressing | brokers are being created, formed into groups or joining |
//! | Degraded | a broker is unreachable, behind or without its data; or a name is taken |
//! | ConfigApplied | every pod runs with the newest specification |
//! | Paused | `spec.paused` |

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::validate::{Invalid, ValidCluster};

use super::group::{Assessment, Finding};
use super::objects::Taken;

/// Longest message; the API server allows 32 KiB, a person reads less. Unit: bytes.
const MESSAGE_BYTES_MAX: usize = 2048;

/// Reason of conditions when the specification cannot be built.
pub(super) const INVALID: &str = "InvalidSpec";

/// Status of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    fn name(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

struct Verdict {
    kind: &'static str,
    truth: Truth,
    reason: &'static str,
    message: String,
}

/// What all conditions shall say.
pub(super) struct Verdicts(Vec<Verdict>);

impl Verdicts {
    /// Whether condition Ready is true.
    pub(super) fn is_ready(&self) -> bool {
        let mut verdicts = self.0.iter();
        verdicts.any(|verdict| verdict.kind == "Ready" && verdict.truth == Truth::True)
    }
}

fn verdict(
    kind: &'static str,
    truth: Truth,
    reason: &'static str,
    message: impl Into<String>,
) -> Verdict {
    Verdict {
        kind,
        truth,
        reason,
        message: message.into(),
    }
}

/// The first reason, and all messages.
fn from_findings(kind: &'static str, truth: Truth, findings: &[&Finding]) -> Option<Verdict> {
    let first = findings.first()?;
    let messages: Vec<&str> = findings
        .iter()
        .map(|finding| finding.message.as_str())
        .collect();
    Some(verdict(kind, truth, first.reason, messages.join("; ")))
}

/// Judges a cluster that can be built.
pub(super) fn judge(cluster: &ValidCluster, groups: &[Assessment], taken: &[Taken]) -> Verdicts {
    let unavailable: Vec<&Finding> = groups
        .iter()
        .filter_map(|g| g.unavailable.as_ref())
        .collect();
    let progress: Vec<&Finding> = groups.iter().filter_map(|g| g.progress.as_ref()).collect();
    let taken: Vec<Finding> = taken.iter().map(name_taken).collect();
    let mut trouble: Vec<&Finding> = taken.iter().collect();
    trouble.extend(groups.iter().flat_map(|group| &group.trouble));
    // The gravest first: a lost disk needs a person, a lagging broker does not.
    trouble.sort_by_key(|finding| match finding.reason {
        "NameTaken" => 0,
        "DiskLost" => 1,
        "MemberUnreachable" => 2,
        _ => 3,
    });
    let available = from_findings("Available", Truth::False, &unavailable).unwrap_or_else(|| {
        verdict(
            "Available",
            Truth::True,
            "LeadersPublished",
            "every group has a leader",
        )
    });
    let progressing = from_findings("Progressing", Truth::True, &progress).unwrap_or_else(|| {
        verdict(
            "Progressing",
            Truth::False,
            "Settled",
            "nothing is under way",
        )
    });
    let degraded = from_findings("Degraded", Truth::True, &trouble)
        .unwrap_or_else(|| verdict("Degraded", Truth::False, "Healthy", "nothing is wrong"));
    // What keeps it from being ready, the cause before the effect.
    let mut obstacles = taken.iter().collect::<Vec<_>>();
    obstacles.extend(&progress);
    obstacles.extend(&unavailable);
    obstacles.extend(&trouble);
    obstacles.dedup();
    let ready = from_findings("Ready", Truth::False, &obstacles).unwrap_or_else(|| {
        verdict(
            "Ready",
            Truth::True,
            "AllMembersReady",
            "every broker of every group is ready",
        )
    });
    let paused = if cluster.spec.paused {
        let message = "spec.paused is true: nothing is changed; leaders are still published";
        verdict("Paused", Truth::True, "Paused", message)
    } else {
        verdict("Paused", Truth::False, "NotPaused", "spec.paused is false")
    };
    Verdicts(vec![
        ready,
        available,
        progressing,
        degraded,
        config_applied(groups),
        paused,
    ])
}

fn name_taken(taken: &Taken) -> Finding {
    Finding {
        reason: "NameTaken",
        message: format!(
            "{} belongs to {}: delete or rename it, or give this RaftCluster or its group another \
             name",
            taken.object, taken.owner
        ),
    }
}

fn config_applied(groups: &[Assessment]) -> Verdict {
    let outdated: Option<Vec<&Vec<String>>> =
        groups.iter().map(|group| group.outdated.as_ref()).collect();
    let Some(outdated) = outdated else {
        let message = "the StatefulSets have not reported yet";
        return verdict("ConfigApplied", Truth::Unknown, "Unknown", message);
    };
    let pods: Vec<&str> = outdated.into_iter().flatten().map(String::as_str).collect();
    if pods.is_empty() {
        let message = "every pod runs with the newest specification";
        return verdict("ConfigApplied", Truth::True, "Applied", message);
    }
    let message = format!(
        "{} run with an older specification: delete them one at a time, each after the one before \
         is ready, and the leader last",
        pods.join(", ")
    );
    verdict("ConfigApplied", Truth::False, "RestartNeeded", message)
}

/// Judges a specification that cannot be built. What runs goes on as it is.
pub(super) fn judge_invalid(invalid: &Invalid) -> Verdicts {
    let message = format!("{invalid}; nothing is changed until the specification is");
    Verdicts(vec![
        verdict("Ready", Truth::False, INVALID, message.clone()),
        verdict("Progressing", Truth::False, INVALID, message),
    ])
}

/// New conditions over the old ones: those that are not judged stay, and a time changes only with
/// the status it belongs to.
pub(super) fn merge(
    before: &[Condition],
    verdicts: Verdicts,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions = before.to_vec();
    for verdict in verdicts.0 {
        let mut message = verdict.message;
        if message.len() > MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        }
        let old = conditions
            .iter()
            .position(|condition| condition.type_ == verdict.kind);
        let same_since = old
            .and_then(|at| conditions.get(at))
            .filter(|condition| condition.status == verdict.truth.name())
            .map(|condition| condition.last_transition_time.clone());
        let condition = Condition {
            type_: verdict.kind.to_owned(),
            status: verdict.truth.name().to_owned(),
            reason: verdict.reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: same_since.unwrap_or(Time(now)),
        };
        match old.and_then(|at| conditions.get_mut(at)) {
            Some(slot) => *slot = condition,
            None => conditions.push(condition),
        }
    }
    conditions
}
