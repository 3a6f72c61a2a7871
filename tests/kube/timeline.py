"""What happened to a group's leader, as seen from outside: which address its Service published,
which broker led in which term, which broker died. And the judgement of it.

All times are of one clock, and taken when a watch or status stream brought the news, so the way
from the API server or broker to here is part of what is measured.
"""

import collections
import os
import select
import threading
import time

import api
import status_stream

HTTP_PORT = 5557

# An address may be without a living broker for so long after its death, and a leader whose term is
# known may be unpublished for so long. Unit: seconds.
MOVE_MAX = 0.05

# Pause between two looks at what a watch will bring. Unit: seconds.
POLL = 0.002

Published = collections.namedtuple("Published", "at addresses kind")
Leads = collections.namedtuple("Leads", "at address term")
Stopped = collections.namedtuple("Stopped", "at address")
Died = collections.namedtuple("Died", "at address")
Lives = collections.namedtuple("Lives", "at address")


class Timeline:
    """Watches one group from `start` to `stop`."""

    def __init__(self, group):
        self.client = group.client
        self.group = group
        self.events = []
        self.slices = {}
        self.streams = {}
        self.leading = {}
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def __enter__(self):
        for target in (self.watch_slices, self.watch_pods):
            threading.Thread(target=target, daemon=True).start()
        wait_until("the timeline to see a leader and its address", 60, lambda: self.leader() and self.published())
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for stream in list(self.streams.values()):
            stream.stop()

    def add(self, event):
        """Notes an event."""
        with self.lock:
            self.events.append(event)

    def watch_slices(self):
        """Every slice of the leader's Service."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{self.group.namespace}/endpointslices"
        path += f"?labelSelector=kubernetes.io/service-name={self.group.leader_service}"
        for kind, found in self.client.watch(path, self.stopping):
            at = time.time()
            if kind == "RESET":
                self.slices = {}
                continue
            name = found["metadata"]["name"]
            if kind == "DELETED":
                self.slices.pop(name, None)
            else:
                self.slices[name] = found
            addresses = frozenset(address for one in self.slices.values() for address in ready_addresses(one))
            kinds = [one["metadata"].get("annotations", {}).get("raftmq.io/published") for one in self.slices.values()]
            self.add(Published(at, addresses, kinds[0] if len(kinds) == 1 else None))

    def watch_pods(self):
        """A status stream to every pod that has an address."""
        path = f"/api/v1/namespaces/{self.group.namespace}/pods?labelSelector={self.group.selector}"
        for kind, pod in api.Api().watch(path, self.stopping):
            if kind == "RESET":
                continue
            address = pod["status"].get("podIP")
            if kind == "DELETED":
                stream = self.streams.pop(address, None)
                if stream is not None:
                    stream.stop()
            elif address and address not in self.streams:
                stream = status_stream.StatusStream(address, HTTP_PORT, self.hear(address))
                self.streams[address] = stream
                stream.start()

    def hear(self, address):
        """What is done with a status of the broker at `address`."""

        def on_status(status):
            at = status["at"] if status else time.time()
            if status and address not in self.leading:
                self.add(Lives(at, address))
                self.leading[address] = None
            term = status["term"] if status and status["leads"] else None
            if term != self.leading.get(address):
                self.add(Stopped(at, address) if term is None else Leads(at, address, term))
                self.leading[address] = term
            if status is None:
                self.leading.pop(address, None)

        return on_status

    def follow_process(self, pid, address):
        """Notes the moment in which a broker's process ends."""
        descriptor = os.pidfd_open(pid)

        def wait():
            select.select([descriptor], [], [])
            self.add(Died(time.time(), address))
            os.close(descriptor)

        threading.Thread(target=wait, daemon=True).start()

    def leader(self):
        """(term, address) of the newest leader that is not known to have stopped, else None."""
        leaders = [(term, address) for address, term in list(self.leading.items()) if term is not None]
        return max(leaders, default=None)

    def published(self):
        """The address that is published now, None when there is not exactly one."""
        with self.lock:
            last = next((event for event in reversed(self.events) if isinstance(event, Published)), None)
        return next(iter(last.addresses)) if last is not None and len(last.addresses) == 1 else None

    def published_addresses(self):
        """Every address that was ever published."""
        with self.lock:
            return {address for event in self.events if isinstance(event, Published) for address in event.addresses}

    def await_switch(self, after_term, seconds=60):
        """Waits until a leader of a later term is published; (term, address)."""

        def switched():
            found = self.leader()
            return found if found and found[0] > after_term and self.published() == found[1] else None

        return wait_until(f"a leader after term {after_term} to be published", seconds, switched)

    def sorted_events(self):
        """All events in the order of their time."""
        with self.lock:
            return sorted(self.events, key=lambda event: event.at)


def ready_addresses(found):
    """The addresses of a slice that kube-proxy uses."""
    for endpoint in found.get("endpoints") or []:
        if endpoint.get("conditions", {}).get("ready", True):
            yield from endpoint["addresses"]


def wait_until(what, seconds, condition):
    """Waits until `condition()` is true and returns its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"gave up waiting for {what} after {seconds} s")
        time.sleep(POLL)


class Verdict:
    """The judgement of a list of events in the order of time."""

    def __init__(self, events):
        # (moment, addresses) whenever more than one was published.
        self.two = []
        # Seconds in which nothing living was published, one for each time that happened.
        self.dark = []
        # Seconds from a leader's term being known until it was published, one for each leader.
        self.unpublished = []
        self.stand_ins = 0
        self.published = None
        self.dead = set()
        self.dark_since = None
        self.leader = None
        self.leads_since = None
        for event in events:
            self.take(event)
            self.look(event.at)

    def take(self, event):
        """Goes on with one event."""
        match event:
            case Published(at, addresses, kind):
                self.published = addresses
                self.stand_ins += kind == "StandIn"
                if len(addresses) > 1:
                    self.two.append((at, sorted(addresses)))
            case Leads(at, address, term) if self.leader is None or term > self.leader[0]:
                self.no_longer_leads(at)
                self.leader = (term, address)
                self.leads_since = at
            case Stopped(at, address) | Died(at, address):
                if self.leader and self.leader[1] == address:
                    self.no_longer_leads(at)
                if isinstance(event, Died):
                    self.dead.add(address)
            case Lives(_, address):
                self.dead.discard(address)

    def no_longer_leads(self, at):
        """A leader that was never published counts when there was time enough to publish it."""
        if self.leads_since is not None and at - self.leads_since > MOVE_MAX:
            self.unpublished.append(at - self.leads_since)
        self.leads_since = None

    def look(self, at):
        """Whether something living, and the leader, is published after an event."""
        if self.published is None:
            return
        living = self.published - self.dead
        if not living and self.dark_since is None:
            self.dark_since = at
        elif living and self.dark_since is not None:
            self.dark.append(at - self.dark_since)
            self.dark_since = None
        if self.leads_since is not None and self.leader[1] in self.published:
            self.unpublished.append(at - self.leads_since)
            self.leads_since = None
