"""Chooses images of a scored pool: by typicality, then by worth, no picture twice.

Reads no file: the samples of the shortlist come from a function.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from model.errors import SettingsError
from training.data.image_inspection import Inspected
from training.selection.acquisition import acquisition_values, rank
from training.selection.batchbald import choose_batch
from training.selection.distinct_images import first_distinct
from training.selection.joint_label_configurations import Probabilities
from training.selection.pool_scores import PoolScores
from training.selection.selection_config import BATCHBALD, SelectionConfig

logger = logging.getLogger(__name__)

_SHORTLIST_FACTOR = 10
_SHORTLIST_BYTES = 2**30

Rows = NDArray[np.int64]
Sampler = Callable[[Rows], Probabilities]
"""Rows of the pool [S] -> the probabilities of each sample, float32 [S, K, T]."""


@dataclass(frozen=True)
class Chosen:
    """The chosen images, most worth first.

    Attributes:
        scores: of the images, in that order.
        values: float64 [count], the acquisition value of each.
    """

    scores: PoolScores
    values: NDArray[np.float64]


def shortlist_size(config: SelectionConfig, classes: int) -> int:
    """Return how many of the best images are chosen from; more than are chosen with BatchBALD.

    Raises:
        SettingsError: the samples that BatchBALD has of them do not fit into the memory.
    """
    if config.method != BATCHBALD:
        return config.count
    room = _SHORTLIST_BYTES // (4 * classes * config.samples)
    wanted = config.shortlist or min(_SHORTLIST_FACTOR * config.count, max(room, config.count))
    if wanted > room:
        raise SettingsError(
            f"The samples of {wanted:,} images take more than 1 GiB; lower --samples, --count or "
            f"--shortlist, whose product may be {room * config.samples:,} with {classes} classes."
        )
    return wanted


def choose_images(
    config: SelectionConfig,
    scores: PoolScores,
    images: Sequence[Inspected],
    shortlist: int,
    sample: Sampler,
) -> Chosen:
    """Choose `config.count` images, or all that may be chosen where there are fewer.

    Args:
        config: method, number and limits.
        scores: of the N images of the pool.
        images: by which they are compared with each other, N.
        shortlist: how many of the best images are chosen from.
        sample: called for them by BatchBALD.

    Raises:
        SettingsError: an option needs a calibrated bundle.
    """
    allowed = _allowed(config, scores)
    values = acquisition_values(config.method, scores, config.seed)
    ranking = allowed[rank(values[allowed])]
    one_more = shortlist + 1  # which tells whether the shortlist has all
    if config.duplicates == "remove":
        distinct = first_distinct(ranking, images, one_more)
        if len(distinct) < min(shortlist, len(ranking)):
            logger.info(
                "Left out, as a better image shows the same picture: %s of %s images; see "
                "--duplicates.",
                *(f"{len(ranking) - len(distinct):,}", f"{len(ranking):,}"),
            )
    else:
        distinct = ranking[:one_more]
    best = distinct[:shortlist]
    if config.method != BATCHBALD:
        return Chosen(scores.take(best), values[best])
    return _choose_batch(config, scores, best, sample, is_all=len(distinct) <= shortlist)


def _allowed(config: SelectionConfig, scores: PoolScores) -> Rows:
    """Return the places of the images whose typicality is within the limits."""
    if np.isnan(scores.typicality).any():
        if config.asks_for_typicality:
            raise SettingsError(
                f"{config.model} is not calibrated and knows no typicality; leave out --method "
                "typical, --typicality-at-least and --typicality-at-most."
            )
        logger.warning("The bundle is not calibrated, so unusual images are not left out.")
        return np.arange(len(scores))
    at_least, at_most = config.typicality_range
    within = (scores.typicality >= at_least) & (scores.typicality <= at_most)
    left_out = len(scores) - int(within.sum())
    if left_out:
        logger.info("Left out by typicality: %s of %s images.", f"{left_out:,}", f"{len(scores):,}")
    return np.flatnonzero(within)


def _choose_batch(
    config: SelectionConfig, scores: PoolScores, shortlist: Rows, sample: Sampler, *, is_all: bool
) -> Chosen:
    """Choose by BatchBALD from a shortlist; is_all: whether it has every image that is allowed."""
    if not len(shortlist):
        return Chosen(scores.take(shortlist), np.empty(0))
    count = min(config.count, len(shortlist))
    choices = choose_batch(sample(scores.rows[shortlist]), count, config.seed, config.threads)
    bar = track(choices, "Choosing images", count, transient=True, disable=not sys.stdout.isatty())
    places, gains = zip(*bar, strict=True)
    highest_outside = scores.mutual_information[shortlist[-1]]
    if not is_all and gains[-1] < highest_outside:
        logger.info(
            "The last image has a gain of %.4f nats, and images that are not in the shortlist a "
            "mutual information of up to %.4f; a larger --shortlist may find better ones.",
            *(gains[-1], highest_outside),
        )
    return Chosen(scores.take(shortlist[np.array(places)]), np.array(gains))
