"""Cross-validate a training: how accurate is it on all images of a folder, each tested once?

    python -m benchmarks.folds --data folder:PATH [--folds 5] [--record docs] [-- OPTIONS]

The images of all splits of the folder are pooled and divided into folds. For each fold a folder of
links is made, the fold in `test/` and the others in `train/`, and `python -m training` is run on
it, with the default options and those after `--`. The metrics are those of the exported bundle on
the images of its fold. Duplicates are removed by each training, from its training images.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.machine import describe_machine, end_like_ctrl_c
from benchmarks.seeds import Outcome, train
from model.errors import DropserveError
from training.data.folds import stratified_folds
from training.data.image_folder_layout import ImageFolder, list_images
from training.data_options import FOLDER_PREFIX
from training.experiments.experiment_record import Record, format_mean_std, format_percent

_SPLIT_SEED = 0


def main(arguments: list[str]) -> int:
    """Train once for each fold, print the outcomes and record them; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", required=True, help="folder:PATH, a folder of images")
    parser.add_argument("--folds", type=int, default=5, help="number of folds, at least 2")
    parser.add_argument("--record", type=Path, help="folder of the notes")
    parser.add_argument("options", nargs="*", help="of python -m training, after --")
    options = parser.parse_args(arguments)
    if not options.data.startswith(FOLDER_PREFIX):
        parser.error(f"--data: {options.data} has files of its own only as {FOLDER_PREFIX}PATH.")
    if options.folds < 2:
        parser.error("--folds: give 2 or more.")
    root = Path(options.data.removeprefix(FOLDER_PREFIX)).resolve()
    try:
        images = list_images(root)
    except DropserveError as error:
        parser.error(str(error))
    end_like_ctrl_c()
    with tempfile.TemporaryDirectory() as work:
        folders = link_folds(images, options.folds, Path(work), root.name)
        outcomes = []
        for fold, folder in enumerate(folders):
            data = ["--data", f"{FOLDER_PREFIX}{folder}"]
            outcomes.append(train(0, [*data, *options.options]))
            sys.stderr.write(f"fold {fold}: {100 * outcomes[-1].accuracy:.2f} %\n")
    record = describe(root.name, options.options, outcomes)
    record.print(Console())
    if options.record:
        # The folder's name without its path, which is of this machine.
        command = f"python -m benchmarks.folds --data {FOLDER_PREFIX}{root.name}"
        command += f" --folds {options.folds}"
        command += f" -- {' '.join(options.options)}" if options.options else ""
        record.add_to(options.record, command)
    return 0


def link_folds(images: ImageFolder, count: int, work: Path, name: str) -> list[Path]:
    """Write a folder of links for each fold: the fold in `test/`, all others in `train/`.

    Args:
        images: the images of all splits are pooled.
        count: of folds; fewer where a class has fewer images.
        work: folder to write into.
        name: of each fold's folder.
    """
    pooled = [each for files in images.splits.values() for each in files]
    labels = np.array([label for _, label in pooled], np.int64)
    folds = stratified_folds(labels, np.arange(len(labels)), count, _SPLIT_SEED)
    folders = []
    for fold in range(int(folds.max()) + 1):
        folder = work / str(fold) / name
        for place, ((file, label), own) in enumerate(zip(pooled, folds, strict=True)):
            split = "test" if own == fold else "train"
            link = folder / split / images.class_names[label] / f"{place}{file.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        folders.append(folder)
    return folders


def describe(name: str, options: Sequence[str], outcomes: Sequence[Outcome]) -> Record:
    """Return the record of the outcomes: one row for each fold, then their mean and spread."""
    accuracies = [each.accuracy for each in outcomes]
    nlls, eces = [each.nll for each in outcomes], [each.ece for each in outcomes]
    images = sum(each.images for each in outcomes)
    wrong = sum(each.wrong for each in outcomes)
    with_options = f" with `{' '.join(options)}`" if options else ""
    return Record(
        name=f"folds-{name}",
        title=f"{name}: cross-validation over all images",
        setting=f"{len(outcomes)} folds of the {images} images of all splits, the default options"
        f"{with_options}, seed 0; each exported bundle on the images of its fold.",
        columns=("fold", "test images", "accuracy", "wrong", "NLL", "ECE", "CPU seconds"),
        rows=[
            *(
                (
                    *(str(fold), str(each.images), f"{100 * each.accuracy:.2f} %"),
                    *(str(each.wrong), f"{each.nll:.4f}", f"{each.ece:.4f}"),
                    f"{each.cpu_seconds:.0f}",
                )
                for fold, each in enumerate(outcomes)
            ),
            (
                *("mean ± SD", f"{images / len(outcomes):g}", format_percent(accuracies)),
                f"{wrong / len(outcomes):g}",
                *(format_mean_std(nlls, "{:.4f}"), format_mean_std(eces, "{:.4f}")),
                f"{np.mean([each.cpu_seconds for each in outcomes]):.0f}",
            ),
        ],
        finding=f"{images - wrong} of {images} images are right. Accuracy "
        f"{format_percent(accuracies)}, NLL {format_mean_std(nlls, '{:.4f}')}, ECE "
        f"{format_mean_std(eces, '{:.4f}')}: mean and standard deviation of the folds, on "
        f"{describe_machine()}.",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
