"""What was seen of the servers → tables and plots, as records for the notes. Measures nothing."""

from collections.abc import Sequence
from statistics import median

import numpy as np
from matplotlib.figure import Figure

from benchmarks.serving.comparison import Comparison, Plan, Subject
from benchmarks.serving.load import Stretch
from benchmarks.serving.peers import OURS, Kind
from training.experiments.record import Record

_NONE = ""
_KEPT_UP = 0.95  # of what was due, a few are still under way when the time is over


def records(comparison: Comparison, plan: Plan, setting: str) -> list[Record]:
    """Return throughput, what a server costs while it does nothing, and latency against load."""
    found = [_throughput(comparison, plan, setting), _footprint(comparison, setting)]
    return [*found, _latency(comparison, plan, setting)] if plan.rates else found


def rate(stretches: Sequence[Stretch]) -> float:
    """Return the median of good answers a second."""
    return median(each.rate for each in stretches)


def ratio(ours: Sequence[Stretch], theirs: Sequence[Stretch]) -> float:
    """Return our median over theirs: above 1 we answer more; infinite where they answer nothing."""
    theirs_a_second = rate(theirs)
    return rate(ours) / theirs_a_second if theirs_a_second else float("inf")


def _throughput(comparison: Comparison, plan: Plan, setting: str) -> Record:
    ours = next((each for each in comparison.subjects if each.peer.name == OURS), None)
    columns = [f"{each} connections" for each in plan.connections]
    rows = [
        (kind, subject.peer.title, *_rates(subject, ours, kind, plan), _latencies(subject, kind))
        for kind in plan.kinds
        for subject in _fastest_first(comparison.subjects, kind, plan)
    ]
    return Record(
        name="serving-throughput",
        title="Requests a second, beside other servers",
        setting=f"{setting} Answers a second, medians of {plan.rounds} rounds of "
        f"{plan.seconds:g} s; x is ours / theirs, above 1 where ours answers more. p50 and p99: "
        "milliseconds, of the most connections.",
        columns=("request", "server", *columns, "p50, p99"),
        rows=rows,
        finding=_finding(comparison, plan, ours),
        figure=_bars(comparison, plan),
    )


def _rates(subject: Subject, ours: Subject | None, kind: Kind, plan: Plan) -> list[str]:
    cells = []
    for connections in plan.connections:
        theirs = subject.stretches[kind, connections]
        cell = f"{rate(theirs):,.0f}"
        bad = sum(each.refused + each.lost for each in theirs)
        if bad:
            cell += f" ({bad} failed)"
        same = ours.stretches.get((kind, connections)) if ours else None
        if same and subject is not ours:
            cell += f" x{ratio(same, theirs):.2f}"
        cells.append(cell)
    return cells


def _latencies(subject: Subject, kind: Kind) -> str:
    most = max(connections for each, connections in subject.stretches if each == kind)
    stretches = subject.stretches[kind, most]
    return ", ".join(
        f"{median(getattr(each, p) for each in stretches):.1f}" for p in ("p50", "p99")
    )


def _fastest_first(subjects: Sequence[Subject], kind: Kind, plan: Plan) -> list[Subject]:
    most = plan.connections[-1]
    having = [each for each in subjects if (kind, most) in each.stretches]
    return sorted(having, key=lambda each: -rate(each.stretches[kind, most]))


def _finding(comparison: Comparison, plan: Plan, ours: Subject | None) -> str:
    sentences = []
    for kind in plan.kinds:
        if not (ours and (kind, plan.connections[-1]) in ours.stretches):
            continue
        told = []
        for subject in comparison.subjects:
            ratios = [
                ratio(ours.stretches[kind, each], subject.stretches[kind, each])
                for each in plan.connections
                if subject is not ours and (kind, each) in subject.stretches
            ]
            if ratios:
                told.append(f"{subject.peer.title} {min(ratios):.2f} to {max(ratios):.2f}")
        if told:
            sentences.append(f"{kind}, ours to theirs: {'; '.join(told)}.")
    sentences += [f"Left out: {title}, {why}." for title, why in comparison.missing.items()]
    return " ".join(sentences)


