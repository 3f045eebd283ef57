"""A temporary folder without space, while workers sum their metrics through files there."""

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
from service.observability.metrics_recorder import Metrics
from service.registry.rollout_store import RolloutStore
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
from service.observability.metrics_recorder import Metrics
metrics = Metrics()
for number in range(2000):
    metrics.requests.labels(f"/route-{number}", "GET", 200).inc(number + 1)
metrics.requests.labels("/route-0", "GET", 200).inc()
text = metrics.render().decode()
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
    """Count in another process, whose disk is full after `full_from` allocations."""
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


def test_metrics_files_are_fully_allocated_on_disk(tmp_path: Path) -> None:
    """Writing to a mapped page without disk space would kill the process."""
    found, log = count(tmp_path, 1_000)
    assert found["shown"] == 2000
    assert found["first"][0].endswith(" 2.0")
    assert max(size for _, size in found["sizes"].values()) > 2**16, "one of them has grown"
    assert all(reserved >= size for reserved, size in found["sizes"].values())
    assert "missing from the sums" not in log


@pytest.mark.parametrize("full_from", [0, 1, 3])
def test_metrics_count_on_and_log_once_without_disk_space(tmp_path: Path, full_from: int) -> None:
    found, log = count(tmp_path, full_from)
    assert found["shown"] < 2000
    assert log.count("missing from the sums") == 1
    assert "No space left on device" in log
    assert not list(tmp_path.glob("*.draft"))


def test_missing_metrics_folder_fails_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "gone"))
    metrics = Metrics()
    metrics.count_request("/predict", "POST", 200, 0.1)
    assert b"dropserve_requests" in metrics.render()


def test_metrics_drop_series_of_removed_models_and_versions() -> None:
    metrics = Metrics()
    for version in ("1", "2"):
        metrics.model_info.labels("digits", version).set(1)
        metrics.inference_images.labels("digits-mc", version).inc()
    metrics.batch_rows.labels("digits").observe(3)
    metrics.batch_rows.labels("cats").observe(3)
    metrics.refused_versions.labels("cats", "1").set(1)
    metrics.retain_series({"digits", "cats"}, {("digits", "1"), ("digits", "2"), ("cats", "1")})
    assert b'model="digits-mc",version="1"' in metrics.render()
    metrics.retain_series({"digits"}, {("digits", "2")})
    text = metrics.render().decode()
    assert "cats" not in text
    assert 'version="1"' not in text
    assert 'dropserve_model_info{model="digits",version="2"} 1.0' in text
    assert 'dropserve_inference_images_total{model="digits-mc",version="2"} 1.0' in text
    assert 'dropserve_batch_rows_sum{model="digits"} 3.0' in text
    assert not metrics.model_info._metrics.keys() & {("digits", "1")}, (
        "the client library keeps no child either"
    )


def test_concurrent_scrapes_share_one_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    rendered: list[int] = []

    def render(*, as_openmetrics: bool) -> bytes:
        rendered.append(1)
        return b"metrics"

    monkeypatch.setattr(metrics, "render_flushed", render)

    async def scenario() -> None:
        responses = await asyncio.gather(*(metrics.render_in_thread() for _ in range(500)))
        assert responses == [b"metrics"] * 500

    asyncio.run(scenario())
    assert len(rendered) <= 2


def test_rollout_change_without_disk_space_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    releases = RolloutStore(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RolloutError, match=r"cannot be kept \(No space left on device\)"):
        releases.change("digits", lambda now: now.pinned(1))
    assert releases.get("digits").held is None
