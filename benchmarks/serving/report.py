"""Makes tables and plots of a comparison, as records for docs/experiments.md. Measures nothing."""

from collections.abc import Sequence
from statistics import median

import numpy as np
from matplotlib.figure import Figure

from benchmarks.serving.comparison import Comparison, MeasuredServer, Plan
from benchmarks.serving.load import ClosedLoopResult
from benchmarks.serving.open_loop import late_note
from benchmarks.serving.peers import OURS, Kind
from training.experiments.experiment_record import Record

_NONE = ""
_SUSTAINED = 0.95  # of the due requests; a few are still in flight when the time is over


def records(comparison: Comparison, plan: Plan, setting: str) -> list[Record]:
    """Return the records of throughput, of start and memory, and of latency against load."""
    found = [_throughput(comparison, plan, setting), _footprint(comparison, setting)]
    return [*found, _latency(comparison, plan, setting)] if plan.rates else found


def rate(results: Sequence[ClosedLoopResult]) -> float:
    """Return the median of the responses with status 200 per second."""
    return median(each.rate for each in results)


def ratio(ours: Sequence[ClosedLoopResult], theirs: Sequence[ClosedLoopResult]) -> float:
    """Return our median / theirs, above 1 where ours answers more; infinite where theirs is 0."""
    their_rate = rate(theirs)
    return rate(ours) / their_rate if their_rate else float("inf")


def _throughput(comparison: Comparison, plan: Plan, setting: str) -> Record:
    ours = next((each for each in comparison.servers if each.peer.name == OURS), None)
    columns = [f"{each} connections" for each in plan.connections]
    rows = [
        (
            kind,
            server.peer.title,
            *_rates(server, ours, kind, plan),
            _latencies(server, kind),
        )
        for kind in plan.kinds
        for server in _fastest_first(comparison.servers, kind, plan)
    ]
    return Record(
        name="serving-throughput",
        title="Requests a second, beside other servers",
        setting=f"{setting} Responses per second, medians of {plan.rounds} rounds of "
        f"{plan.seconds:g} s; x is ours / theirs, above 1 where ours answers more. p50 and p99: "
        "milliseconds, of the most connections.",
        columns=("request", "server", *columns, "p50, p99"),
        rows=rows,
        finding=_finding(comparison, plan, ours),
        figure=_bars(comparison, plan),
    )


def _rates(
    server: MeasuredServer, ours: MeasuredServer | None, kind: Kind, plan: Plan
) -> list[str]:
    cells = []
    for connections in plan.connections:
        theirs = server.closed_loop[kind, connections]
        cell = f"{rate(theirs):,.0f}"
        failed = sum(each.refused + each.lost for each in theirs)
        if failed:
            cell += f" ({failed} failed)"
        our_results = ours.closed_loop.get((kind, connections)) if ours else None
        if our_results and server is not ours:
            cell += f" x{ratio(our_results, theirs):.2f}"
        cells.append(cell)
    return cells


def _latencies(server: MeasuredServer, kind: Kind) -> str:
    most = max(connections for each, connections in server.closed_loop if each == kind)
    results = server.closed_loop[kind, most]
    return ", ".join(f"{median(getattr(each, p) for each in results):.1f}" for p in ("p50", "p99"))


def _fastest_first(
    servers: Sequence[MeasuredServer], kind: Kind, plan: Plan
) -> list[MeasuredServer]:
    most = plan.connections[-1]
    measured = [each for each in servers if (kind, most) in each.closed_loop]
    return sorted(measured, key=lambda each: -rate(each.closed_loop[kind, most]))


def _finding(comparison: Comparison, plan: Plan, ours: MeasuredServer | None) -> str:
    sentences = []
    for kind in plan.kinds:
        if not (ours and (kind, plan.connections[-1]) in ours.closed_loop):
            continue
        ratios_by_server = []
        for server in comparison.servers:
            ratios = [
                ratio(
                    ours.closed_loop[kind, each],
                    server.closed_loop[kind, each],
                )
                for each in plan.connections
                if server is not ours and (kind, each) in server.closed_loop
            ]
            if ratios:
                ratios_by_server.append(
                    f"{server.peer.title} {min(ratios):.2f} to {max(ratios):.2f}"
                )
        if ratios_by_server:
            sentences.append(f"{kind}, ours to theirs: {'; '.join(ratios_by_server)}.")
    sentences += [f"Left out: {title}, {why}." for title, why in comparison.left_out.items()]
    return " ".join(sentences)


