"""Check that an image gets the same bytes in any batch, from any worker, after any start.

    python -m benchmarks.repeatability models [--model fashion-mnist] [--record docs]

For the reference, every picture is sent alone to every route of one start of `python -m service`.
Then the service is started with one and two threads and one and two workers, each twice, and
concurrent clients send 1 to 64 pictures in random order, as files, numbers or a form. Each
prediction must equal the text of the reference, digit for digit. A request with differences is
reported at once, and the exit status is 1. Knows the service by its routes alone.
"""

import argparse
import itertools
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from benchmarks.machine import end_like_ctrl_c
from benchmarks.reliability.services import Service
from model.bundle.store import list_models
from model.images.preprocessing import InputSpec
from tests.pictures import Pixels, encode, form, instances, numbers
from training.experiments.experiment_record import Record

_STARTS = 2
_CLIENTS = 4
_PICTURES = 128
_MAX_PICTURES = 64  # in one request, the service's limit

Counts = Counter[str]
"""Counts of requests, predictions, differing predictions, and runs of up to 1.0 .. +Inf rows."""


class Reference:
    """The prediction of each picture that is sent alone, for every route."""

    def __init__(self, client: httpx.Client) -> None:
        (model,) = client.get("/models").json()["models"]
        self._pictures = _pictures(InputSpec(**model["input"]))
        alone = [{"files": form(encode(picture))} for picture in self._pictures]
        self.texts = {
            route: [_prediction_texts(client, route, body)[0] for body in alone]
            for route in _routes(analytic=len(model["dropout_layers"]) == 1)
        }

    def compare(self, client: httpx.Client, number: int) -> Counts:
        """Send one request and compare its predictions; the same number makes the same request.

        Small requests are as likely as large ones.
        """
        generator = np.random.default_rng(number)
        route = str(generator.choice(list(self.texts)))
        rows = generator.permutation(_PICTURES)[: int((_MAX_PICTURES + 1) ** generator.random())]
        texts = _prediction_texts(
            client, route, _body([self._pictures[row] for row in rows], generator)
        )
        differ = sum(text != self.texts[route][row] for text, row in zip(texts, rows, strict=True))
        if differ:
            sys.stderr.write(f"Request {number}, {route}: {differ} of {len(rows)} differ.\n")
        return Counter(requests=1, predictions=len(rows), differ=differ)


def main(arguments: list[str]) -> None:
    """Compare, print and record; the exit status is 1 if a prediction differs."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("models", type=Path, help="folder of bundles")
    parser.add_argument("--model", help="one of them; may be left out where there is one")
    parser.add_argument("--requests", type=int, default=10_000, help="of all starts together")
    parser.add_argument("--record", type=Path, help="folder of the notes")
    options = parser.parse_args(arguments)
    end_like_ctrl_c()
    found = [name for name in list_models(options.models) if options.model in {None, name}]
    if len(found) != 1:
        parser.error(
            f"--model: {options.models} holds {list_models(options.models)}; name one of them."
        )
    record, differ = measure(options.models / found[0], options.requests)
    record.print(Console())
    if options.record:
        flags = f"{options.models} --model {found[0]} --requests {options.requests}"
        record.add_to(options.record, f"python -m benchmarks.repeatability {flags}")
    sys.exit(1 if differ else 0)


def measure(model: Path, requests: int) -> tuple[Record, int]:
    """Spread the requests over all starts; return the record and the number of differences."""
    # Of each number of threads and of workers.
    counts_by_start = {each: Counts() for each in itertools.product((1, 2), (1, 2))}
    starts = list(counts_by_start) * _STARTS
    with _service(model, *starts[0]) as client:
        reference = Reference(client)
    for start, configuration in enumerate(starts):
        counts, mine = counts_by_start[configuration], range(start, requests, len(starts))
        with _service(model, *configuration) as client, ThreadPoolExecutor(_CLIENTS) as pool:
            for response_counts in pool.map(reference.compare, itertools.repeat(client), mine):
                counts.update(response_counts)
            counts.update(_batch_sizes(client))
    total = sum(counts_by_start.values(), Counts())
    columns = ("requests", "predictions", "+Inf", "differ")
    record = Record(
        name="repeatability",
        title="The same bytes in any batch, worker and start",
        setting=f"{model.name}, {total['requests']:,} requests of 1 to {_MAX_PICTURES} of "
        f"{_PICTURES} random pictures, {_CLIENTS} at once, {len(reference.texts)} routes, "
        f"{_STARTS} starts each; every prediction is compared with that of its picture alone, in "
        "an earlier start.",
        columns=("threads", "workers", "requests", "predictions", "inference runs", "differ"),
        rows=[
            (*map(str, configuration), *(f"{counts[column]:,}" for column in columns))
            for configuration, counts in counts_by_start.items()
        ],
        finding=f"{total['differ']:,} of {total['predictions']:,} predictions differ.",
        figure=_figure(counts_by_start),
    )
    return record, total["differ"]


@contextmanager
def _service(model: Path, threads: int, workers: int) -> Iterator[httpx.Client]:
    """Serve one model, yield a client once all workers have loaded it, and end the service."""
    options = f"--models {model.name} --threads {threads} --workers {workers}"
    options += " --max-body-bytes 100000000 --inference-timeout-seconds 600"
    with (
        tempfile.TemporaryDirectory() as folder,
        Service(Path(folder), model.parent.resolve(), 0, *options.split()) as service,
        # No connection is kept alive, so that any worker may accept the next request.
        httpx.Client(
            base_url=service.url, limits=httpx.Limits(max_keepalive_connections=0), timeout=600
        ) as client,
    ):
        yield client


def _pictures(spec: InputSpec) -> list[Pixels]:
    """Draw pictures of random pixels from coarse to fine, blurred to the model's size."""
    generator = np.random.default_rng(0)
    sides = generator.integers(2, min(spec.height, spec.width), _PICTURES, endpoint=True)
    coarse = [generator.integers(0, 256, (side, side, spec.channels), np.uint8) for side in sides]
    size = (spec.width, spec.height)
    return [np.asarray(Image.fromarray(pixels.squeeze()).resize(size)) for pixels in coarse]


