"""The servers that are compared: how each is started, what it takes and what it answers.

Each runs the bundle's `model.onnx` with ONNX Runtime on one thread, set up as its documentation
advises for speed; what runs in it is in `benchmarks/peers/`. Knows no process and no load.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks.serving import payloads
from benchmarks.serving.environments import REQUIREMENTS, ROOT
from benchmarks.serving.payloads import Answer, Content, Floats
from benchmarks.serving.servers import Command
from model.bundle.store import MODEL_FILE, Bundle
from model.inference.predictor import calibrated
from tests.differential.installation import Installation

Kind = Literal["JSON", "OIP JSON", "OIP binary", "PNG", "dropout JSON", "dropout OIP JSON"]
"""OIP: the Open Inference Protocol. JSON: numbers in whatever form is natural to the server."""

OURS = "ours"
SAMPLES = 64
_GRPC_OFFSET = 50  # from a server's port to the other one that MLServer insists on
_MLSERVER_BATCH_SECONDS = 0.001  # 0 would switch its batches off
PASSES = 100
"""Samples of `dropout JSON`: as many as the usual loop over a torch module makes."""


@dataclass(frozen=True)
class Stage:
    """What a server is started with."""

    python: Path
    """Of its environment."""
    bundle: Bundle
    folder: Path
    """An empty one, its own."""
    port: int

    @property
    def environment(self) -> dict[str, str]:
        """What the scripts in `benchmarks/peers/` read."""
        fitted = calibrated(self.bundle)
        spec = self.bundle.manifest.input
        return {
            "BENCHMARK_PORT": str(self.port),
            "BENCHMARK_MODEL": str((self.bundle.path / MODEL_FILE).resolve()),
            "BENCHMARK_SHAPE": f"{spec.channels},{spec.height},{spec.width}",
            "BENCHMARK_TEMPERATURE": str(fitted.numbers.temperature if fitted else 1.0),
            "PYTHONPATH": str(REQUIREMENTS),
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "ORT_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }


@dataclass(frozen=True)
class Ask:
    """One way to ask a server. `{name}` in the path stands for the model's."""

    kind: Kind
    path: str
    write: Callable[[Floats], Content]
    read: Callable[[Answer], list[float]]
    samples: int | None = None
    """With dropout alive; None: the deterministic answer."""


@dataclass(frozen=True)
class Peer:
    """A server to compare."""

    name: str
    title: str
    packages: tuple[str, ...]
    """Whose versions matter."""
    command: Callable[[Stage], Command]
    asks: tuple[Ask, ...]
    note: str = ""
    """What a reader must know to judge its figures."""
    trained: bool = True
    """Whether it has the bundle's weights, so that its probabilities can be checked."""
    quick: bool = field(default=False)
    """Whether the quick run has it too."""

    @property
    def environment(self) -> str:
        """The name of its file of requirements."""
        return self.name.partition("-")[0]


def _script(file: str) -> Callable[[Stage], Command]:
    def command(stage: Stage) -> Command:
        return Command([str(stage.python), str(REQUIREMENTS / file)], stage.environment)

    return command


def service(stage: Stage, *options: str, root: Path = ROOT) -> Command:
    """Start ours; `options` as `python -m service` takes them, `root` the checkout it is in."""
    manifest = stage.bundle.manifest
    models = ["--models-folder", str(stage.bundle.path.resolve().parent.parent)]
    which = ["--models", f"{manifest.name}@{manifest.version}"]
    program = [str(stage.python), "-m", "service", "--port", str(stage.port)]
    # No server here writes a line for each request, but for the one that is run as people run it.
    quiet = ["--log-level", "warning"]
    return Command([*program, *models, *which, *quiet, *options], {"PYTHONPATH": str(root)})


_TRITON_CONFIGURATION = """
name: "{name}"
backend: "python"
max_batch_size: 64
input [ {{ name: "images" data_type: TYPE_FP32 dims: {image} }} ]
output [ {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {classes} ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
dynamic_batching {{ }}
"""


def _triton(stage: Stage) -> Command:
    installation = Installation.of(stage.python)
    installation.link_backends(stage.folder / "backends")
    manifest = stage.bundle.manifest
    version = stage.folder / "models" / manifest.name / "1"
    version.mkdir(parents=True)
    (version / "model.py").symlink_to(REQUIREMENTS / "triton_model.py")
    (version / "classifier.py").symlink_to(REQUIREMENTS / "classifier.py")
    spec = manifest.input
    (version.parent / "config.pbtxt").write_text(
        _TRITON_CONFIGURATION.format(
            name=manifest.name,
            image=[spec.channels, spec.height, spec.width],
            classes=len(manifest.class_names),
        )
    )
    command = installation.command(stage.folder, stage.port, "{mark}")
    return Command(command, {**installation.environment, **stage.environment})


def _mlserver(stage: Stage) -> Command:
    name = stage.bundle.manifest.name
    common = {"debug": False, "parallel_workers": 0, "metrics_endpoint": None}
    settings = common | {
        "host": "127.0.0.1",
        "http_port": stage.port,
        "grpc_port": stage.port + _GRPC_OFFSET,
    }
    model = {
        "name": name,
        "implementation": "mlserver_runtime.Runtime",
        "max_batch_size": 64,
        "max_batch_time": _MLSERVER_BATCH_SECONDS,
    }
    (stage.folder / "settings.json").write_text(json.dumps(settings))
    (stage.folder / "model-settings.json").write_text(json.dumps(model))
    program = stage.python.parent / "mlserver"
    return Command([str(program), "start", str(stage.folder)], stage.environment)


