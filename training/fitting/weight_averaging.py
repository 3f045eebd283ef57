"""Averages the weights of the latest steps of a training. Knows no network and no data set."""

from collections.abc import Callable

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import PARAM_LIST, get_swa_multi_avg_fn

Average = Callable[[PARAM_LIST, PARAM_LIST, Tensor | int], None]
"""Updates averages in place from the current tensors and the number of tensors averaged so far."""


def weight_averaging(share: float, device: str) -> WeightAveraging:
    """Return the callback that averages the weights and the statistics of batch normalisation.

    Validation and checkpoints get the averages, and so does the module when the training ends.

    Args:
        share: as of `polynomial_decay`.
        device: "cpu" or "cuda", where the averages are kept.
    """
    return WeightAveraging(device=device, use_buffers=True, multi_avg_fn=polynomial_decay(share))


def polynomial_decay(share: float) -> Average:
    """Return the average that reaches back over about the last `share` of the steps so far.

    With the n-th step it moves towards the current weights by 1 / (1 + share * (n - 1)), so it has
    forgotten the first steps after a short training as after a long one.

    share: 0 < share <= 1; 1 weighs all steps equally.

    Source: Shamir & Zhang 2013, with η = 1 / share - 1.
    """
    equally = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]

    def average(averages: PARAM_LIST, current: PARAM_LIST, averaged: Tensor | int) -> None:
        if averages[0].is_floating_point():
            equally(averages, current, share * int(averaged))
        else:  # batch normalisation counts its batches
            torch._foreach_copy_(averages, current)

    return average
