"""What a run of `python -m service.score` has done, and what its whole output has."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from service.scoring.image_sources import FoundImages
from service.scoring.result_lines import State
from service.scoring.scoring_process_messages import ScoredBatch


@dataclass
class Outcome:
    """Counts of images."""

    found: FoundImages = field(default_factory=FoundImages)
    is_calibrated: bool = True
    """Whether the model abstains."""
    written: int = 0
    """Lines of this run."""
    seconds: float = 0.0
    """How long it took to write them."""
    _states: Counter[State] = field(default_factory=Counter)
    """Of the whole output."""

    def add_earlier(self, states: Iterable[State]) -> None:
        """Count the lines that an earlier run wrote."""
        self._states.update(states)

    def add(self, batch: ScoredBatch, images: int) -> None:
        """Count a batch of this run."""
        self.written += images
        self._states[State.FAILED] += batch.errors
        self._states[State.ABSTAINED] += batch.abstentions
        self._states[State.ANSWERED] += images - batch.errors - batch.abstentions

    @property
    def errors(self) -> int:
        """Images of the whole output that could not be scored."""
        return self._states[State.FAILED]

    @property
    def has_only_errors(self) -> bool:
        """Whether no image of the whole output could be scored."""
        return self.errors == self._states.total() > 0

    def sentences(self, output: Path) -> list[str]:
        """Describe the output and the run, and say what to do about errors."""
        rate = self.written / self.seconds if self.seconds else 0.0
        abstained = f"{self._states[State.ABSTAINED]:,}" if self.is_calibrated else "not calibrated"
        counts = {
            "errors": self.errors,
            "other files left out": self.found.left_out,
            "named again": self.found.named_again,
            "rows without a path": self.found.rows_without_path,
        }
        first = [
            f"{output}: {count_images(self._states.total())}",
            f"{self.written:,} of them now in {self.seconds:.1f} s, {rate:,.0f} a second",
            f"abstained: {abstained}",
            *[f"{what}: {count:,}" for what, count in counts.items()],
        ]
        sentences = ["; ".join(first)]
        if self.errors:
            sentences.append(
                "The field error says why an image could not be scored; the same command with "
                "--retry-errors tries these again."
            )
        return sentences


def count_images(count: int) -> str:
    """Return a number of images in words."""
    return f"{count:,} image" if count == 1 else f"{count:,} images"
