"""What a process on a further machine loads before it helps to fit; nothing is fitted."""

from pathlib import Path

import pytest
from PIL import Image
from torch._C._distributed_c10d import HashStore

from training import fit_on_nonzero_rank
from training.config import TrainingConfig
from training.data.added_images import add_images
from training.data.dataset import Dataset, load_dataset
from training.distributed.process_group import Processes
from training.fit_on_nonzero_rank import announce, help_train
from training.transfer.backbone_choice import choose_backbone


def test_further_machine_adds_the_images_that_the_first_one_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "labelled" / "3").mkdir(parents=True)
    Image.linear_gradient("L").save(tmp_path / "labelled" / "3" / "new.png")
    config = TrainingConfig(data="digits", add=f"folder:{tmp_path / 'labelled'}", nodes=2)
    config = choose_backbone(config)
    first = add_images(load_dataset(config), config)
    store = HashStore()
    announce(config, first, tmp_path, Processes(0, 2, store=store))
    fitted: list[Dataset] = []
    monkeypatch.setattr(fit_on_nonzero_rank, "help_fit", lambda _, data, *__: fitted.append(data))
    help_train(config, Processes(1, 2, store=store))
    (data,) = fitted
    assert len(data.train) == len(load_dataset(config).train) + 1
    assert data.manifest_entry() == first.manifest_entry()
