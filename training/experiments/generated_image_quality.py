"""Measures generated images against real ones, on the features and labels of a classifier.

The Fréchet distance (Heusel et al. 2017) is not the FID of the literature, whose features are those
of Inception on ImageNet: it compares only what was measured with the same classifier.
"""

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from training.network.classifier import Classifier

_NEIGHBOURS = 3
"""k of the estimated manifold, as in Kynkäänniemi et al. 2019."""
_COVERED_SHARE = 0.1
"""A class is covered if it has at least this part of the images that equal shares would give it."""
_BATCH = 500


class ImageQuality(BaseModel):
    """How generated images compare with real ones."""

    model_config = ConfigDict(frozen=True)

    frechet_distance: float
    """Between normal distributions fitted to the features; 0 is best, in squared features."""
    precision: float
    """Share of the generated images within the manifold of the real ones, 0..1."""
    recall: float
    """Share of the real images within the manifold of the generated ones, 0..1."""
    classes_covered: int


class ImageJudge:
    """Compares generated images with a fixed set of real ones."""

    def __init__(self, classifier: Classifier, real: Tensor) -> None:
        """Compute the features of real images, float32 [N, C, H, W] in 0..1."""
        self._classifier = classifier.eval()
        self._real, _ = self._features_and_labels(real)
        self._real_radii = _manifold_radii(self._real)

    def judge(self, images: Tensor) -> ImageQuality:
        """Compare generated images, float32 [N, C, H, W] in 0..1, with the real ones."""
        features, labels = self._features_and_labels(images)
        classes = self._classifier.head.widths[-1]
        counts = torch.bincount(labels, minlength=classes)
        return ImageQuality(
            frechet_distance=frechet_distance(self._real, features),
            precision=_share_within(features, self._real, self._real_radii),
            recall=_share_within(self._real, features, _manifold_radii(features)),
            classes_covered=int((counts >= _COVERED_SHARE * len(images) / classes).sum()),
        )

    @torch.no_grad()
    def _features_and_labels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.cat(
            [self._classifier.trunk(batch) for batch in torch.split(images, _BATCH)]
        )
        return features, self._classifier.head(features).argmax(dim=1)


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Return the Fréchet distance between normal distributions fitted to features [N, F], [M, F].

    It is biased upwards by a small number of images, so compare equal numbers.
    """
    metric = FrechetInceptionDistance(nn.Identity(), input_img_size=(real.shape[1],))  # type: ignore[arg-type]
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return max(0.0, float(metric.compute()))


def precision_and_recall(real: Tensor, generated: Tensor) -> tuple[float, float]:
    """Return improved precision and recall, 0..1, of features [N, F], [M, F], each N, M > 3.

    Source: Kynkäänniemi et al. 2019, with k = 3.
    """
    return (
        _share_within(generated, real, _manifold_radii(real)),
        _share_within(real, generated, _manifold_radii(generated)),
    )


def _manifold_radii(features: Tensor) -> Tensor:
    """Return the distance of each of [N, F] to its third nearest neighbour: [N]."""
    return torch.cat(
        [  # the nearest is the point itself
            torch.cdist(batch, features).kthvalue(_NEIGHBOURS + 1, dim=1).values
            for batch in torch.split(features, _BATCH)
        ]
    )


def _share_within(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Return the share of points [M, F] within the radius [N] of at least one centre [N, F]."""
    within = [
        (torch.cdist(batch, centres) <= radii).any(dim=1) for batch in torch.split(points, _BATCH)
    ]
    return float(torch.cat(within).float().mean())
