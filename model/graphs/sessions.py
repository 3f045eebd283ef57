"""ONNX Runtime's sessions: how a graph is started, and what is used of it."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

# Importing ONNX Runtime would else write a device id into the home folder and report to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

_MOST_FOLDED_BYTES = 64 * 2**20

_CONFIGURATION = {
    # Idle threads that spin would take the cores from the event loop and from other workers.
    "session.intra_op.allow_spinning": "0",
    # Bytes that begin like ONNX Runtime's own format are not taken for it: `model.graphs.embedded_weights` reads ONNX.
    "session.load_model_format": "ONNX",
    # `model.graphs.embedded_weights` refuses graphs with values elsewhere; where this names no folder, none is found.
    "session.model_external_initializers_file_folder_path": os.devnull,
    # A few bytes may describe a constant of any size.
    "optimization.constant_folding_max_output_size_in_bytes": str(_MOST_FOLDED_BYTES),
}


class Binding(Protocol):
    """What is used of `onnxruntime.IOBinding`: inputs and outputs that stay from run to run."""

    def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None:
        """Give an input, which is not copied."""
        ...

    def bind_output(self, name: str) -> None:
        """Ask for an output."""
        ...

    def copy_outputs_to_cpu(self) -> Sequence[Any]:
        """Return the outputs of the last run."""
        ...


class RunOptions(Protocol):
    """What is used of `onnxruntime.RunOptions`."""

    terminate: bool
    """Set to True, from any thread, it ends the runs under way that have these options at their
    next node, and each that begins, with an exception; until it is set back."""


class Session(Protocol):
    """What is used of `onnxruntime.InferenceSession`."""

    def run(
        self,
        output_names: Sequence[str],
        input_feed: dict[str, Any],
        run_options: RunOptions | None = None,
    ) -> Sequence[Any]:
        """Run the graph and return the named outputs."""
        ...

    def get_outputs(self) -> Sequence[Any]:
        """Describe the outputs; each has a `shape`."""
        ...

    def io_binding(self) -> Binding:
        """Begin a binding."""
        ...

    def run_with_iobinding(self, iobinding: Any, run_options: RunOptions | None = None) -> None:
        """Run the graph on what is bound."""
        ...


def run_options() -> RunOptions:
    """Make options of runs, which another thread may use to end them."""
    options: RunOptions = onnxruntime.RunOptions()
    return options


class Stop:
    """Ends the starts of sessions that were given it, and the runs with its options.

    It may be set from another thread.

    A node that computes is waited for: a loop ends before its next step, one huge product after it.
    """

    def __init__(self) -> None:
        self.run_options = run_options()
        """For the runs that it is to end."""
        self._starting: list[onnxruntime.SessionOptions] = []
        self.is_set = False

    def set(self) -> None:
        """Let whatever is under way, or begins later, fail."""
        self.is_set = True
        self.run_options.terminate = True
        for options in self._starting:
            options.set_load_cancellation_flag(True)

    def watch(self, options: onnxruntime.SessionOptions) -> None:
        """Take part in the start of a session."""
        self._starting.append(options)
        options.set_load_cancellation_flag(self.is_set)


def start(model: bytes, threads: int, *, plan: bool = False, stop: Stop | None = None) -> Session:
    """Start ONNX Runtime on an encoded graph, with `threads` threads for one run.

    plan: keep a plan of the memory for every size of batch: many small nodes are a tenth faster,
        but where there are large ones it takes much memory.
    stop: by which the start can be ended; None: by nothing.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; they also arrive as exceptions
    options.enable_mem_pattern = plan
    for key, value in _CONFIGURATION.items():
        options.add_session_config_entry(key, value)
    if stop is not None:
        stop.watch(options)
    session: Session = onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"]
    )
    return session
