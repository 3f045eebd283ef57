"""The one-cycle learning-rate schedule: a warm-up to the peak, then a long decay towards 0.

Knows no network and no data set.
"""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

WARM_UP_SHARE = 0.3
"""Share of the steps in which the learning rate rises."""


def one_cycle(
    optimizer: Optimizer, peak_learning_rate: float | list[float], total_steps: int
) -> OneCycleLR:
    """Return the one-cycle schedule of a training of `total_steps` optimizer steps.

    The learning rate follows a cosine from 1/25 of the peak to the peak during `WARM_UP_SHARE` of
    the steps, then another down to 1/250,000 of the peak, while the momentum (of AdamW, its first
    beta) moves the other way between 0.95 and 0.85. Several peaks are those of the optimizer's
    parameter groups.

    Source: Smith & Topin 2018; the shares and divisors are PyTorch's defaults.
    """
    return OneCycleLR(
        optimizer,
        max_lr=peak_learning_rate,
        total_steps=total_steps,
        pct_start=WARM_UP_SHARE,
    )


def update_every_step(optimizer: Optimizer, schedule: LRScheduler) -> dict[str, Any]:
    """Return what Lightning's `configure_optimizers` returns for a schedule that counts steps.

    Lightning's default is one update of the learning rate per epoch.
    """
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