def _bentoml(stage: Stage) -> Command:
    program = stage.python.parent / "bentoml"
    address = ["--host", "127.0.0.1", "--port", str(stage.port)]
    arguments = ["serve", "bentoml_service:Service", *address, "--working-dir", str(REQUIREMENTS)]
    return Command(
        [str(program), *arguments],
        {
            **stage.environment,
            "BENTOML_HOME": str(stage.folder / "home"),
            "BENTOML_DO_NOT_TRACK": "True",
        },
    )


def _ray(stage: Stage) -> Command:
    environment = {
        **stage.environment,
        "RAY_USAGE_STATS_ENABLED": "0",
        # What Ray's documentation calls its high-throughput settings.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    }
    return Command([str(stage.python), str(REQUIREMENTS / "ray_serve.py")], environment)


def _torch(stage: Stage) -> Command:
    architecture = stage.bundle.manifest.architecture.model_dump_json()
    environment = {
        **stage.environment,
        "PYTHONPATH": str(ROOT),
        "BENCHMARK_ARCHITECTURE": architecture,
    }
    return Command([str(stage.python), str(REQUIREMENTS / "torch_dropout.py")], environment)


_OIP = "/v2/models/{name}/infer"
_OIP_JSON = Ask("OIP JSON", _OIP, payloads.open_inference, payloads.of_open_inference)
_OIP_BINARY = Ask(
    "OIP binary", _OIP, payloads.open_inference_binary, payloads.of_open_inference_binary
)

_OURS = (
    Ask("JSON", "/predict", payloads.nested, payloads.of_predictions),
    _OIP_JSON,
    _OIP_BINARY,
    Ask("PNG", "/predict", payloads.png, payloads.of_predictions),
)
_OURS_WITH_DROPOUT = (
    Ask(
        "dropout JSON",
        f"/uncertainty?samples={PASSES}",
        payloads.nested,
        payloads.of_predictions,
        samples=PASSES,
    ),
    Ask(
        "dropout OIP JSON",
        "/v2/models/{name}-mc/infer",
        partial(payloads.open_inference, samples=SAMPLES),
        payloads.of_open_inference,
        samples=SAMPLES,
    ),
)
_SERVICE_PACKAGES = ("fastapi", "uvicorn", "onnxruntime")

INT8 = Peer("ours-int8", "ours, int8", _SERVICE_PACKAGES, service, _OURS)
"""Ours with another bundle; not one of `PEERS`."""


def other_checkout(root: Path) -> Peer:
    """Return ours as another checkout has it; with the packages of this one, and their versions."""
    return Peer(
        "ours-before",
        "ours, before",
        _SERVICE_PACKAGES,
        partial(service, root=root.resolve()),
        _OURS + _OURS_WITH_DROPOUT,
        note="another checkout of this project",
    )


PEERS = (
    Peer(OURS, "ours", _SERVICE_PACKAGES, service, _OURS + _OURS_WITH_DROPOUT, quick=True),
    Peer(
        "bare",
        "bare Starlette",
        ("starlette", "uvicorn", "onnxruntime"),
        _script("bare.py"),
        (
            Ask("JSON", "/predict", payloads.flat, payloads.of_list),
            Ask("OIP JSON", "/infer", payloads.open_inference, payloads.of_open_inference),
            Ask(
                "OIP binary",
                "/infer",
                payloads.open_inference_binary,
                payloads.of_open_inference_binary,
            ),
            Ask("PNG", "/png", payloads.png, payloads.of_list),
        ),
        note="no validation, limits, batches, metrics or ids: what remains is HTTP and the graph",
        quick=True,
    ),
    Peer(
        "triton",
        "Triton",
        ("nvidia-pytriton", "onnxruntime"),
        _triton,
        (_OIP_JSON, _OIP_BINARY),
        note="Python backend, dynamic batching without delay",
        quick=True,
    ),
    Peer(
        "mlserver",
        "MLServer",
        ("mlserver", "fastapi", "onnxruntime"),
        _mlserver,
        (_OIP_JSON,),
        note="a runtime of its own, adaptive batching, no process pool; it has no binary tensors",
    ),
    Peer(
        "litserve",
        "LitServe",
        ("litserve", "fastapi", "onnxruntime"),
        _script("litserve_api.py"),
        (
            Ask("JSON", "/predict", payloads.flat, payloads.of_list),
            Ask("PNG", "/predict", payloads.form, payloads.of_list),
        ),
        note="batches, fast queue, one worker",
    ),
    Peer(
        "bentoml",
        "BentoML",
        ("bentoml", "starlette", "onnxruntime"),
        _bentoml,
        (
            Ask("JSON", "/predict", payloads.batch, payloads.of_rows),
            Ask("PNG", "/png", payloads.form, payloads.of_rows),
        ),
        note="adaptive batching, one worker",
    ),
    Peer(
        "ray",
        "Ray Serve",
        ("ray", "onnxruntime"),
        _ray,
        (
            Ask("JSON", "/predict", payloads.flat, payloads.of_list),
            Ask("PNG", "/png", payloads.png, payloads.of_list),
        ),
        note="one replica, batches, its throughput settings; proxy and replica share the core",
    ),
    Peer(
        "fastapi",
        "FastAPI, as usual",
        ("fastapi", "uvicorn", "onnxruntime"),
        _script("fastapi_usual.py"),
        (
            Ask("JSON", "/predict", payloads.flat, payloads.of_list),
            Ask("PNG", "/png", payloads.form, payloads.of_list),
        ),
        note="a list of floats in a pydantic model, a plain function, all defaults",
    ),
    Peer(
        "torch",
        "FastAPI and torch",
        ("fastapi", "torch"),
        _torch,
        (Ask("dropout JSON", "/predict", payloads.flat, payloads.of_list, samples=PASSES),),
        note=f"{PASSES} passes through the module; random weights, which cost the same, so that "
        "its probabilities are not checked",
        trained=False,
    ),
)
