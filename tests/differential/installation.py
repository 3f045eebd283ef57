"""Locates the Triton server of an environment with the wheel nvidia-pytriton.

Triton runs on the CPU alone, with its Python backend and the ONNX Runtime of the same environment.
Knows no model and no request.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_INSPECT = """
import importlib.util, json, sysconfig
print(json.dumps({
    "packages": sysconfig.get_path("purelib"),
    "libraries": sysconfig.get_config_var("LIBDIR"),
    "version": sysconfig.get_python_version(),
    "onnxruntime": importlib.util.find_spec("onnxruntime") is not None,
}))
"""


@dataclass(frozen=True)
class Installation:
    """The folders of an environment with Triton and the libraries it is linked against."""

    python: Path
    packages: Path
    libraries: Path
    version: str

    @classmethod
    def inspect(cls, python: Path) -> Self:
        """Inspect the environment of a `python`; an assertion names a missing package."""
        python = python.absolute()
        done = subprocess.run([python, "-c", _INSPECT], capture_output=True, text=True, check=True)
        facts = json.loads(done.stdout)
        found = cls(python, Path(facts["packages"]), Path(facts["libraries"]), facts["version"])
        assert found.server.exists(), f"{python} has no Triton; pip install nvidia-pytriton there"
        assert facts["onnxruntime"], f"{python} has no ONNX Runtime; pip install onnxruntime there"
        return found

    @property
    def folder(self) -> Path:
        return self.packages / "pytriton" / "tritonserver"

    @property
    def server(self) -> Path:
        return self.folder / "bin" / "tritonserver"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which the backend finds its Python and its libraries."""
        linked = [self.libraries, self.packages / "nvidia_pytriton.libs"]
        return os.environ | {
            # The stub uses the first python3 of PATH, and the packages of that one.
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, linked)),
            "ORT_DISABLE_TELEMETRY": "1",
        }

    def link_backends(self, folder: Path) -> None:
        """Make a folder with the Python backend and the stub for this version of Python."""
        backend = folder / "python"
        backend.mkdir(parents=True)
        stub = self.folder / "python_backend_stubs" / self.version / "triton_python_backend_stub"
        for file in (*(self.folder / "backends" / "python").glob("*.*"), stub):
            (backend / file.name).symlink_to(file)

    def command(self, folder: Path, port: int, region: str) -> list[str]:
        """Return the command that serves `folder`/models with `folder`/backends over HTTP alone.

        region: prefix of the names of the backend's shared memory.
        """
        return [
            str(self.server),
            f"--model-repository={folder / 'models'}",
            f"--backend-directory={folder / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={region}",
            "--http-address=127.0.0.1",
            f"--http-port={port}",
            "--allow-grpc=false",
            "--allow-metrics=false",
            "--pinned-memory-pool-byte-size=0",
        ]
