"""The command line that all programs of this package share."""

import argparse
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.machine import describe_machine, end_like_ctrl_c
from benchmarks.reliability.report import Report
from benchmarks.serving.environments import ROOT

NOTES_FILE = ROOT / "docs" / "reliability.md"


@dataclass(frozen=True)
class Options:
    """The parsed command line of a program, and its scratch folder."""

    quick: bool
    port: int
    """The first of the ports that the program may use."""
    models_folder: Path
    """Contains the bundle digits/1; it is only read."""
    scratch: Path
    """An empty folder for logs and copies."""
    service_cores: str
    load_cores: str
    cgroup: Path | None
    """A cgroup in which this user may create one; the service runs there with 2 GiB."""
    only: frozenset[str]
    """Names of the cases to run; empty for all."""
    log: Callable[[str], None]

    def includes(self, name: str) -> bool:
        """Whether a case is to be run."""
        return not self.only or name in self.only

    def folder(self, name: str) -> Path:
        """Make a folder inside the scratch folder."""
        folder = self.scratch / name
        folder.mkdir(parents=True)
        return folder

    def __str__(self) -> str:
        """Describe the machine."""
        return describe_machine()


def run(
    name: str,
    doc: str | None,
    measure: Callable[[Options], Report],
    arguments: list[str],
    first_port: int,
) -> int:
    """Parse the flags, measure, print, record; return the exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.reliability.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="a short form, under a minute or so")
    parser.add_argument("--record", action="store_true", help="add an entry to docs/reliability.md")
    parser.add_argument("--port", type=int, default=first_port, help="the first one to use")
    parser.add_argument("--models-folder", type=Path, default=ROOT / "models")
    parser.add_argument("--service-cores", default="0", help="as taskset -c takes them")
    parser.add_argument("--load-cores", default="1", help="as taskset -c takes them")
    parser.add_argument("--cgroup", type=Path, help="make the service's cgroup in this one")
    parser.add_argument("--only", default="", help="names of cases, with commas between")
    parsed = parser.parse_args(arguments)
    if not (parsed.models_folder / "digits" / "1").is_dir():
        raise SystemExit(f"{parsed.models_folder} has no digits/1; make it with `make train`.")
    end_like_ctrl_c()
    scratch = ROOT / "build" / f"reliability-{name}-{parsed.port}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    console = Console()
    os.sched_setaffinity(0, _cores(parsed.load_cores))
    options = Options(
        quick=parsed.quick,
        port=parsed.port,
        models_folder=parsed.models_folder.resolve(),
        scratch=scratch,
        service_cores=parsed.service_cores,
        load_cores=parsed.load_cores,
        cgroup=parsed.cgroup,
        only=frozenset(filter(None, parsed.only.split(","))),
        log=console.log,
    )
    report = measure(options)
    report.print(console)
    if parsed.record:
        flags = [each for each in arguments if each != "--record"]
        command = shlex.join(["python", "-m", f"benchmarks.reliability.{name}", *flags])
        report.add_to(NOTES_FILE, command)
    return report.status


def _cores(text: str) -> set[int]:
    try:
        wanted = {int(each) for each in text.split(",")}
    except ValueError:
        raise SystemExit(f"--load-cores: {text!r}: write whole numbers with commas.") from None
    return wanted & os.sched_getaffinity(0) or os.sched_getaffinity(0)
