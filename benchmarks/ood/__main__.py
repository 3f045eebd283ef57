"""Compare OOD scores, deep ensembles and published results on bundles of one or more data sets.

    python -m benchmarks.ood models/fashion-mnist/1 models/fashion-mnist/2 --ensemble

Bundles of the same data set are seeds: means and ranges are reported, and with `--ensemble` their
deep ensemble. Nothing is trained.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.machine import describe_machine
from benchmarks.ood.costs import measure_costs
from benchmarks.ood.measurements import BundleFigures, measure_bundle, measure_ensemble
from benchmarks.ood.ood_images import Images, ood_images
from benchmarks.ood.report import Comparison, records
from model.bundle.store import Bundle, open_bundle
from model.errors import DropserveError
from model.inference.predictor_loading import load_predictor
from training.data.dataset import Dataset
from training.evaluate import load_data
from training.evaluation_config import EvaluationConfig

_OTHERS = {
    "fashion-mnist": ("mnist",),
    "mnist": ("fashion-mnist",),
    "cifar-10": ("fashion-mnist", "mnist"),
}
"""The data sets whose images are OOD for each data set; converted to its size and channels."""


def main(arguments: list[str]) -> int:
    """Measure, print and record; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("bundles", type=Path, nargs="+", help="folders, models/NAME/VERSION")
    parser.add_argument("--ensemble", action="store_true", help="measure their deep ensemble")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("DROPSERVE_DATA_DIR"))
    parser.add_argument("--record", type=Path, help="folder of the notes")
    options = parser.parse_args(arguments)
    try:
        tables = [
            record
            for folders in _by_data(options.bundles).values()
            for record in records(compare(folders, options.data_dir, ensemble=options.ensemble))
        ]
        for record in tables:
            record.print(Console())
        if options.record:
            names = " ".join(map(str, options.bundles))
            flag = " --ensemble" if options.ensemble else ""
            for record in reversed(tables):  # each is inserted before the others
                record.add_to(options.record, f"python -m benchmarks.ood {names}{flag}")
    except DropserveError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def compare(folders: Sequence[Path], data_dir: Path | None, *, ensemble: bool) -> Comparison:
    """Measure bundles that were trained on the same data.

    Args:
        folders: of the bundles.
        data_dir: folder with data sets.
        ensemble: whether to measure the deep ensemble, if there are several bundles.
    """
    first = open_bundle(folders[0])
    data = _load(first, None, data_dir)
    name = str(first.manifest.training["data"])
    others = {other: _load(first, other, data_dir).test.images for other in _OTHERS.get(name, ())}
    kinds = ood_images(data.test.images, others)
    bundles = [_measure(folder, data, kinds) for folder in folders]
    with_ensemble = ensemble and len(folders) > 1
    return Comparison(
        data=name,
        description=data.name,
        test_images=len(data.test),
        bundles=bundles,
        ensemble=measure_ensemble(bundles, data.test.labels) if with_ensemble else None,
        costs=measure_costs(folders if with_ensemble else folders[:1], data.test.images),
        machine=describe_machine(),
    )


def _by_data(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Group bundles by the digest of the data that they were trained on."""
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        groups.setdefault(open_bundle(folder).manifest.data["sha256"], []).append(folder)
    return groups


def _load(bundle: Bundle, data: str | None, data_dir: Path | None) -> Dataset:
    """Load a data set so that its images fit the bundle; None: what it was trained on."""
    config = EvaluationConfig(bundle=bundle.path, data_dir=data_dir)
    return load_data(bundle, data, config)


def _measure(folder: Path, data: Dataset, kinds: dict[str, Images]) -> BundleFigures:
    bundle = open_bundle(folder)
    predictor = load_predictor(bundle)
    if predictor.calibrator is None:
        raise DropserveError(f"{folder} is uncalibrated; name another bundle.")
    if bundle.manifest.data.get("sha256") != data.manifest_entry()["sha256"]:
        raise DropserveError(
            f"The data of {folder} cannot be loaded as they were; name their folder with "
            "--data-dir."
        )
    return measure_bundle(predictor, predictor.calibrator, data, kinds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
