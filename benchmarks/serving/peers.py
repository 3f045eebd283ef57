"""The servers that are compared: how each is started, its requests and its responses.

Each runs the bundle's `model.onnx` with ONNX Runtime on one thread, configured as its documentation
advises for speed; the code that it runs is in `benchmarks/peers/`. Knows no process and no load.
"""

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks.features import Feature
from benchmarks.serving import payloads
from benchmarks.serving.environments import REQUIREMENTS, ROOT
from benchmarks.serving.payloads import Content, Floats, Response
from benchmarks.serving.servers import Command
from model.bundle.store import MODEL_FILE, Bundle
from model.inference.predictor_loading import read_calibrator
from tests.differential.installation import Installation

Kind = Literal["JSON", "OIP JSON", "OIP binary", "PNG", "JPEG", "dropout JSON", "dropout OIP JSON"]
"""OIP: the Open Inference Protocol. JSON: numbers in the form that is natural to the server. PNG:
a file of the model's size. JPEG: a photograph of one megapixel, which the server has to reduce."""

OURS = "ours"
SAMPLES = 64
_GRPC_OFFSET = 50  # from a server's HTTP port to the gRPC port that MLServer insists on
_MLSERVER_BATCH_SECONDS = 0.001  # 0 would switch its batches off
PASSES = 100
"""Samples of `dropout JSON`: the number that a loop over a torch module usually takes."""


@dataclass(frozen=True)
class LaunchSpec:
    """The files and the port that a server is started with."""

    python: Path
    """The interpreter of the server's environment."""
    bundle: Bundle
    folder: Path
    """An empty folder for this server alone."""
    port: int

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that the scripts in `benchmarks/peers/` read."""
        calibration = read_calibrator(self.bundle)
        input_spec = self.bundle.manifest.input
        return {
            "BENCHMARK_PORT": str(self.port),
            "BENCHMARK_MODEL": str((self.bundle.path / MODEL_FILE).resolve()),
            "BENCHMARK_SHAPE": f"{input_spec.channels},{input_spec.height},{input_spec.width}",
            "BENCHMARK_TEMPERATURE": str(
                calibration.parameters.temperature if calibration else 1.0
            ),
            "PYTHONPATH": str(REQUIREMENTS),
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "ORT_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }


@dataclass(frozen=True)
class Endpoint:
    """One kind of request that a server accepts. `{name}` in the path is the model's name."""

    kind: Kind
    path: str
    write: Callable[[Floats], Content]
    read: Callable[[Response], list[float]]
    samples: int | None = None
    """MC dropout samples; None for the deterministic prediction."""


@dataclass(frozen=True)
class Peer:
    """A server to compare."""

    name: str
    title: str
    packages: tuple[str, ...]
    """Packages whose versions are reported."""
    command: Callable[[LaunchSpec], Command]
    endpoints: tuple[Endpoint, ...]
    note: str = ""
    """What a reader must know to judge its measurements."""
    trained: bool = True
    """Whether it has the bundle's weights, so that its probabilities can be checked."""
    quick: bool = field(default=False)
    """Whether the quick run includes it."""

    @property
    def environment(self) -> str:
        """The name of its requirements file."""
        return self.name.partition("-")[0]


def _script(file: str) -> Callable[[LaunchSpec], Command]:
    def command(spec: LaunchSpec) -> Command:
        return Command([str(spec.python), str(REQUIREMENTS / file)], spec.environment)

    return command


def service(spec: LaunchSpec, *options: str, root: Path = ROOT) -> Command:
    """Return the command that starts our service.

    options: as `python -m service` takes them.
    root: the checkout to run.
    """
    manifest = spec.bundle.manifest
    models = ["--models-folder", str(spec.bundle.path.resolve().parent.parent)]
    model = ["--models", f"{manifest.name}@{manifest.version}"]
    program = [str(spec.python), "-m", "service", "--port", str(spec.port)]
    # No server here logs each request, except the two with FastAPI, which are run as people do.
    quiet = ["--log-level", "warning"]
    return Command([*program, *models, *model, *quiet, *options], {"PYTHONPATH": str(root)})


