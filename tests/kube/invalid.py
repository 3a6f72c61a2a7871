#!/usr/bin/env python3
"""invalid.py: resources that break a rule are refused by the API server, with words that help.

The API server only looks (server-side dry run); nothing is made but one paused cluster, for the
rules about changes.
"""

import copy

import mq
import operators
from mq import e2e

NAMESPACE = "invalid"

GOOD = {
    "apiVersion": "raftmq.io/v1alpha1",
    "kind": "RaftCluster",
    "metadata": {"name": "good", "namespace": NAMESPACE},
    "spec": {"paused": True, "storage": {"size": "10Gi"}, "groups": [{"name": "broker-a"}, {"name": "broker-b"}]},
}

# What is set in a copy of it, and what the answer must say: where, and what to do.
BAD = [
    ("an even number of replicas", {"spec.replicas": 2}, ["spec.replicas", "odd"]),
    ("more replicas than nine", {"spec.replicas": 11}, ["spec.replicas", "less than or equal to 9"]),
    ("a volume that is too small", {"spec.storage.size": "500Mi"}, ["spec.storage.size", "at least 1Gi"]),
    ("a size that is none", {"spec.storage.size": "much"}, ["spec.storage.size", "quantity"]),
    ("no size at all", {"spec.storage": {}}, ["spec.storage.size", "Required"]),
    ("a name that begins with a digit", {"metadata.name": "1st"}, ["begin with a letter"]),
    ("a name that is too long", {"metadata.name": "o" * 31}, ["metadata.name", "30 characters"]),
    ("a group name in upper case", {"spec.groups": [{"name": "BrokerA"}]}, ["spec.groups[0].name", "lower case"]),
    ("a group twice", {"spec.groups": [{"name": "broker-a"}, {"name": "broker-a"}]}, ["spec.groups[1]", "Duplicate"]),
    ("a key that the operator sets", {"spec.config": {"listenPort": "1"}}, ["spec.config", "listenPort", "operator sets it"]),
    ("a value with a line break", {"spec.config": {"deleteWhen": "04\nx=1"}}, ["spec.config", "line break"]),
    (
        "an election timeout near the heartbeat",
        {"spec.raft": {"heartbeatMs": 100, "electionTimeoutMinMs": 200, "electionTimeoutMaxMs": 400}},
        ["spec.raft", "three times"],
    ),
    (
        "election timeouts that are equal",
        {"spec.raft": {"heartbeatMs": 50, "electionTimeoutMinMs": 300, "electionTimeoutMaxMs": 300}},
        ["spec.raft", "electionTimeoutMaxMs"],
    ),
    (
        "a label of the operator",
        {"spec.podTemplate": {"metadata": {"labels": {"raftmq.io/cluster": "x"}}}},
        ["spec.podTemplate", "belong to the operator"],
    ),
]

# Changes of what exists.
BAD_CHANGES = [
    ("other replicas", {"spec.replicas": 5}, ["spec.replicas", "cannot be changed"]),
    ("a group that is gone", {"spec.groups": [{"name": "broker-a"}]}, ["spec.groups", "cannot be removed"]),
    ("another storage", {"spec.storage.size": "20Gi"}, ["spec.storage", "cannot be changed"]),
]


def run(checks):
    client = mq.api.Api()
    operators.define()
    mq.delete_namespace(client, NAMESPACE)
    mq.make_namespace(client, NAMESPACE)
    path = f"{mq.RESOURCES}/{NAMESPACE}/raftclusters"
    problem = refusal(client, "POST", path, GOOD)
    checks.check(problem is None, "the resource that is changed below is good itself", problem)
    for name, changes, words in BAD:
        judge(checks, name, refusal(client, "POST", path, changed(GOOD, changes)), words)
    made = client.call("POST", path, GOOD)
    for name, changes, words in BAD_CHANGES:
        judge(checks, name, refusal(client, "PUT", f"{path}/good", changed(made, changes)), words)
    mq.delete_namespace(client, NAMESPACE)


def changed(good, changes):
    """A resource with fields set; a key is the path of a field."""
    body = copy.deepcopy(good)
    for path, value in changes.items():
        *above, last = path.split(".")
        place = body
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return body


def refusal(client, method, path, body):
    """What the API server has against it, None when it takes it."""
    try:
        client.call(method, f"{path}?dryRun=All", body)
        return None
    except mq.api.ApiError as error:
        return str(error)


def judge(checks, name, problem, words):
    """Refused, and with these words."""
    missing = [word for word in words if problem is None or word.lower() not in problem.lower()]
    if problem is not None:
        print(f"{name}: {problem}")
    checks.check(not missing, f"refused with a clear message: {name}", f"the answer {problem!r} lacks {missing}")


if __name__ == "__main__":
    e2e.main(run)
