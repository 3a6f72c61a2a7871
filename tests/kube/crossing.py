#!/usr/bin/env python3
"""crossing.py: two clusters in one namespace and one in another, with groups of equal names: none
sees messages, brokers or endpoints of another."""

import json
import time

import mq
import operators
import remoting  # beside cluster.py of e2e
from mq import e2e

NAMESPACES = ["crossing-a", "crossing-b"]
GROUPS = ["broker-a", "broker-b"]

# (namespace, name, replicas): one that can fail over, and two that are small.
CLUSTERS = [("crossing-a", "orders", 3), ("crossing-a", "orders-2", 1), ("crossing-b", "orders", 1)]

TOPIC = "same"
MESSAGES = 50


def run(checks):
    client = mq.api.Api()
    with operators.running():
        for namespace in NAMESPACES:
            mq.delete_namespace(client, namespace)
        clusters = [mq.RaftCluster(namespace, name).make(GROUPS, replicas) for namespace, name, replicas in CLUSTERS]
        for cluster in clusters:
            cluster.await_ready()
        groups = [group for cluster in clusters for group in cluster.groups().values()]
        for group in groups:
            judge_endpoint(checks, group)
        for cluster in clusters:
            judge_route(checks, cluster)
        judge_messages(checks, groups)
        judge_failover(checks, groups)
        judge_deletion(checks, clusters)
        for namespace in NAMESPACES:
            mq.delete_namespace(client, namespace)


def title(group):
    """The group in a line of output."""
    return f"{group.namespace}/{group.base}"


def endpoint(group):
    """(addresses, resourceVersion) of the slices of the leader's Service."""
    path = f"/apis/discovery.k8s.io/v1/namespaces/{group.namespace}/endpointslices"
    slices = group.client.get(f"{path}?labelSelector=kubernetes.io/service-name={group.leader_service}")["items"]
    addresses = [address for one in slices for entry in one.get("endpoints") or [] for address in entry["addresses"]]
    return addresses, [one["metadata"]["resourceVersion"] for one in slices]


def judge_endpoint(checks, group):
    """The published address is the group's own leader."""
    leader = group.await_leader()
    address = group.pods()[leader]["status"]["podIP"]
    found, _ = endpoint(group)
    checks.check(found == [address], f"{title(group)}: its own leader is published", f"{found}, not {address}")
    member_pods = [member["pod"] for entry in group.cluster.status()["groups"] if entry["name"] == group.name for member in entry["members"]]
    checks.check(sorted(member_pods) == sorted(group.pods()), f"{title(group)}: its members are its pods", member_pods)


def judge_route(checks, cluster):
    """The name server knows the brokers of its own cluster, and all of them."""
    connection = remoting.Connection(cluster.name_server())
    header, body = connection.call(106, {})  # cluster info
    connection.close()
    brokers = json.loads(body)["brokerAddrTable"] if header["code"] == 0 else {}
    own = {address.split(":")[0] for group in cluster.groups().values() for address in group.addresses()}
    own |= {group.service_address() for group in cluster.groups().values()}
    found = {address.split(":")[0] for broker in brokers.values() for address in broker["brokerAddrs"].values()}
    name = f"{cluster.namespace}/{cluster.name}: its name server knows its own {len(GROUPS)} groups only"
    checks.check(sorted(brokers) == GROUPS and found <= own, name, f"{sorted(brokers)} at {sorted(found - own)}")


def judge_messages(checks, groups):
    """Each group gets messages under one topic name and holds exactly its own."""
    sent = {}
    for group in groups:
        sender = remoting.Client([f"{group.service_address()}:{mq.PORT_REMOTING}"])
        keys = [f"{title(group)}-{number}" for number in range(MESSAGES)]
        for key in keys:
            sender.send(TOPIC, 0, key)
        sent[title(group)] = set(keys)
        sender.next_replica()
    with e2e.temporary_folder() as folder:
        for group in groups:
            group.folder = folder
            group.await_caught_up()
            for address in group.addresses():
                found = {key for key, _, _ in e2e.consume_all(group, TOPIC, 4, address)}
                name = f"{title(group)} at {address}: its own {MESSAGES} messages and no other"
                checks.check(found == sent[title(group)], name, sorted(found ^ sent[title(group)])[:3])


def judge_failover(checks, groups):
    """A leader that dies moves its own endpoint and no other."""
    first, *others = groups
    before = {title(group): endpoint(group) for group in groups}
    leader = first.await_leader()
    first.signal(leader)

    def moved():
        addresses, _ = endpoint(first)
        now = first.leader()
        return now and now != leader and addresses == [first.pods()[now]["status"]["podIP"]]

    e2e.await_that("the endpoint to move", e2e.LEADER_TIMEOUT, moved)
    time.sleep(1)  # a wrong write would come late
    for group in others:
        now = endpoint(group)
        checks.check(now == before[title(group)], f"{title(group)}: untouched by another group's failover", f"{before[title(group)]} became {now}")


def judge_deletion(checks, clusters):
    """A cluster that is deleted takes nothing of another along."""
    first, *others = clusters
    before = {cluster.path: uids(cluster) for cluster in others}
    first.delete()
    pods = f"/api/v1/namespaces/{first.namespace}/pods?labelSelector=raftmq.io/cluster%3D{first.name}"
    e2e.await_that("its pods to be gone", mq.GONE_TIMEOUT, lambda: not first.client.get(pods)["items"])
    for cluster in others:
        now = uids(cluster)
        checks.check(now == before[cluster.path], f"{cluster.namespace}/{cluster.name}: whole after another was deleted", now)


def uids(cluster):
    """The pods of a cluster, by uid."""
    return sorted(pod["metadata"]["uid"] for group in cluster.groups().values() for pod in group.pods().values())


if __name__ == "__main__":
    e2e.main(run)
