"""The folders of a cross-validation over all images."""

from pathlib import Path

from benchmarks.folds import link_folds
from training.data.image_folder_layout import list_images


def test_every_image_of_all_splits_is_tested_in_one_fold_and_trained_on_in_the_others(
    tmp_path: Path,
) -> None:
    for split, count in (("train", 6), ("val", 4)):
        for name in ("ants", "bees"):
            (tmp_path / "all" / split / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "all" / split / name / f"{number}.jpg").write_bytes(b"\xff\xd8\xff")
    folders = link_folds(list_images(tmp_path / "all"), 5, tmp_path / "folds", "all")
    assert [folder.name for folder in folders] == ["all"] * 5
    tested: list[Path] = []
    for folder in folders:
        test, train = (
            {link.resolve() for link in (folder / split).rglob("*.jpg")}
            for split in ("test", "train")
        )
        assert len(test) == 4
        assert len(train) == 16
        assert not test & train
        tested += test
    assert sorted(tested) == sorted((tmp_path / "all").rglob("*.jpg"))
