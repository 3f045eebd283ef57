"""A temporary folder without space, while several workers sum their figures through files there."""

import asyncio
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.errors import RolloutError
from service.observability.metrics import Metrics
from service.registry.rollout import RolloutStore
from tests.conftest import ROOT

ROUND_TRIP = """
import json, os, sys
import structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
full_from = int(sys.argv[1])
reserved = 0
allocate = os.posix_fallocate

def limited(descriptor, start, size):
    global reserved
    reserved += 1
    if reserved > full_from:
        raise OSError(28, "No space left on device")
    allocate(descriptor, start, size)

os.posix_fallocate = limited
from service.observability.metrics import Metrics
metrics = Metrics()
for number in range(2000):
    metrics.requests.labels(f"/route-{number}", "GET", 200).inc(number + 1)
metrics.requests.labels("/route-0", "GET", 200).inc()
text = metrics.expose().decode()
metrics.close()
lines = [line for line in text.splitlines() if line.startswith("dropserve_requests_total{")]
sizes = {
    name: [os.stat(file).st_blocks * 512, os.stat(file).st_size]
    for name in os.listdir(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    for file in [os.path.join(os.environ["PROMETHEUS_MULTIPROC_DIR"], name)]
}
print(json.dumps({"shown": len(lines), "first": lines[:1], "sizes": sizes}))
"""


def count(folder: Path, full_from: int) -> tuple[Any, str]:
    """Count in a process of its own, for whose files there is space so many times."""
    done = subprocess.run(
        [sys.executable, "-c", ROUND_TRIP, str(full_from)],
        cwd=ROOT,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_every_byte_of_the_files_has_its_place_on_the_disk(tmp_path: Path) -> None:
    """A page without one would end the process when it is first written to."""
    found, said = count(tmp_path, 1_000)
    assert found["shown"] == 2000
    assert found["first"][0].endswith(" 2.0")
    assert max(size for _, size in found["sizes"].values()) > 2**16, "one of them has grown"
    assert all(reserved >= size for reserved, size in found["sizes"].values())
    assert "not summed" not in said


@pytest.mark.parametrize("full_from", [0, 1, 3])
def test_without_space_it_counts_on_and_says_so_once(tmp_path: Path, full_from: int) -> None:
    found, said = count(tmp_path, full_from)
    assert found["shown"] < 2000
    assert said.count("are not summed with the others'") == 1
    assert "No space left on device" in said
    assert not list(tmp_path.glob("*.draft"))


def test_a_temporary_folder_that_is_gone_costs_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "gone"))
    metrics = Metrics()
    metrics.answered("/predict", "POST", 200, 0.1)
    assert b"dropserve_requests" in metrics.expose()


def test_series_of_versions_and_models_that_are_gone_go() -> None:
    metrics = Metrics()
    for version in ("1", "2"):
        metrics.model_info.labels("digits", version).set(1)
        metrics.inference_images.labels("digits-mc", version).inc()
    metrics.batch_rows.labels("digits").observe(3)
    metrics.batch_rows.labels("cats").observe(3)
    metrics.refused_versions.labels("cats", "1").set(1)
    metrics.keep({"digits", "cats"}, {("digits", "1"), ("digits", "2"), ("cats", "1")})
    assert b'model="digits-mc",version="1"' in metrics.expose()
    metrics.keep({"digits"}, {("digits", "2")})
    text = metrics.expose().decode()
    assert "cats" not in text
    assert 'version="1"' not in text
    assert 'dropserve_model_info{model="digits",version="2"} 1.0' in text
    assert 'dropserve_inference_images_total{model="digits-mc",version="2"} 1.0' in text
    assert 'dropserve_batch_rows_sum{model="digits"} 3.0' in text
    assert not metrics.model_info._metrics.keys() & {("digits", "1")}, "nor are they kept"


def test_many_scrapes_at_once_share_what_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    rendered: list[int] = []

    def render() -> bytes:
        rendered.append(1)
        return b"figures"

    monkeypatch.setattr(metrics, "_rendered", render)

    async def scenario() -> None:
        answers = await asyncio.gather(*(metrics.exposition() for _ in range(500)))
        assert answers == [b"figures"] * 500

    asyncio.run(scenario())
    assert len(rendered) <= 2


def test_a_change_that_cannot_be_kept_for_want_of_space_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    releases = RolloutStore(tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RolloutError, match=r"cannot be kept \(No space left on device\)"):
        releases.change("digits", lambda now: now.pinned(1))
    assert releases.get("digits").held is None
