"""The session of the head with inputs that stay bound from run to run. Knows no sampling."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.graphs.mc_statistics import Feeds
from model.graphs.sessions import RunOptions, Session, ort_value


class BoundHead:
    """The session of the head, with all inputs bound but the features."""

    def __init__(self, head: Session, feeds: Feeds, names: Sequence[str]) -> None:
        self._head = head
        self._feeds = feeds  # kept alive, since the binding points into these arrays
        self._names = names
        self._rows = 0
        self._binding = head.io_binding()
        for name, value in feeds.items():
            self._binding.bind_ortvalue_input(name, ort_value(value))

    def run(self, features: NDArray[np.float32], options: RunOptions | None) -> Sequence[Any]:
        """Run the head on features, float32 [N, F], and return the outputs."""
        if len(features) != self._rows:
            self._rows = len(features)
            for name in self._names:
                self._binding.bind_output(name)
        self._binding.bind_cpu_input("features", features)
        self._head.run_with_iobinding(self._binding, options)
        return self._binding.copy_outputs_to_cpu()
