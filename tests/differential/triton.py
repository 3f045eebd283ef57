"""A real Triton server on the CPU, serving a bundle's own ONNX graph under our tensors' names.

The server is the one in the wheel nvidia-pytriton; its Python backend runs the graph. Both live in
an environment of their own, whose `python` is all that this module is told. Knows no request.
"""

import json
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from model.bundle.store import MODEL_FILE, Bundle, open_bundle
from model.inference.predictor import calibrated
from tests.differential.installation import Installation
from tests.service.serving import PATIENCE_SECONDS

_POLL_SECONDS = 0.05
_MOMENT_SECONDS = 2.0
_SHARED_MEMORY = Path("/dev/shm")

_CONFIGURATION = """
name: "{name}"
backend: "python"
max_batch_size: 64
input [ {{ name: "images" data_type: TYPE_FP32 dims: {image} }} ]
output [
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "names.txt" }},
  {{ name: "label" data_type: TYPE_STRING dims: [ 1 ] reshape {{ shape: [ ] }} }}
]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
dynamic_batching {{ preferred_batch_size: [ 64 ] }}
"""

_MODEL = """
import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

FOLDER = Path(__file__).parent


class TritonPythonModel:
    def initialize(self, _arguments):
        facts = json.loads((FOLDER / "facts.json").read_text())
        self.class_names = np.array(facts["class_names"], object)
        self.temperature = facts["temperature"]
        self.session = onnxruntime.InferenceSession(
            FOLDER / "model.onnx", providers=["CPUExecutionProvider"]
        )

    def execute(self, requests):
        return [self.answer(triton.get_input_tensor_by_name(each, "images")) for each in requests]

    def answer(self, images):
        (logits,) = self.session.run(["logits"], {"images": images.as_numpy()})
        scaled = logits.astype(np.float64) / self.temperature
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        label = self.class_names[probabilities.argmax(axis=1)]
        return triton.InferenceResponse(
            [triton.Tensor("probabilities", probabilities), triton.Tensor("label", label)]
        )
"""


class Triton:
    """A running server; one that a request has ended can be started again."""

    def __init__(self, installation: Installation, folder: Path) -> None:
        self._environment = installation.environment
        self._log = folder / "log.txt"
        self._region = f"dropserve_{uuid.uuid4().hex}"
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            *installation.command(folder, port, self._region),
            "--model-control-mode=explicit",
            "--load-model=*",
            "--http-thread-count=2",
        ]
        self._process = self._started()

    def start_again_if_ended(self) -> None:
        """Start it again if a request has ended it; wait a moment, in which it can."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_MOMENT_SECONDS)
            self.end()
            self._process = self._started()
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Poll it until it answers; fail with its log if it ends or takes too long."""
        self._wait_until(self._is_ready)

    def wait_until_settled(self) -> None:
        """Poll it until no model is being loaded or unloaded."""
        self._wait_until(self._is_settled)

    def end(self) -> None:
        """End this process, and whatever it has started or left behind."""
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_SECONDS)
        with suppress(ProcessLookupError):  # its stub, which outlives a crash
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE_SECONDS)
        for region in _SHARED_MEMORY.glob(f"{self._region}*"):
            region.unlink()

    def _started(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not true():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(_POLL_SECONDS)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/v2/health/ready").is_success
        except httpx.TransportError:
            return False

    def _is_settled(self) -> bool:
        models = httpx.post(f"{self.url}/v2/repository/index").json()
        return all(model.get("state") not in ("LOADING", "UNLOADING") for model in models)


@contextmanager
def triton_server(python: Path, bundle_folder: Path, folder: Path) -> Iterator[Triton]:
    """Serve a bundle with Triton until the block ends.

    python: of the environment with nvidia-pytriton and onnxruntime.
    folder: an empty one, for the model repository and the log.
    """
    installation = Installation.of(python)
    installation.link_backends(folder / "backends")
    _write_model(open_bundle(bundle_folder), folder / "models")
    server = Triton(installation, folder)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.end()


def _write_model(bundle: Bundle, repository: Path) -> None:
    """Write a bundle as a model of Triton's Python backend."""
    manifest = bundle.manifest
    version = repository / manifest.name / str(manifest.version)
    version.mkdir(parents=True)
    (version / MODEL_FILE).write_bytes((bundle.path / MODEL_FILE).read_bytes())
    (version / "model.py").write_text(_MODEL)
    fitted = calibrated(bundle)
    facts = {
        "class_names": manifest.class_names,
        "temperature": fitted.numbers.temperature if fitted else 1.0,
    }
    (version / "facts.json").write_text(json.dumps(facts))
    (version.parent / "names.txt").write_text("\n".join(manifest.class_names) + "\n")
    spec = manifest.input
    (version.parent / "config.pbtxt").write_text(
        _CONFIGURATION.format(
            name=manifest.name,
            image=[spec.channels, spec.height, spec.width],
            classes=len(manifest.class_names),
        )
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
