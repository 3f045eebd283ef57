"""ONNX Runtime's sessions: how a graph is started, and what is used of it."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

# Importing ONNX Runtime would else write a device id into the home folder and report to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime


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


def start(model: bytes, threads: int, *, plan: bool = False) -> Session:
    """Start ONNX Runtime on an encoded graph, with `threads` threads for one run.

    plan: keep a plan of the memory for every size of batch: many small nodes are a tenth faster,
        but where there are large ones it takes much memory.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; they also arrive as exceptions
    options.enable_mem_pattern = plan
    # Idle threads that spin would take the cores from the event loop and from other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session: Session = onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"]
    )
    return session
