"""Chooses how pixels become a network's numbers: as the user says, or what fits the images best.

A file does not say whether its network takes 0..1 or 0..255, and with which mean. The labelled
images do: only the right one of a few usual rules gives a low loss.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model.errors import ExportError
from model.images.preprocessing import to_float
from training.adoption.input_layout import NetworkInput, Preprocessing
from training.adoption.original_network import Original
from training.data.dataset import Split

logger = logging.getLogger(__name__)

_IMAGES = 96
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
USUAL_RULES: Mapping[str, Preprocessing] = {
    "0..1": Preprocessing(),
    "0..255": Preprocessing(255.0),
    "-1..1": Preprocessing(1.0, (0.5,), (0.5,)),
    "ImageNet's mean and deviation": Preprocessing(1.0, *_IMAGENET),
    "(0..255 - 127)/128, of EfficientNet-Lite": Preprocessing(255.0, (127.0,), (128.0,)),
    "BGR 0..255 less the mean, of Caffe": Preprocessing(
        255.0, (103.939, 116.779, 123.68), (1.0,), bgr=True
    ),
}
"""Rules of well-known collections of networks, by name."""


def stated_rule(
    image: NetworkInput,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    maximum: int | None,
    bgr: bool,
) -> Preprocessing | None:
    """Return the rule that the options state; None: they state at most the order of colours.

    Without `maximum`, a mean or a deviation above 1 means that pixels go up to 255.

    Args:
        image: the network's input.
        mean: to be subtracted, one number or one a channel.
        std: to be divided by, the same.
        maximum: 1 or 255.
        bgr: whether blue comes first.

    Raises:
        ExportError: the network cannot take such numbers.
    """
    if mean is None and std is None and maximum is None:
        return None
    mean, std = tuple(mean or (0.0,)), tuple(std or (1.0,))
    takes_bytes = image.dtype == np.uint8
    if takes_bytes and (maximum == 1 or any(mean) or any(each != 1 for each in std)):
        raise ExportError(
            "The network takes whole numbers 0..255; leave --mean, --std and --pixel-maximum out."
        )
    for option, numbers in (("--mean", mean), ("--std", std)):
        if len(numbers) not in (1, image.channels):
            raise ExportError(
                f"The network takes images of {image.channels} channel, but {option} has "
                f"{len(numbers)} numbers; give one."
            )
    if maximum is None:
        maximum = 255 if takes_bytes or max(*map(abs, mean), *std, 0.0) > 1 else 1
    return Preprocessing(float(maximum), mean, std, bgr)


def choose_rule(
    original: Original, rules: Mapping[str, Preprocessing], split: Split
) -> Preprocessing:
    """Return the rule with the lowest loss on labelled images, and log all of them.

    Args:
        original: the network as it was.
        rules: by name, from `possible_rules`.
        split: labels are the network's classes; at most _IMAGES images are used.
    """
    rows = np.linspace(0, len(split) - 1, min(_IMAGES, len(split))).astype(np.int64)
    images, labels = to_float(split.images[rows]), split.labels[rows]
    losses: dict[str, float] = {}
    for name, rule in rules.items():
        probabilities = original.probabilities(images, rule)
        losses[name] = nll(probabilities, labels)
        logger.info(
            "pixels as %s: NLL %.3f, accuracy %.1f %% on %d images",
            *(name, losses[name], 100 * (probabilities.argmax(axis=1) == labels).mean()),
            len(labels),
        )
    best = min(losses, key=losses.__getitem__)
    if len(rules) > 1:
        logger.warning(
            "Warning: that pixels are taken as %s is a guess, the lowest NLL of the usual rules. A "
            "wrong guess costs accuracy without a sign: state the rule that the network was "
            "trained with, with --mean and --std.",
            best,
        )
    return rules[best]


def possible_rules(image: NetworkInput, bgr: bool) -> Mapping[str, Preprocessing]:
    """Return the usual rules that an input can have, by name.

    bgr: whether blue is known to come first.
    """
    rules = USUAL_RULES
    if image.dtype == np.uint8:
        rules = {"0..255": USUAL_RULES["0..255"]}
    elif image.channels == 1:
        rules = {
            name: rule for name, rule in USUAL_RULES.items() if len(rule.mean) == 1 and not rule.bgr
        }
    return dict(_blue_first(*each) for each in rules.items()) if bgr else rules


def _blue_first(name: str, rule: Preprocessing) -> tuple[str, Preprocessing]:
    if rule.bgr:
        return name, rule
    return f"{name} in BGR", replace(rule, mean=rule.mean[::-1], std=rule.std[::-1], bgr=True)


def nll(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the mean negative log-likelihood in nats; a NaN counts as a probability of 0."""
    tiny = np.finfo(np.float64).tiny
    likely = np.nan_to_num(probabilities[np.arange(len(labels)), labels])
    return -float(np.log(np.maximum(likely, tiny)).mean())
