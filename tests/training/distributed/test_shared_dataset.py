from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch._C._distributed_c10d import HashStore

from model.errors import DataError
from training.config import TrainingConfig
from training.data.dataset import Dataset, load_dataset
from training.distributed.process_group import Processes
from training.distributed.shared_dataset import receive_dataset, share_dataset


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(TrainingConfig())


def test_processes_map_the_same_images_and_leave_no_file(tmp_path: Path, digits: Dataset) -> None:
    first = Processes(rank=2, count=4, local_rank=0, local_count=2, store=HashStore())
    second = replace(first, rank=3, local_rank=1)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive_dataset, second)
        shared = share_dataset(digits, first, tmp_path)
        other = received.result(timeout=60)
    assert list(tmp_path.iterdir()) == []
    for each in (shared, other):
        for split, expected in ((each.train, digits.train), (each.validation, digits.validation)):
            assert isinstance(split.images, np.memmap)
            np.testing.assert_array_equal(split.images, expected.images)
            np.testing.assert_array_equal(split.labels, expected.labels)
    assert isinstance(shared.train.images, np.memmap)
    assert isinstance(other.train.images, np.memmap)
    assert shared.train.images.filename == other.train.images.filename
    assert other.defaults == digits.defaults
    assert other.class_names == digits.class_names
    assert len(other.test) == 0
    assert shared.test is digits.test


def test_folder_that_cannot_hold_the_images_is_one_sentence(
    tmp_path: Path, digits: Dataset
) -> None:
    file = tmp_path / "file"
    file.touch()
    processes = Processes(count=2, local_count=2, store=HashStore())
    with pytest.raises(DataError, match=r"^The images cannot be shared .*--cache-dir\.$"):
        share_dataset(digits, processes, file / "cache")
    assert share_dataset(digits, Processes(), file) is digits
