"""What does choosing images for labelling bring? A round of active learning, method by method.

    python -m benchmarks.active_learning [--data fashion-mnist] [--first 500] [--pool 20000]
        [--count 500] [--repeats 3] [--folder runs/active-learning]

Writes images of a data set as files: some labelled ones, a pool without labels, and the test
images. Then it runs the commands that a user runs: `python -m training` on the labelled images,
`python -m training.select` on the pool, `python -m training --add` with what was chosen, whose
labels the data set knows. Each repeat draws other labelled images.

    python -m benchmarks.active_learning --copies 10

instead counts, for each method, how many pictures its list has more than once, if every image of
the pool stands in it ten times, a little brighter each time, and duplicates are kept.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.machine import end_like_ctrl_c
from model.bundle.store import open_bundle
from training.config import DatasetConfig
from training.data.dataset import Dataset, Split, load_dataset
from training.data.image_inspection import to_pillow

METHODS = ("batchbald", "bald", "entropy", "variation-ratio", "typical", "random")


def main(arguments: list[str]) -> None:
    """Run the rounds, print the accuracies, or count copies."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", default="fashion-mnist", help="data set")
    parser.add_argument("--first", type=int, default=500, help="labelled images to begin with")
    parser.add_argument("--pool", type=int, default=20_000, help="images without labels")
    parser.add_argument("--count", type=int, default=500, help="images to choose")
    parser.add_argument("--repeats", type=int, default=3, help="draws of the labelled images")
    parser.add_argument("--copies", type=int, default=1, help="of each image of the pool")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--folder", type=Path, default=Path("runs/active-learning"))
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("DROPSERVE_DATA_DIR"))
    options = parser.parse_args(arguments)
    end_like_ctrl_c()
    data = load_dataset(DatasetConfig(data=options.data, data_dir=options.data_dir))
    rounds = [Round(options, data, seed) for seed in range(options.repeats)]
    table = Table("method", *(f"repeat {seed}" for seed in range(options.repeats)))
    if options.copies == 1:
        table.add_row("before", *(_shown(each.train("before")) for each in rounds))
    for method in options.methods:
        table.add_row(method, *(each.measure(method) for each in rounds))
    Console().print(table)


class Round:
    """One repeat: its files, its first bundle, and what each method chooses."""

    def __init__(self, options: argparse.Namespace, data: Dataset, seed: int) -> None:
        self._options = options
        self._seed = seed
        self._data = data
        self._folder: Path = options.folder / str(seed)
        shutil.rmtree(self._folder, ignore_errors=True)
        rows = np.random.default_rng(seed).permutation(len(data.train))
        first, rest = rows[: options.first], rows[options.first :][: options.pool]
        self._write_labelled(data.train, first, self._folder / "data" / "train")
        self._write_labelled(data.test, np.arange(len(data.test)), self._folder / "data" / "test")
        self._write_pool(rest)
        if options.copies > 1:
            self.train("before")

    def train(self, name: str, *more: str) -> Path:
        """Train a bundle; return its folder."""
        spec = self._data.input
        self._run(
            "training",
            *("--data", f"folder:{self._folder / 'data'}", "--name", name, "--backbone", "none"),
            *("--image-size", str(spec.height), "--seed", str(self._seed), "--examples", "0"),
            *("--colour", "grey" if spec.channels == 1 else "rgb"),
            *("--output", str(self._folder / "models"), "--runs", str(self._folder / "runs")),
            *more,
        )
        return self._folder / "models" / name / "1"

    def measure(self, method: str) -> str:
        """Choose images by a method; return how good the next bundle is, or the copies chosen."""
        chosen = self._select(method)
        if self._options.copies > 1:
            pictures = {file.name.partition("-")[0] for file in chosen}
            return f"{len(chosen) - len(pictures)} of {len(chosen)} repeat a picture"
        for file in chosen:
            row = int(file.name.partition("-")[0])
            label = self._data.class_names[self._data.train.labels[row]]
            target = self._folder / method / label.replace("/", "-") / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        before = str(self._folder / "models" / "before" / "1")
        added = f"folder:{self._folder / method}"
        return _shown(self.train(method, "--add", added, "--compare-with", before))

    def _select(self, method: str) -> list[Path]:
        output = self._folder / f"{method}.csv"
        self._run(
            "training.select",
            *("--model", str(self._folder / "models" / "before" / "1"), "--method", method),
            *("--pool", f"folder:{self._folder / 'pool'}", "--count", str(self._options.count)),
            *("--output", str(output), "--seed", str(self._seed)),
            *(("--duplicates", "keep") if self._options.copies > 1 else ()),
        )
        with output.open(encoding="utf-8") as file:
            return [Path(row["path"]) for row in csv.DictReader(file)]

    def _write_labelled(self, split: Split, rows: NDArray[np.int64], folder: Path) -> None:
        for row in rows.tolist():
            label = self._data.class_names[split.labels[row]].replace("/", "-")
            (folder / label).mkdir(parents=True, exist_ok=True)
            to_pillow(split.images[row]).save(folder / label / f"{row}.png")

    def _write_pool(self, rows: NDArray[np.int64]) -> None:
        (self._folder / "pool").mkdir()
        for row in rows.tolist():
            for number, image in enumerate(self._copies(self._data.train.images[row])):
                to_pillow(image).save(self._folder / "pool" / f"{row}-{number}.png")

    def _copies(self, image: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        for number in range(self._options.copies):
            yield (image * (1 - number / 100)).astype(np.uint8)

    def _run(self, module: str, *arguments: str) -> None:
        """Run a command of the project, which ends the benchmark if it fails."""
        with (self._folder / "log.txt").open("a", encoding="utf-8") as log:
            command = [sys.executable, "-m", module, *arguments]
            subprocess.run(command, check=True, stdout=log)  # noqa: S603 - this project's own


def _shown(bundle: Path) -> str:
    metrics = open_bundle(bundle).manifest.metrics
    test = metrics["test"]
    shown = f"{test['accuracy']:.2%}, NLL {test['nll']:.3f}"
    return shown + (f", p {metrics['earlier']['p_value']:.2g}" if "earlier" in metrics else "")


if __name__ == "__main__":
    main(sys.argv[1:])