_TRITON_CONFIGURATION = """
name: "{name}"
backend: "python"
max_batch_size: 64
input [ {{ name: "images" data_type: TYPE_FP32 dims: {image} }} ]
output [ {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {classes} ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
dynamic_batching {{ }}
"""


def _triton(spec: LaunchSpec) -> Command:
    installation = Installation.inspect(spec.python)
    installation.link_backends(spec.folder / "backends")
    manifest = spec.bundle.manifest
    version = spec.folder / "models" / manifest.name / "1"
    version.mkdir(parents=True)
    (version / "model.py").symlink_to(REQUIREMENTS / "triton_model.py")
    (version / "classifier.py").symlink_to(REQUIREMENTS / "classifier.py")
    input_spec = manifest.input
    (version.parent / "config.pbtxt").write_text(
        _TRITON_CONFIGURATION.format(
            name=manifest.name,
            image=[input_spec.channels, input_spec.height, input_spec.width],
            classes=len(manifest.class_names),
        )
    )
    command = installation.command(spec.folder, spec.port, "{mark}")
    return Command(command, {**installation.environment, **spec.environment})


def _mlserver(spec: LaunchSpec) -> Command:
    name = spec.bundle.manifest.name
    common = {"debug": False, "parallel_workers": 0, "metrics_endpoint": None}
    settings = common | {
        "host": "127.0.0.1",
        "http_port": spec.port,
        "grpc_port": spec.port + _GRPC_OFFSET,
    }
    model = {
        "name": name,
        "implementation": "mlserver_runtime.Runtime",
        "max_batch_size": 64,
        "max_batch_time": _MLSERVER_BATCH_SECONDS,
    }
    (spec.folder / "settings.json").write_text(json.dumps(settings))
    (spec.folder / "model-settings.json").write_text(json.dumps(model))
    program = spec.python.parent / "mlserver"
    return Command([str(program), "start", str(spec.folder)], spec.environment)


def _bentoml(spec: LaunchSpec) -> Command:
    program = spec.python.parent / "bentoml"
    address = ["--host", "127.0.0.1", "--port", str(spec.port)]
    arguments = ["serve", "bentoml_service:Service", *address, "--working-dir", str(REQUIREMENTS)]
    return Command(
        [str(program), *arguments],
        {
            **spec.environment,
            "BENTOML_HOME": str(spec.folder / "home"),
            "BENTOML_DO_NOT_TRACK": "True",
        },
    )


