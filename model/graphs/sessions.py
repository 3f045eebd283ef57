"""ONNX Runtime's sessions: how one is created, and the protocols of what is used of it."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

# Otherwise importing ONNX Runtime writes a device id into the home folder and sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

Provider = str | tuple[str, dict[str, Any]]
"""The name of an execution provider, with or without its options."""

CPU_PROVIDER = "CPUExecutionProvider"
_MAX_FOLDED_BYTES = 64 * 2**20

_CONFIGURATION = {
    # Idle threads that spin take the cores from the event loop and from other workers.
    "session.intra_op.allow_spinning": "0",
    # `model.graphs.external_data_check` checks ONNX only, so ONNX Runtime must not detect its own
    # format from the first bytes.
    "session.load_model_format": "ONNX",
    # A second defence beside `model.graphs.external_data_check`: this is not a folder, so no
    # external file is found.
    "session.model_external_initializers_file_folder_path": os.devnull,
    # A few bytes can describe a constant of any size.
    "optimization.constant_folding_max_output_size_in_bytes": str(_MAX_FOLDED_BYTES),
}


class Binding(Protocol):
    """The part of `onnxruntime.IOBinding` in use: inputs and outputs kept from run to run."""

    def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None:
        """Bind an input, which is not copied and has no default."""
        ...

    def bind_ortvalue_input(self, name: str, ortvalue: Any) -> None:
        """Bind an input that `ort_value` made."""
        ...

    def bind_output(self, name: str) -> None:
        """Bind an output, which ONNX Runtime allocates."""
        ...

    def copy_outputs_to_cpu(self) -> Sequence[Any]:
        """Return the outputs of the last run."""
        ...


class RunOptions(Protocol):
    """The part of `onnxruntime.RunOptions` in use."""

    terminate: bool
    """While it is True, every run with these options raises an exception at its next node, and so
    does every new one. Any thread may set it."""


class Session(Protocol):
    """The part of `onnxruntime.InferenceSession` in use."""

    def run(
        self,
        output_names: Sequence[str],
        input_feed: dict[str, Any],
        run_options: RunOptions | None = None,
    ) -> Sequence[Any]:
        """Run the graph and return the named outputs."""
        ...

    def get_providers(self) -> Sequence[str]:
        """Return the names of the execution providers that were loaded."""
        ...

    def get_outputs(self) -> Sequence[Any]:
        """Describe the outputs; each has a `name` and a `shape`."""
        ...

    def io_binding(self) -> Binding:
        """Create an empty binding."""
        ...

    def run_with_iobinding(self, iobinding: Any, run_options: RunOptions | None = None) -> None:
        """Run the graph on the inputs and outputs of a binding."""
        ...


class ProviderError(Exception):
    """ONNX Runtime has not loaded the execution provider that was asked for."""


def available_providers() -> Sequence[str]:
    """Return the execution providers with which this ONNX Runtime was built."""
    providers: list[str] = onnxruntime.get_available_providers()
    return providers


def load_cuda_libraries() -> None:
    """Load the libraries of CUDA and cuDNN that pip has installed, where there are any."""
    onnxruntime.preload_dlls()


def ort_value(array: NDArray[Any]) -> Any:
    """Return ONNX Runtime's view of an array, which is not copied and must be kept alive."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def run_options() -> RunOptions:
    """Create run options, by which another thread can terminate runs."""
    options: RunOptions = onnxruntime.RunOptions()
    return options


class CancellationToken:
    """Cancels the creation of the sessions that it watches, and the runs with its options.

    Another thread may set it. A node that is computing runs to its end: a loop stops before its
    next step, a single huge product only after it.
    """

    def __init__(self) -> None:
        self.run_options = run_options()
        """Options for the runs that it is to cancel."""
        self._watched: list[onnxruntime.SessionOptions] = []
        self.is_set = False

    def set(self) -> None:
        """Make everything under its watch fail, whether it runs now or begins later."""
        self.is_set = True
        self.run_options.terminate = True
        for options in self._watched:
            options.set_load_cancellation_flag(True)

    def watch(self, options: onnxruntime.SessionOptions) -> None:
        """Watch the creation of a session with these options."""
        self._watched.append(options)
        options.set_load_cancellation_flag(self.is_set)


def create_session(
    model: bytes,
    threads: int,
    *,
    memory_pattern: bool = False,
    cancellation: CancellationToken | None = None,
    providers: Sequence[Provider] = (CPU_PROVIDER,),
) -> Session:
    """Create an ONNX Runtime session for an encoded graph.

    Args:
        model: the bytes of a ModelProto.
        threads: how many threads compute one run.
        memory_pattern: whether to keep a memory plan for every batch size. It makes a graph of many
            small nodes a tenth faster, and takes much memory where nodes are large.
        cancellation: cancels the creation; None: it cannot be cancelled.
        providers: what computes the nodes, best first; see `model.graphs.execution_provider`.

    Raises:
        ProviderError: the first of `providers` cannot be used on this machine.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal ones only; errors arrive as exceptions
    options.enable_mem_pattern = memory_pattern
    for key, value in _CONFIGURATION.items():
        options.add_session_config_entry(key, value)
    if cancellation is not None:
        cancellation.watch(options)
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if wanted != CPU_PROVIDER:
        options.use_deterministic_compute = True
        if wanted not in available_providers():
            raise ProviderError(f"the installed ONNX Runtime has no {wanted}")
    session: Session = onnxruntime.InferenceSession(
        model, options, providers=list(providers), enable_fallback=0
    )
    if wanted not in session.get_providers():  # a library or the GPU is missing; it only warns
        raise ProviderError(f"{wanted} cannot be used on this machine")
    return session
