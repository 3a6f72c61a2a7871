//! The rules of a `RaftCluster` that the API server checks (CEL), each with the message a person
//! reads when it is broken. They replace an admission webhook.

use kube::core::{Message, Rule};

use crate::names::CLUSTER_NAME_LENGTH_MAX;

/// Keys of `broker.conf` that follow from the resource. A user value would break identity, peers,
/// probes or addresses.
pub const OWNED_CONFIG_KEYS: [&str; 24] = [
    "bindAddress",
    "brokerClusterName",
    "brokerIP1",
    "brokerId",
    "brokerName",
    "brokerRole",
    "dLegerGroup",
    "dLegerPeers",
    "dLegerSelfId",
    "embeddedNamesrvPort",
    "enableDLegerCommitLog",
    "httpBindAddress",
    "httpPort",
    "leaderServiceAddress",
    "listenPort",
    "namesrvAddr",
    "raftBindAddress",
    "raftElectionTimeoutMaxMs",
    "raftElectionTimeoutMinMs",
    "raftFormGroup",
    "raftHeartbeatIntervalMs",
    "raftPort",
    "storePathCommitLog",
    "storePathRootDir",
];

fn rule(expression: &str, message: &str) -> Rule {
    Rule::new(expression).message(message)
}

/// Part of the names of Services, whose label must begin with a letter; the longest child name is
/// `<cluster>-<group>-leader-ipv4`, and pods carry a label of the StatefulSet's name and a hash.
pub(super) fn cluster_name() -> Rule {
    let expression = format!(
        "self.metadata.name.size() <= {CLUSTER_NAME_LENGTH_MAX} && \
         self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
    );
    let message = format!(
        "metadata.name must begin with a letter, have only lower case letters, digits and '-', \
         and at most {CLUSTER_NAME_LENGTH_MAX} characters: it becomes part of the names of pods \
         and Services"
    );
    rule(&expression, &message)
}

pub(super) fn odd_replicas() -> Rule {
    rule(
        "self % 2 == 1",
        "replicas must be odd (1, 3, 5, 7 or 9): an even number tolerates no more failures than \
         one broker less",
    )
}

pub(super) fn same_replicas() -> Rule {
    rule(
        "self == oldSelf",
        "replicas cannot be changed in this version: create another RaftCluster",
    )
}

pub(super) fn group_name() -> Rule {
    rule(
        "self.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "a group name must begin with a letter and have only lower case letters, digits and '-'",
    )
}

pub(super) fn groups_stay() -> Rule {
    rule(
        "oldSelf.all(old, self.exists(group, group.name == old.name))",
        "a group cannot be removed or renamed in this version: its messages would be lost",
    )
}

pub(super) fn first_group_stays() -> Rule {
    rule(
        "self[0].name == oldSelf[0].name",
        "the first group must stay first: its pods are the name servers; append new groups",
    )
}

pub(super) fn same_storage() -> Rule {
    let expression = "quantity(string(self.size)).compareTo(quantity(string(oldSelf.size))) == 0 \
         && has(self.storageClassName) == has(oldSelf.storageClassName) \
         && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)";
    rule(
        expression,
        "storage cannot be changed in this version: volumes neither grow nor move",
    )
}

pub(super) fn size_suffices() -> Rule {
    rule(
        "isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('1Gi')) >= 0",
        "storage.size must be a quantity of at least 1Gi, such as 100Gi",
    )
}

pub(super) fn image_name() -> Rule {
    rule(
        "self.matches('^[^ \\t\\n]+$')",
        "image.name must be an image name without spaces, such as registry.example/raftmq:0.1.0",
    )
}

pub(super) fn config_keys() -> Rule {
    rule(
        "self.all(key, key.matches('^[A-Za-z][A-Za-z0-9]*$'))",
        "a key of config must be a key of RocketMQ's broker.conf: letters and digits only",
    )
}

pub(super) fn config_values() -> Rule {
    rule(
        "self.all(key, !self[key].contains('\\n') && !self[key].contains('\\r'))",
        "a value of config must not contain a line break",
    )
}

/// Names the offending keys, because the list of owned ones is long. One test for each key instead
/// of a loop: the API server's estimate of what `filter` and `join` may cost is beyond its budget.
pub(super) fn config_not_owned() -> Rule {
    let named = OWNED_CONFIG_KEYS.map(|key| format!("('{key}' in self ? ' {key}' : '')"));
    let message = format!(
        "'remove from config what the operator sets itself:' + {} + ' (timing: spec.raft)'",
        named.join(" + ")
    );
    let rule = OWNED_CONFIG_KEYS
        .map(|key| format!("!('{key}' in self)"))
        .join(" && ");
    Rule::new(rule).message(Message::Expression(message))
}

pub(super) fn heartbeats_fit() -> Rule {
    rule(
        "self.electionTimeoutMinMs >= 3 * self.heartbeatMs",
        "raft.electionTimeoutMinMs must be at least three times raft.heartbeatMs: one lost \
         heartbeat must not start an election",
    )
}

pub(super) fn timeouts_differ() -> Rule {
    rule(
        "self.electionTimeoutMaxMs >= self.electionTimeoutMinMs + self.heartbeatMs",
        "raft.electionTimeoutMaxMs must exceed raft.electionTimeoutMinMs by raft.heartbeatMs or \
         more: else brokers ask for votes at the same time and nobody wins",
    )
}

pub(super) fn labels_not_owned() -> Rule {
    rule(
        "self.all(key, !key.startsWith('raftmq.io/') && !key.startsWith('app.kubernetes.io/'))",
        "labels and annotations that begin with raftmq.io/ or app.kubernetes.io/ belong to the \
         operator",
    )
}