def _footprint(comparison: Comparison, setting: str) -> Record:
    servers = comparison.servers
    rows = [
        (
            each.peer.title,
            each.versions,
            f"{each.start_seconds:.1f} s",
            f"{median(each.memory):,.0f} MB",
            str(each.processes),
            each.peer.note,
        )
        for each in servers
    ]
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(servers)), layout="constrained")
    start, memory = figure.subplots(1, 2, sharey=True)
    titles = [each.peer.title for each in servers]
    start.barh(titles, [each.start_seconds for each in servers])
    start.set_xlabel("from start to the first response, s")
    memory.barh(titles, [median(each.memory) for each in servers])
    memory.set_xlabel("memory after load (PSS), MB")
    for axes in (start, memory):
        axes.grid(axis="x", alpha=0.3)
    start.invert_yaxis()
    return Record(
        name="serving-footprint",
        title="Start and memory, beside other servers",
        setting=f"{setting} Start: until the first right response, on the server's core. Memory: "
        "of all processes after load, with shared pages counted once (PSS), median over rounds.",
        columns=("server", "versions", "start", "memory", "processes", "what to know"),
        rows=rows,
        finding="One start each: read the seconds as an order of magnitude.",
        figure=figure,
    )


def _latency(comparison: Comparison, plan: Plan, setting: str) -> Record:
    rows = []
    for server in comparison.servers:
        cells = []
        for offered in plan.rates:
            results = server.open_loop.get(offered, [])
            if not results:
                cells.append(_NONE)
                continue
            p50, p99 = (median(each.latencies[p] for each in results) for p in ("p50", "p99"))
            answered = median(each.answered for each in results)
            note = "" if answered > _SUSTAINED else f" ({100 * answered:.0f} % answered)"
            cells.append(f"{p50:.1f}, {p99:.1f}{note}{late_note(results)}")
        rows.append((server.peer.title, server.open_kind, *cells))
    lateness = [
        each.lateness
        for server in comparison.servers
        for every in server.open_loop.values()
        for each in every
    ]
    return Record(
        name="serving-latency",
        title="Latency against load, beside other servers",
        setting=f"{setting} Requests arrive at random times at the rate above the column (an open "
        f"loop), whether or not responses come; p50 and p99 in milliseconds from when a request "
        f"was due, medians of {plan.rounds} rounds of {plan.seconds:g} s.",
        columns=("server", "request", *(f"{each:,.0f}/s" for each in plan.rates)),
        rows=rows,
        finding=f"The load generator came to 99 of 100 requests within {median(lateness):.2f} ms "
        f"of when they were due (median of all measurements; the worst: {max(lateness):.2f} ms).",
        figure=_curves(comparison),
    )


def _bars(comparison: Comparison, plan: Plan) -> Figure:
    kinds = [each for each in plan.kinds if _fastest_first(comparison.servers, each, plan)]
    heights = [1 + len(_fastest_first(comparison.servers, kind, plan)) for kind in kinds]
    figure = Figure(figsize=(8, 0.8 + 0.34 * sum(heights)), layout="constrained")
    all_axes = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=heights)[:, 0]
    connections = plan.connections[len(plan.connections) // 2]
    for axes, kind in zip(all_axes, kinds, strict=True):
        servers = _fastest_first(comparison.servers, kind, plan)
        rounds = [[one.rate for one in each.closed_loop[kind, connections]] for each in servers]
        middle = np.array([median(each) for each in rounds])
        spread = [middle - [min(each) for each in rounds], [max(each) for each in rounds] - middle]
        axes.barh(
            [each.peer.title for each in servers],
            middle,
            xerr=np.array(spread),
            color=["C1" if each.peer.name.startswith(OURS) else "C0" for each in servers],
        )
        axes.invert_yaxis()
        axes.set_title(kind, loc="left", fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    all_axes[-1].set_xlabel(
        f"responses per second, {connections} connections; bars: slowest to fastest round"
    )
    return figure


def _curves(comparison: Comparison) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    both = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, percentile in zip(both, ("p50", "p99"), strict=True):
        for server in comparison.servers:
            rates = sorted(server.open_loop)
            values = [
                median(one.latencies[percentile] for one in server.open_loop[each])
                for each in rates
            ]
            width = 2.5 if server.peer.name == OURS else 1.2
            axes.plot(rates, values, "o-", ms=3, lw=width, label=server.peer.title)
        axes.set(xscale="log", yscale="log", xlabel="requests per second", title=percentile)
        axes.grid(alpha=0.3)
    both[0].set_ylabel("latency, ms")
    both[1].legend(fontsize="small")
    return figure
