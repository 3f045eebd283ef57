"""The bundle, cores, ports and environments of a benchmark: flags that both commands share."""

import argparse
import fcntl
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import describe_machine, end_like_ctrl_c
from benchmarks.serving.environments import ROOT, environment
from model.bundle.store import Bundle, open_bundle

_BUNDLES = (ROOT / "models" / "fashion-mnist" / "1", ROOT / "models" / "digits" / "1")


@dataclass(frozen=True)
class Setup:
    """The bundle that is served, and the cores, ports and environments that are used."""

    bundle: Bundle
    server_cores: str
    load_cores: str
    first_port: int
    pythons: dict[str, Path]
    """Python interpreters of existing environments, by the name of their requirements file."""
    package_index: str
    lock: Path | None
    """A file that is locked during a measurement, where other benchmarks share the machine."""

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock, so that no other benchmark that takes it measures at the same time."""
        if self.lock is None:
            yield
            return
        with self.lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def python(self, name: str, log: Callable[[str], None]) -> Path:
        """Return the Python of an environment; make the environment if necessary, and log that.

        Raises:
            EnvironmentFailedError: it cannot be made.
        """
        return self.pythons.get(name) or environment(name, self.package_index, log)

    def scratch(self) -> Path:
        """Return an empty folder; the servers' logs stay there until the next run."""
        folder = ROOT / "build" / f"serving-{self.first_port}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def __str__(self) -> str:
        """Describe the model, the cores and the machine, as a sentence for a record."""
        manifest = self.bundle.manifest
        return (
            f"{manifest.name} version {manifest.version}, ONNX Runtime on one thread; the server "
            f"on core {self.server_cores}, the load on core {self.load_cores}; "
            f"{describe_machine()}, Python {platform.python_version()}."
        )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a `Setup`."""
    parser.add_argument("--bundle", type=Path, help="folder of a bundle")
    parser.add_argument("--server-cores", default="0", help="as taskset -c takes them")
    parser.add_argument("--load-cores", default="1", help="as taskset -c takes them")
    parser.add_argument(
        "--port", type=int, default=8300, help="the first of a port for each server"
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a server's environment by its Python, instead of one that is made; may be repeated",
    )
    parser.add_argument("--package-index", default="", help="another one beside the default")
    parser.add_argument(
        "--lock", type=Path, help="a file to lock while measuring, as others here do too"
    )
    parser.add_argument("--record", type=Path, help="folder of the notes")


def read_flags(options: argparse.Namespace) -> Setup:
    """Return the `Setup` of the parsed flags; from now on SIGTERM ends the program like Ctrl-C."""
    end_like_ctrl_c()
    return Setup(
        bundle=_bundle(options.bundle),
        server_cores=options.server_cores,
        load_cores=options.load_cores,
        first_port=options.port,
        pythons={
            name: Path(path) for name, _, path in (each.partition("=") for each in options.python)
        },
        package_index=options.package_index,
        lock=options.lock,
    )


def recorded_flags(arguments: list[str]) -> list[str]:
    """Return the flags that describe the measurement, without those that name local paths."""
    local = (
        "--bundle",
        "--int8",
        "--before",
        "--python",
        "--lock",
        "--record",
        "--package-index",
        "--port",
    )
    kept, skip = [], False
    for each in arguments:
        if not skip and not each.startswith(local):
            kept.append(each)
        skip = each in local
    return kept


def _bundle(path: Path | None) -> Bundle:
    found = path or next((each for each in _BUNDLES if each.exists()), None)
    if found is None:
        raise SystemExit("There is no bundle; make one with `make train`, or name one: --bundle.")
    return open_bundle(found)
