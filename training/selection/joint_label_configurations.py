"""The joint distribution of the unknown labels of several images, under one set of samples.

A configuration is one label for each of the images. Given a sample (one thinned network) the labels
are independent, so the probability of a configuration is a mean over samples of products. That
holds because all images are predicted with the same masks. Knows no network and chooses nothing.

Source: Kirsch, van Amersfoort & Gal 2019, "BatchBALD", sections 3.2 and 3.3.
"""

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float32]
"""Of the classes of images in each sample: [..., K, T], which add up to 1 over the K classes."""

_TINY = float(np.finfo(np.float32).tiny)


class LabelConfigurations:
    """The configurations of the images that were added, with what each tells about the samples.

    They are all of them as long as there are few, which is exact; otherwise as many as are allowed
    are drawn from their joint distribution, and expectations over them have a Monte Carlo error.

    Attributes:
        weights: float64 [M], the probability of each configuration, 1/M where they are drawn.
        posteriors: float32 [M, T], the probability of each sample given the configuration, which
            adds up to 1 over the T samples.
    """

    def __init__(
        self, samples: int, max_configurations: int, generator: np.random.Generator
    ) -> None:
        """Begin with no image, so with the one empty configuration.

        Args:
            samples: T, at least 1.
            max_configurations: M up to which all configurations are enumerated, and how many are
                drawn where there are more.
            generator: draws them.
        """
        self.weights = np.ones(1)
        self.posteriors = np.full((1, samples), 1 / samples, np.float32)
        self._max_configurations = max_configurations
        self._generator = generator
        self._images: list[Probabilities] = []
        self._drawn_from: NDArray[np.int64] | None = None  # the sample of each, once they are drawn

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def add(self, probabilities: Probabilities) -> None:
        """Add an image, float32 [K, T]."""
        self._images.append(probabilities)
        if self._drawn_from is not None:
            self._draw_labels(self._drawn_from, probabilities)
        elif len(self.weights) * len(probabilities) <= self._max_configurations:
            self._enumerate_labels(probabilities)
        else:
            self._draw_configurations()

    def conditional_entropies(self, candidates: Probabilities) -> NDArray[np.float64]:
        """Return the entropy of a further image's label given the labels of those that were added.

        The products are summed in float32, so the entropies are exact to about 1e-6.

        Args:
            candidates: float32 [L, K, T].

        Returns:
            float64 [L], nats, 0..ln K: the mean over the configurations of the entropy of the
            label's distribution under the samples' posterior.
        """
        images, classes, samples = candidates.shape
        predictive = candidates.reshape(images * classes, samples) @ self.posteriors.T
        predictive *= np.log(np.maximum(predictive, _TINY))
        negative = predictive.reshape(images, classes, -1).sum(axis=1, dtype=np.float64)
        entropies: NDArray[np.float64] = -(negative @ self.weights)
        return entropies

    def _enumerate_labels(self, probabilities: Probabilities) -> None:
        """Replace each configuration by those that have one label more."""
        joint = self.posteriors[:, np.newaxis] * probabilities
        totals = joint.sum(axis=2)
        self.weights = (self.weights[:, np.newaxis] * totals).ravel()
        joint /= np.maximum(totals, _TINY)[:, :, np.newaxis]
        self.posteriors = joint.reshape(-1, joint.shape[2])

    def _draw_configurations(self) -> None:
        """Replace all configurations by draws: for each a sample, then its label of each image.

        Each sample is drawn equally often, but for the rest of a division.
        """
        samples, count = self.posteriors.shape[1], self._max_configurations
        drawn_from = np.resize(self._generator.permutation(samples), count)
        self.weights = np.full(count, 1 / count)
        self.posteriors = np.full((count, samples), 1 / samples, np.float32)
        for probabilities in self._images:
            self._draw_labels(drawn_from, probabilities)
        self._drawn_from = drawn_from

    def _draw_labels(self, drawn_from: NDArray[np.int64], probabilities: Probabilities) -> None:
        """Draw the label of an image for each configuration, and weigh the samples by it."""
        cumulative = probabilities[:, drawn_from].cumsum(axis=0, dtype=np.float64)
        points = self._generator.random(len(drawn_from)) * cumulative[-1]
        labels = np.minimum((cumulative <= points).sum(axis=0), len(cumulative) - 1)
        self.posteriors *= probabilities[labels]
        self.posteriors /= np.maximum(self.posteriors.sum(axis=1, keepdims=True), _TINY)
