"""The pretrained EfficientNet-Lite0 against numbers of another implementation."""

from pathlib import Path

import pytest
import torch

from model.errors import SettingsError
from training.config import EFFICIENTNET_LITE0
from training.network.classifier import count_parameters
from training.network.pretrained_backbone import load_backbone

TOP_CLASSES = [911, 506, 824, 735, 490]
TOP_LOGITS = [5.9937, 5.9758, 5.9751, 5.7001, 5.3511]
"""Of `waves`, by the package efficientnet_lite_pytorch 0.1.0 with the same weights."""


def waves() -> torch.Tensor:
    """Return an image of crossing waves: float32 [1, 3, 224, 224] in 0..1."""
    place = torch.arange(224.0)
    channels = [
        torch.sin(place[:, None] / (5 + 4 * c) + place[None, :] / (11 - 3 * c)) for c in range(3)
    ]
    return 0.5 + 0.5 * torch.stack(channels)[None]


def test_thousand_class_answers_are_those_of_another_implementation() -> None:
    trunk, classifier = load_backbone(EFFICIENTNET_LITE0)
    with torch.no_grad():
        features = trunk(waves())
        logits = classifier(features)[0]
    assert (features >= 0).all()
    assert features.max() <= 6
    top = logits.topk(5)
    assert top.indices.tolist() == TOP_CLASSES
    # Kernels of other processors sum in another order; the numbers have 4 decimals.
    torch.testing.assert_close(top.values, torch.tensor(TOP_LOGITS), atol=1e-3, rtol=0)


def test_network_has_the_published_number_of_parameters() -> None:
    trunk, classifier = load_backbone(EFFICIENTNET_LITE0)
    assert count_parameters(trunk) + count_parameters(classifier) == 4_652_008


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(2)}, file)
    with pytest.raises(SettingsError, match="does not have the weights of EfficientNet-Lite0"):
        load_backbone(str(file))


@pytest.mark.parametrize("content", [b"", b"not weights"])
def test_file_that_has_no_weights_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "broken.pth"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match="cannot be read as weights"):
        load_backbone(str(file))


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "objects.pth"
    torch.save(Path("anything"), file)
    with pytest.raises(SettingsError, match="cannot be read as weights"):
        load_backbone(str(file))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no file"):
        load_backbone(str(tmp_path / "missing.pth"))