def _ray(spec: LaunchSpec) -> Command:
    environment = {
        **spec.environment,
        "RAY_USAGE_STATS_ENABLED": "0",
        # What Ray's documentation calls its high-throughput settings.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    }
    return Command([str(spec.python), str(REQUIREMENTS / "ray_serve.py")], environment)


def _torch(spec: LaunchSpec) -> Command:
    architecture = spec.bundle.manifest.architecture.model_dump_json()
    environment = {
        **spec.environment,
        "PYTHONPATH": str(ROOT),
        "BENCHMARK_ARCHITECTURE": architecture,
    }
    return Command([str(spec.python), str(REQUIREMENTS / "torch_dropout.py")], environment)


_OIP = "/v2/models/{name}/infer"
_OIP_JSON = Endpoint("OIP JSON", _OIP, payloads.open_inference, payloads.parse_open_inference)
_OIP_BINARY = Endpoint(
    "OIP binary", _OIP, payloads.open_inference_binary, payloads.parse_open_inference_binary
)

_OUR_ENDPOINTS = (
    Endpoint("JSON", "/predict", payloads.nested, payloads.parse_predictions),
    _OIP_JSON,
    _OIP_BINARY,
    Endpoint("PNG", "/predict", payloads.png, payloads.parse_predictions),
    Endpoint("JPEG", "/predict", payloads.jpeg, payloads.parse_predictions),
)
_OUR_MC_ENDPOINTS = (
    Endpoint(
        "dropout JSON",
        f"/uncertainty?samples={PASSES}",
        payloads.nested,
        payloads.parse_predictions,
        samples=PASSES,
    ),
    Endpoint(
        "dropout OIP JSON",
        "/v2/models/{name}-mc/infer",
        partial(payloads.open_inference, samples=SAMPLES),
        payloads.parse_open_inference,
        samples=SAMPLES,
    ),
)
_SERVICE_PACKAGES = ("fastapi", "uvicorn", "onnxruntime")

INT8 = Peer("ours-int8", "ours, int8", _SERVICE_PACKAGES, service, _OUR_ENDPOINTS)
"""Our service with a quantized bundle; not one of `PEERS`."""


def other_checkout(root: Path) -> Peer:
    """Return our service from another checkout, run with the packages of this one."""
    return Peer(
        "ours-before",
        "ours, before",
        _SERVICE_PACKAGES,
        partial(service, root=root.resolve()),
        _OUR_ENDPOINTS + _OUR_MC_ENDPOINTS,
        note="another checkout of this project",
    )


def with_feature(name: str, feature: Feature) -> Peer:
    """Return our service with a feature that every request pays for."""

    def add_headers(write: Callable[[Floats], Content], image: Floats) -> Content:
        content = write(image)
        return Content({**content.headers, **feature.headers}, content.body)

    return Peer(
        f"ours-{name}",
        f"ours, {name}",
        _SERVICE_PACKAGES,
        lambda spec: service(spec, *feature.options),
        tuple(
            replace(each, write=partial(add_headers, each.write))
            for each in _OUR_ENDPOINTS + _OUR_MC_ENDPOINTS
        ),
        note=shlex.join(each.rpartition("/")[2] for each in feature.options),
    )


PEERS = (
    Peer(OURS, "ours", _SERVICE_PACKAGES, service, _OUR_ENDPOINTS + _OUR_MC_ENDPOINTS, quick=True),
    Peer(
        "bare",
        "bare Starlette",
        ("starlette", "uvicorn", "onnxruntime"),
        _script("bare.py"),
        (
            Endpoint("JSON", "/predict", payloads.flat, payloads.parse_list),
            Endpoint("OIP JSON", "/infer", payloads.open_inference, payloads.parse_open_inference),
            Endpoint(
                "OIP binary",
                "/infer",
                payloads.open_inference_binary,
                payloads.parse_open_inference_binary,
            ),
            Endpoint("PNG", "/png", payloads.png, payloads.parse_list),
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
            Endpoint("JSON", "/predict", payloads.flat, payloads.parse_list),
            Endpoint("PNG", "/predict", payloads.form, payloads.parse_list),
            Endpoint("JPEG", "/predict", payloads.jpeg_form, payloads.parse_list),
        ),
        note="batches, fast queue, one worker",
    ),
    Peer(
        "bentoml",
        "BentoML",
        ("bentoml", "starlette", "onnxruntime"),
        _bentoml,
        (
            Endpoint("JSON", "/predict", payloads.batch, payloads.parse_rows),
            Endpoint("PNG", "/png", payloads.form, payloads.parse_rows),
            Endpoint("JPEG", "/png", payloads.jpeg_form, payloads.parse_rows),
        ),
        note="adaptive batching, one worker",
    ),
    Peer(
        "ray",
        "Ray Serve",
        ("ray", "onnxruntime"),
        _ray,
        (
            Endpoint("JSON", "/predict", payloads.flat, payloads.parse_list),
            Endpoint("PNG", "/png", payloads.png, payloads.parse_list),
        ),
        note="one replica, batches, its throughput settings; proxy and replica share the core",
    ),
    Peer(
        "fastapi",
        "FastAPI, as usual",
        ("fastapi", "uvicorn", "onnxruntime"),
        _script("fastapi_usual.py"),
        (
            Endpoint("JSON", "/predict", payloads.flat, payloads.parse_list),
            Endpoint("PNG", "/png", payloads.form, payloads.parse_list),
            Endpoint("JPEG", "/png", payloads.jpeg_form, payloads.parse_list),
        ),
        note="a list of floats in a pydantic model, a plain function, all defaults",
    ),
    Peer(
        "torch",
        "FastAPI and torch",
        ("fastapi", "torch"),
        _torch,
        (Endpoint("dropout JSON", "/predict", payloads.flat, payloads.parse_list, samples=PASSES),),
        note=f"{PASSES} passes through the module; random weights, which cost the same, so that "
        "its probabilities are not checked",
        trained=False,
    ),
)
