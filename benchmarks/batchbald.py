"""How far do T samples carry BatchBALD, and what do blocks change? Gains along a list.

    python -m benchmarks.batchbald MODELS/NAME/VERSION [--pool fashion-mnist] [--shortlist 2000]
        [--count 100] [--samples 256 1024]

A single block is the algorithm of Kirsch et al. 2019: its gains add up to no more than ln T.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from model.bundle.store import open_bundle
from training.evaluate import dataset_config
from training.selection.acquisition import acquisition_values, rank
from training.selection.batchbald import choose_batch
from training.selection.pool import open_pool
from training.selection.pool_scores import PoolPredictor
from training.selection.selection_config import BATCHBALD, SelectionConfig

_SHARES = {"a single block": np.inf, "blocks of half of ln T": 0.5}
_PLACES = (1, 2, 5, 10, 20, 30, 50, 100, 200, 500, 1000)


def main(arguments: list[str]) -> None:
    """Choose images with each number of samples, and print the gains."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("model", type=Path, help="folder of one version")
    parser.add_argument("--pool", default="fashion-mnist", help="data set, or folder:PATH")
    parser.add_argument("--shortlist", type=int, default=2_000, help="images to choose from")
    parser.add_argument("--count", type=int, default=100, help="images to choose")
    parser.add_argument("--samples", type=int, nargs="+", default=[256, 1024])
    options = parser.parse_args(arguments)
    places = [place for place in _PLACES if place <= options.count]
    table = Table("T", "ln T", "", "seconds", "sum", *(f"gain {place}" for place in places))
    for samples in options.samples:
        config = SelectionConfig(model=options.model, pool=options.pool, samples=samples)
        bundle = open_bundle(options.model)
        pool = open_pool(dataset_config(bundle, config.pool, config), bundle.manifest.input)
        predictor = PoolPredictor(config, pool)
        scores, _ = predictor.score()
        best = rank(acquisition_values(BATCHBALD, scores, 0))[: options.shortlist]
        probabilities = predictor.sample(scores.rows[best])
        for name, share in _SHARES.items():
            started = time.perf_counter()
            choices = choose_batch(probabilities, options.count, 0, block_share=share)
            gains = np.array([gain for _, gain in choices])
            seconds = f"{time.perf_counter() - started:.1f}"
            shown = [f"{gains[place - 1]:.3f}" for place in places]
            table.add_row(
                str(samples), f"{np.log(samples):.2f}", name, seconds, f"{gains.sum():.2f}", *shown
            )
    Console(width=200).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
