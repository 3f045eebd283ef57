"""The joint entropy of labels by its definition: a sum over all configurations, in float64."""

import math
from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.selection.joint_label_configurations import Probabilities


def joint_entropy(images: Iterable[Probabilities]) -> float:
    """Return H(y_1, ..., y_n) in nats; images: [K, T] each."""
    images = list(images)
    total = 0.0
    for labels in product(*(range(len(image)) for image in images)):
        factors = [image[label].astype(float) for image, label in zip(images, labels, strict=True)]
        probability = float(np.prod(factors, axis=0).mean())
        total -= probability * math.log(probability) if probability > 0 else 0
    return total


def information(images: Sequence[Probabilities]) -> float:
    """Return I(y_1, ..., y_n; sample) in nats: given a sample, the labels are independent."""
    expected = [joint_entropy([image[:, [t]]]) for image in images for t in range(image.shape[1])]
    expected_entropy: float = sum(expected) / images[0].shape[1]
    return joint_entropy(images) - expected_entropy


def random_pool(
    seed: int, images: int, classes: int, samples: int, sharpness: float = 1.0
) -> Probabilities:
    """Return random probabilities, float32 [S, K, T]; the higher the sharpness, the surer."""
    generator = np.random.default_rng(seed)
    drawn: NDArray[np.float64] = generator.dirichlet(
        np.full(classes, 1 / sharpness), (images, samples)
    )
    return np.ascontiguousarray(drawn.transpose(0, 2, 1), np.float32)


pools = st.builds(
    random_pool,
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(4, 5),
    classes=st.integers(2, 3),
    samples=st.integers(1, 6),
    sharpness=st.sampled_from([0.1, 1.0, 10.0]),
)
"""Small pools, for which every configuration can be enumerated."""