def _routes(*, analytic: bool) -> list[str]:
    """Return the routes with their queries: seeds, numbers of samples and methods of all kinds."""
    generator = np.random.default_rng(0)
    routes = ["/predict", "/uncertainty", "/uncertainty?sets=aps&coverage=0.8&max_risk=0.05"]
    for samples in ("auto", 1, *generator.integers(2, 257, 3)):
        for design in ("", "") if samples == "auto" else ("", "&design=independent"):
            seed = generator.integers(2**63)
            routes.append(f"/uncertainty?samples={samples}&seed={seed}{design}")
    return [*routes, "/uncertainty?method=analytic"] if analytic else routes


def _body(pictures: Sequence[Pixels], generator: np.random.Generator) -> dict[str, Any]:
    """Make a random kind of body, as httpx takes it; in JSON each picture is a file or numbers."""
    if len(pictures) == 1 and generator.random() < 0.25:
        return {"content": encode(pictures[0]), "headers": {"Content-Type": "image/png"}}
    if generator.random() < 0.25:
        return {"files": form(*map(encode, pictures))}
    mixed = [numbers(each) if generator.random() < 0.5 else encode(each) for each in pictures]
    return {"content": instances(mixed), "headers": {"Content-Type": "application/json"}}


def _prediction_texts(client: httpx.Client, route: str, body: dict[str, Any]) -> list[str]:
    """Return the text of each prediction; numbers keep the digits that were sent."""
    content = client.post(route, **body).raise_for_status().json(parse_float=str)
    return [json.dumps(prediction) for prediction in content["predictions"]]


def _batch_sizes(client: httpx.Client) -> Counts:
    buckets = re.findall(r'_batch_rows_bucket{.*le="([^"]+)".*} (.+)', client.get("/metrics").text)
    return Counter({most: int(float(count)) for most, count in buckets})


def _figure(counts_by_start: dict[tuple[int, int], Counts]) -> Figure:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    sizes = [2.0**power for power in range(7)]
    for (threads, workers), counts in counts_by_start.items():
        shares = [counts[str(size)] / counts["+Inf"] for size in sizes]
        axes.plot(sizes, shares, "o-", label=f"threads {threads}, workers {workers}")
    axes.set(xlabel="images in one inference run, at most", ylabel="share of runs", ylim=(0, 1.05))
    axes.legend()
    return figure


if __name__ == "__main__":
    main(sys.argv[1:])
