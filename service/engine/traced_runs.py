"""Notes inference runs in the traces of those of their requests that are sampled."""

from service.engine.request_scheduling import Batch
from service.tracing.request_trace import MAX_LINKS, Run


def note_in_traces(batch: Batch) -> None:
    """Note a run that has ended normally, before its requests are queued again."""
    sampled = [each for each in batch.requests if each.trace is not None]
    if not sampled:
        return
    ids = tuple(
        (each.trace.trace_id, each.trace.span_id)
        for each in sampled[: MAX_LINKS + 1]
        if each.trace is not None
    )
    for request in sampled:
        if request.trace is not None:
            request.trace.note_run(
                Run(
                    queued_at=request.queued_at,
                    started=batch.started,
                    trunk_ended=batch.trunk_ended,
                    ended=batch.ended,
                    has_head=request.sampling is not None,
                    rows=batch.rows,
                    requests=len(batch.requests),
                    sampled=ids,
                )
            )
