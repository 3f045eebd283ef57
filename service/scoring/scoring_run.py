"""One run of `python -m service.score`: images -> batches -> processes -> lines, in order."""

import asyncio
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.container_resources import available_processors
from model.errors import BundleError, SettingsError
from model.graphs.execution_provider import why_provider_is_unusable
from service.scoring.batch_queue import BatchQueue
from service.scoring.image_file import ImageReference
from service.scoring.image_sources import FoundImages, find_images
from service.scoring.lines_in_input_order import OrderedWriter
from service.scoring.model_choice import candidate_bundles
from service.scoring.output_file import OutputFile, drop_lines
from service.scoring.parquet_output import require_pyarrow, states_in, write_parquet
from service.scoring.progress import Progress
from service.scoring.result_lines import LineLayout, State
from service.scoring.run_outcome import Outcome, count_images
from service.scoring.run_settings_file import begin_or_continue, settings_file
from service.scoring.score_settings import OutputFormat, ScoreSettings
from service.scoring.scoring_process_messages import ModelFacts
from service.scoring.scoring_process_pool import LANES, ScoringProcessPool
from service.scoring.sort_output_by_field import sort_output
from service.scoring.uncalibrated_model_check import uncalibrated_warning

_LINES_SUFFIX = ".lines.jsonl"
_MAX_AHEAD = 4
"""Batches that may be done before an earlier one is, for each process."""


async def run(settings: ScoreSettings) -> Outcome:
    """Score all images that have no line yet.

    Raises:
        DropserveError: the run cannot begin, or not go on; its message is one sentence.
    """
    if settings.format is OutputFormat.PARQUET:
        require_pyarrow()
    if (problem := why_provider_is_unusable(settings.provider)) is not None:
        raise SettingsError(problem)
    outputs = (settings.output, settings_file(settings.output), _lines_file(settings))
    found = await asyncio.to_thread(find_images, settings.paths, outputs)
    processes = settings.processes or available_processors()
    async with await _open_pool(settings, processes) as pool:
        model = pool.facts
        if (warning := uncalibrated_warning(settings, model)) is not None:
            sys.stderr.write(f"{warning}\n")
        layout = LineLayout.of(settings, model.class_names)
        return await _score_into_output(settings, found, pool, model, layout)


def _lines_file(settings: ScoreSettings) -> Path:
    """Return the file to which lines are appended: the output, or one beside a Parquet file."""
    output = settings.output
    is_parquet = settings.format is OutputFormat.PARQUET
    return output.with_name(output.name + _LINES_SUFFIX) if is_parquet else output


async def _open_pool(settings: ScoreSettings, processes: int) -> ScoringProcessPool:
    """Open the first bundle that passes its self-test, as a server does."""
    *candidates, last = candidate_bundles(settings)
    for bundle in candidates:
        try:
            return await ScoringProcessPool.open(settings, bundle, processes)
        except BundleError as error:
            sys.stderr.write(f"Warning: {error} An earlier version scores instead.\n")
    return await ScoringProcessPool.open(settings, last, processes)


async def _score_into_output(
    settings: ScoreSettings,
    found: FoundImages,
    pool: ScoringProcessPool,
    model: ModelFacts,
    layout: LineLayout,
) -> Outcome:
    is_parquet = settings.format is OutputFormat.PARQUET
    output, working = settings.output, _lines_file(settings)
    begin_or_continue(settings, model, working)
    in_table = states_in(output, layout) if is_parquet else {}
    retried: set[str] = set()
    if settings.retry_errors:
        retried = _forget_errors(working, layout, in_table, found)
    outcome = Outcome(found, is_calibrated=model.calibrated)
    with OutputFile(working, layout) as file:
        states = in_table | file.states
        states = {name: state for name, state in states.items() if name not in retried}
        outcome.add_earlier(states.values())
        images = [image for image in found.images if image.name not in states]
        if images:
            sys.stderr.write(
                f"Scoring {count_images(len(images))} with {model.name} version {model.version}.\n"
            )
        await _score(settings, images, pool, file, outcome)
        file.flush()
        if is_parquet:
            if settings.sort is not None or working.stat().st_size:
                write_parquet(output, working, layout, settings.sort)
            working.unlink()
        elif settings.sort is not None:
            sort_output(output, layout, settings.sort)
    return outcome


def _forget_errors(
    working: Path, layout: LineLayout, in_table: Mapping[str, State], found: FoundImages
) -> set[str]:
    """Drop the errors of the images that are named from the lines; return the names of these.

    After an interruption they have no line, so they are scored in any case. Rows of a Parquet file
    stay until lines take their place.

    in_table: the images in that file.
    """
    with OutputFile(working, layout) as file:
        states = {**in_table, **file.states}
        is_in_lines = any(state is State.FAILED for state in file.states.values())
    named = {image.name for image in found.images}
    failed = {name for name in named if states.get(name) is State.FAILED}
    if failed and is_in_lines:
        drop_lines(working, layout, failed)
    return failed


async def _score(
    settings: ScoreSettings,
    images: Sequence[ImageReference],
    pool: ScoringProcessPool,
    file: OutputFile,
    outcome: Outcome,
) -> None:
    await pool.start_others(math.ceil(len(images) / settings.batch_size))
    started = time.perf_counter()
    with Progress(len(images)) as progress:
        writer = OrderedWriter(file, outcome, progress, _MAX_AHEAD * pool.size)
        batches = BatchQueue(images, settings.batch_size)
        queue = iter(enumerate(batches))

        async def lane(number: int) -> None:
            for index, batch in queue:
                await writer.wait_for_room(index)
                begun = time.perf_counter()
                scored = await pool.score(number, batch)
                batches.note(len(batch), time.perf_counter() - begun)
                await writer.write(index, scored, len(batch))

        try:
            async with asyncio.TaskGroup() as lanes:
                for number in range(pool.size):
                    for _ in range(LANES):
                        lanes.create_task(lane(number))
        except* Exception as errors:
            raise errors.exceptions[0] from None
    outcome.seconds = time.perf_counter() - started
