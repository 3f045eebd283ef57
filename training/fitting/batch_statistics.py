"""Gives a copy of a network the statistics that batch normalisation has in a training step.

A network's own are running means over the steps so far: before the first step they are 0 and 1, and
after few steps they lag behind the weights.
"""

from copy import deepcopy

import numpy as np
import torch

from training.data.batches import EVALUATION_BATCH_SIZE, image_batches
from training.data.dataset import Split
from training.network.classifier import BatchNorm, Classifier


def with_batch_statistics(network: Classifier, train: Split) -> Classifier:
    """Return a copy in evaluation mode, normalised by one batch from all over the training images.

    Nothing is drawn at random, so a training that follows is the same as without the copy.
    """
    copy = deepcopy(network).eval()
    for module in copy.modules():
        if isinstance(module, BatchNorm):
            module.momentum = 1.0
            module.train()
    count = min(len(train), EVALUATION_BATCH_SIZE)
    rows = np.linspace(0, len(train) - 1, count).astype(np.int64)
    with torch.no_grad():
        for images in image_batches(train.take(rows)):
            copy(images)
    return copy.eval()
