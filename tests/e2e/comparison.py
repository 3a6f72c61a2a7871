"""Results of compare.py as text: for people, and as Markdown for the documentation."""

import statistics

OURS, THEIRS = "RaftMQ", "RocketMQ"

# What RaftMQ is meant to reach.
SYNC_RATIO = 10
PRODUCER_RATIO = 5
IDLE_MIB = 40
IDLE_CPU_PERCENT = 1

# Share of a core for each of its threads from which a generator is taken to be the bottleneck.
GENERATOR_BUSY = 0.85

LATENCIES = ["mean ms", "p50", "p99", "p99.9"]
HEADINGS = ["case", "system", "msg/s", *LATENCIES, "failed", "CPU s", "µs/msg", "peak MiB", "ratio"]


def mebibytes(count):
    """Bytes as MiB."""
    return count / (1024 * 1024)


def number(value):
    """Three digits that count, without a power of ten; '-' when there is no value."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def median(runs, field):
    """Median over the rounds, None when the runs do not tell."""
    values = [getattr(run, field) for run in runs if getattr(run, field) is not None]
    return statistics.median(values) if values else None


def ratios(ours, theirs):
    """Messages per second of ours over theirs, round by round."""
    return [one.rate / other.rate for one, other in zip(ours, theirs)]


def ratio_text(values):
    """Median and the lowest and highest round."""
    return f"{statistics.median(values):.1f}x ({min(values):.1f}-{max(values):.1f})"


def rows(results):
    """Two rows of cells for each case; `results` is {case name: {system: [Run]}}."""
    table = []
    for case, runs in results.items():
        for system in (OURS, THEIRS):
            own = runs[system]
            busy = any(run.generator > GENERATOR_BUSY * run.threads for run in own)
            micros = statistics.median(1e6 * run.cpu / (run.rate * run.seconds) for run in own)
            table.append(
                [
                    case if system == OURS else "",
                    system,
                    f"{median(own, 'rate'):.0f}" + ("*" if busy else ""),
                    *(number(median(own, field)) for field in ("mean", "p50", "p99", "p999")),
                    str(sum(run.failed for run in own)),
                    number(median(own, "cpu")),
                    number(micros),
                    number(mebibytes(max(run.peak for run in own))),
                    ratio_text(ratios(runs[OURS], runs[THEIRS])) if system == OURS else "",
                ]
            )
    return table


def text_table(headings, table):
    """Columns under each other; the first two and the last to the left, numbers to the right."""
    widths = [max(len(row[place]) for row in [headings, *table]) for place in range(len(headings))]
    last = len(headings) - 1

    def line(row):
        cells = [
            cell.ljust(width) if place < 2 or place == last else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(headings), *(line(row) for row in table)])


def markdown_table(headings, table):
    """The same as Markdown."""
    edge = ["---" if place < 2 or place == len(headings) - 1 else "---:" for place in range(len(headings))]
    lines = [headings, edge, *table]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def idle_rows(idles):
    """A row for each kind of idleness and figure; `idles` is {when: {system: [Idle]}}."""
    table = []
    for when, by_system in idles.items():
        figures = {
            "memory, MiB": lambda broker: mebibytes(broker.memory),
            "of it anonymous, MiB": lambda broker: mebibytes(broker.anonymous),
            "CPU, % of one core": lambda broker: 100 * broker.cpu,
        }
        for name, figure in figures.items():
            cells = []
            for system in (OURS, THEIRS):
                values = sorted(figure(broker) for broker in by_system[system])
                cells.append("  ".join(number(value) for value in values))
            table.append([f"idle {when}: {name}", "each of three", *cells])
    return table


def meant(results, idles, sync_cases, producer_cases):
    """Lines that compare this run with what RaftMQ is meant to reach."""
    lines = []
    for cases, goal, what in (
        (sync_cases, SYNC_RATIO, "our generator"),
        (producer_cases, PRODUCER_RATIO, "RocketMQ's own producer"),
    ):
        for case in cases:
            if case in results:
                values = ratios(results[case][OURS], results[case][THEIRS])
                reached = statistics.median(values) >= goal
                lines.append(f"{case}, {what}: {goal}x meant, {ratio_text(values)}: {verdict(reached)}")
    for when, by_system in idles.items():
        memory = max(mebibytes(broker.memory) for broker in by_system[OURS])
        cpu = max(100 * broker.cpu for broker in by_system[OURS])
        lines.append(
            f"idle memory of a broker {when}: under {IDLE_MIB} MiB meant, at most {number(memory)} MiB: "
            f"{verdict(memory < IDLE_MIB)}"
        )
        lines.append(
            f"idle CPU of a broker {when}: under {IDLE_CPU_PERCENT} % of a core meant, at most {cpu:.2f} %: "
            f"{verdict(cpu < IDLE_CPU_PERCENT)}"
        )
    return lines


def verdict(reached):
    """How a figure is called."""
    return "reached" if reached else "not reached in this run"