def _footprint(comparison: Comparison, setting: str) -> Record:
    subjects = comparison.subjects
    rows = [
        (
            each.peer.title,
            each.versions,
            f"{each.start_seconds:.1f} s",
            f"{median(each.memory):,.0f} MB",
            str(each.processes),
            each.peer.note,
        )
        for each in subjects
    ]
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(subjects)), layout="constrained")
    start, memory = figure.subplots(1, 2, sharey=True)
    titles = [each.peer.title for each in subjects]
    start.barh(titles, [each.start_seconds for each in subjects])
    start.set_xlabel("from start to the first answer, s")
    memory.barh(titles, [median(each.memory) for each in subjects])
    memory.set_xlabel("memory after load (PSS), MB")
    for axes in (start, memory):
        axes.grid(axis="x", alpha=0.3)
    start.invert_yaxis()
    return Record(
        name="serving-footprint",
        title="Start and memory, beside other servers",
        setting=f"{setting} Start: until the first right answer, on the server's core. Memory: of "
        "all processes after load, with shared pages counted once (PSS), median over rounds.",
        columns=("server", "versions", "start", "memory", "processes", "what to know"),
        rows=rows,
        finding="One start each: read the seconds as an order of magnitude.",
        figure=figure,
    )


def _latency(comparison: Comparison, plan: Plan, setting: str) -> Record:
    rows = []
    for subject in comparison.subjects:
        cells = []
        for asked in plan.rates:
            seen = subject.arrivals.get(asked, [])
            if not seen:
                cells.append(_NONE)
                continue
            p50, p99 = (median(each.latencies[p] for each in seen) for p in ("p50", "p99"))
            answered = median(each.answered for each in seen)
            kept = "" if answered > _KEPT_UP else f" ({100 * answered:.0f} % answered)"
            cells.append(f"{p50:.1f}, {p99:.1f}{kept}")
        rows.append((subject.peer.title, subject.open_kind, *cells))
    lateness = [
        each.lateness
        for subject in comparison.subjects
        for every in subject.arrivals.values()
        for each in every
    ]
    return Record(
        name="serving-latency",
        title="Latency against load, beside other servers",
        setting=f"{setting} Requests arrive at random times at the rate above the column (an open "
        f"loop), whether or not answers come; p50 and p99 in milliseconds from when a request was "
        f"due, medians of {plan.rounds} rounds of {plan.seconds:g} s.",
        columns=("server", "request", *(f"{each:,.0f}/s" for each in plan.rates)),
        rows=rows,
        finding=f"99 of 100 requests were sent within {median(lateness):.2f} ms of when they were "
        f"due (median of all stretches; the worst: {max(lateness):.2f} ms).",
        figure=_curves(comparison),
    )


def _bars(comparison: Comparison, plan: Plan) -> Figure:
    kinds = [each for each in plan.kinds if _fastest_first(comparison.subjects, each, plan)]
    heights = [1 + len(_fastest_first(comparison.subjects, kind, plan)) for kind in kinds]
    figure = Figure(figsize=(8, 0.8 + 0.34 * sum(heights)), layout="constrained")
    all_axes = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=heights)[:, 0]
    shown = plan.connections[len(plan.connections) // 2]
    for axes, kind in zip(all_axes, kinds, strict=True):
        subjects = _fastest_first(comparison.subjects, kind, plan)
        rounds = [[one.rate for one in each.stretches[kind, shown]] for each in subjects]
        middle = np.array([median(each) for each in rounds])
        spread = [middle - [min(each) for each in rounds], [max(each) for each in rounds] - middle]
        axes.barh(
            [each.peer.title for each in subjects],
            middle,
            xerr=np.array(spread),
            color=["C1" if each.peer.name.startswith(OURS) else "C0" for each in subjects],
        )
        axes.invert_yaxis()
        axes.set_title(kind, loc="left", fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    all_axes[-1].set_xlabel(
        f"answers a second, {shown} connections; bars: slowest to fastest round"
    )
    return figure


def _curves(comparison: Comparison) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    both = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, percentile in zip(both, ("p50", "p99"), strict=True):
        for subject in comparison.subjects:
            asked = sorted(subject.arrivals)
            values = [
                median(one.latencies[percentile] for one in subject.arrivals[each])
                for each in asked
            ]
            width = 2.5 if subject.peer.name == OURS else 1.2
            axes.plot(asked, values, "o-", ms=3, lw=width, label=subject.peer.title)
        axes.set(xscale="log", yscale="log", xlabel="requests a second", title=percentile)
        axes.grid(alpha=0.3)
    both[0].set_ylabel("latency, ms")
    both[1].legend(fontsize="small")
    return figure
