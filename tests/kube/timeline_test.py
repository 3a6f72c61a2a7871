#!/usr/bin/env python3
"""timeline_test.py: that the judgement of a timeline notices what it is there for."""

from mq import e2e
from timeline import Died, Leads, Lives, Published, Stopped, Verdict


def published(at, *addresses):
    """An endpoint with these addresses from `at` on."""
    return Published(at, frozenset(addresses), "Leader")


# A leader that dies and is replaced: a stand-in after 10 ms, elected 400 ms later, published 20 ms
# after that.
GOOD = [
    published(0.0, "a"),
    Leads(0.1, "a", 1),
    Died(1.0, "a"),
    published(1.01, "b"),
    Leads(1.4, "c", 2),
    published(1.42, "c"),
    Lives(2.0, "a"),
]


def near(found, wanted):
    """Whether lists of seconds are equal but for rounding."""
    return len(found) == len(wanted) and all(abs(one - other) < 1e-6 for one, other in zip(found, wanted))


def run(checks):
    verdict = Verdict(GOOD)
    checks.check(not verdict.two, "one address at a time is one", verdict.two)
    checks.check(near(verdict.dark, [0.01]), "dark until the stand-in", verdict.dark)
    checks.check(near(verdict.unpublished, [0.0, 0.02]), "unpublished until the move", verdict.unpublished)

    verdict = Verdict([*GOOD, published(3.0, "c", "a"), published(3.1, "a")])
    checks.check([sorted(pair[1]) for pair in verdict.two] == [["a", "c"]], "two addresses are noticed", verdict.two)

    verdict = Verdict([*GOOD, published(3.0), published(3.2, "c")])
    checks.check(near(verdict.dark, [0.01, 0.2]), "an empty endpoint is noticed", verdict.dark)

    without_stand_in = [event for event in GOOD if event.at != 1.01]
    verdict = Verdict(without_stand_in)
    checks.check(near(verdict.dark, [0.42]), "a dead address that stays is noticed", verdict.dark)

    verdict = Verdict([*GOOD[:4], Leads(1.4, "c", 2), Stopped(1.7, "c"), Leads(2.0, "b", 3)])
    checks.check(near(verdict.unpublished, [0.0, 0.3, 0.0]), "a leader that never was published is noticed", verdict.unpublished)

    verdict = Verdict([*GOOD[:4], Leads(1.4, "c", 2), Leads(1.41, "a", 1), published(1.42, "c")])
    checks.check(near(verdict.unpublished, [0.0, 0.02]), "a leader of the past does not count", verdict.unpublished)


if __name__ == "__main__":
    e2e.main(run)
