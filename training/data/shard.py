"""Says which rows of a batch one of several processes takes. Knows no process and no data set."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """The `index`-th of `count` parts, counted from 0; by default the only one, the whole."""

    index: int = 0
    count: int = 1

    def rows(self, total: int) -> slice:
        """Return the consecutive rows of this part; parts differ by one row at most."""
        start, stop = (part * total // self.count for part in (self.index, self.index + 1))
        return slice(start, stop)

    def draw(self, sample: Callable[[int], Tensor], images: int, dim: int = 0) -> Tensor:
        """Draw random numbers for the whole batch, and return those of this part's images.

        Processes whose generators have the same state so draw what one process would.

        Args:
            sample: maps the images of the whole batch to a tensor with one slice for each.
            images: of this part; all parts have as many.
            dim: the dimension of `sample`'s tensors that counts images.
        """
        return sample(images * self.count).narrow(dim, self.index * images, images)


WHOLE = Shard()
"""The shard of a process that trains alone."""
