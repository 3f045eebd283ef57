"""Runs a real Triton server on the CPU, with the ONNX graph of a bundle and our tensor names.

The server comes with the wheel nvidia-pytriton; its Python backend runs the graph. Both are
installed in an environment of their own, which the caller names by its `python`. Knows no request.
"""

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from model.bundle.store import MODEL_FILE, Bundle, open_bundle
from model.inference.predictor_loading import read_calibrator
from tests.differential.installation import Installation
from tests.free_port import free_port
from tests.service.serving import TIMEOUT_SECONDS

_POLL_SECONDS = 0.05
_CRASH_SECONDS = 2.0
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
        metadata = json.loads((FOLDER / "metadata.json").read_text())
        self.class_names = np.array(metadata["class_names"], object)
        self.temperature = metadata["temperature"]
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
    """A running server, which can be restarted after a request crashed it."""

    def __init__(self, installation: Installation, folder: Path) -> None:
        self._environment = installation.environment
        self._log = folder / "log.txt"
        self._region = f"dropserve_{uuid.uuid4().hex}"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            *installation.command(folder, port, self._region),
            "--model-control-mode=explicit",
            "--load-model=*",
            "--http-thread-count=2",
        ]
        self._process = self._start()

    def restart_if_ended(self) -> None:
        """Start the server again if it ends within two seconds after a request."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_CRASH_SECONDS)
            self.end()
            self._process = self._start()
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the server is ready; fail with its log if it ends or takes too long."""
        self._wait_until(self._is_ready)

    def wait_until_loaded(self) -> None:
        """Wait until no model is being loaded or unloaded."""
        self._wait_until(self._is_loaded)

    def end(self) -> None:
        """End the server and its child processes; remove its shared memory."""
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(TIMEOUT_SECONDS)
        with suppress(ProcessLookupError):  # the stub of the backend survives a crash
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(TIMEOUT_SECONDS)
        for region in _SHARED_MEMORY.glob(f"{self._region}*"):
            region.unlink()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(_POLL_SECONDS)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/v2/health/ready").is_success
        except httpx.TransportError:
            return False

    def _is_loaded(self) -> bool:
        models = httpx.post(f"{self.url}/v2/repository/index").json()
        return all(model.get("state") not in ("LOADING", "UNLOADING") for model in models)


@contextmanager
def triton_server(python: Path, bundle_folder: Path, folder: Path) -> Iterator[Triton]:
    """Serve a bundle with Triton until the block ends.

    python: the interpreter of the environment with nvidia-pytriton and onnxruntime.
    folder: an empty folder for the model repository and the log.
    """
    installation = Installation.inspect(python)
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
    calibration = read_calibrator(bundle)
    metadata = {
        "class_names": manifest.class_names,
        "temperature": calibration.parameters.temperature if calibration else 1.0,
    }
    (version / "metadata.json").write_text(json.dumps(metadata))
    (version.parent / "names.txt").write_text("\n".join(manifest.class_names) + "\n")
    spec = manifest.input
    (version.parent / "config.pbtxt").write_text(
        _CONFIGURATION.format(
            name=manifest.name,
            image=[spec.channels, spec.height, spec.width],
            classes=len(manifest.class_names),
        )
    )
