#!/usr/bin/env python3
"""quorum.py: what a leader says of itself while its followers are paused (SIGSTOP).

It keeps its role, since it hears of no other leader; but it has no quorum and says so within a few
seconds, in its status and its metrics, and is not ready soon after. When the followers go on, so
does everything.
"""

import os
import signal
import time

import cluster as e2e

# A leader that has not heard from a quorum for two seconds says so. Unit: seconds.
NOTICED_MAX = 4
# A node whose group has had no quorum for five seconds more is not ready. Unit: seconds.
NOT_READY_MAX = 10


def run(checks):
    with e2e.running_cluster() as cluster:
        name = cluster.await_leader()
        leader = cluster.nodes()[name]["httpAddress"]
        others = [node for other, node in cluster.nodes().items() if other != name]
        ask = lambda: e2e.http_status(leader)
        e2e.await_that("the leader to have a quorum", NOTICED_MAX, lambda: ask()["hasQuorum"])
        claims = [node["name"] for node in others if e2e.http_status(node["httpAddress"])["hasQuorum"]]
        checks.check(not claims, "only the leader says that it has a quorum", claims)
        begin = time.monotonic()
        for node in others:
            os.kill(node["pid"], signal.SIGSTOP)
        try:
            e2e.await_that("the lost quorum to be told", NOTICED_MAX, lambda: not ask()["hasQuorum"])
            told = time.monotonic() - begin
            e2e.await_that("the leader not to be ready", NOT_READY_MAX, lambda: not ask()["ready"])
            print(f"quorum lost: told after {told:.1f} s, not ready after {time.monotonic() - begin:.1f} s")
            checks.check(True, "a leader without a quorum says so, and is not ready", ask()["notReadyReason"])
        finally:
            for node in others:
                os.kill(node["pid"], signal.SIGCONT)
        again = lambda: any(
            status["hasQuorum"] and status["ready"]
            for status in (e2e.http_status(node["httpAddress"]) for node in cluster.nodes().values())
        )
        e2e.await_that("a leader with a quorum again", NOT_READY_MAX, again)
        checks.check(True, "it comes back")


if __name__ == "__main__":
    e2e.main(run)
