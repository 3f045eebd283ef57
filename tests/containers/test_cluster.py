"""What a cluster does to the container: any user, nothing to write to, no way out, SIGTERM, limits.

Run with `make compose-test`. The arguments, limits and volumes are those of deploy/kubernetes.
"""

import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.bundles import copy_bundle
from tests.containers.cluster_container import USER, ClusterContainer, cluster_container
from tests.containers.compose_stack import digits, form
from tests.kubernetes.rendering import options, rendered, the, with_component

pytestmark = pytest.mark.compose

CLIENTS = 4
MEMORY_BYTES = 2**30
SERVICE_LINKS = {"DROPSERVE_PORT": "tcp://10.0.0.1:80", "DROPSERVE_SERVICE_HOST": "10.0.0.1"}
"""What Kubernetes adds where a Service is named dropserve and links are not turned off."""


@pytest.fixture(scope="module")
def running(service_image: tuple[str, str], models_folder: Path) -> Iterator[ClusterContainer]:
    """The Deployment's container."""
    deployment = the(rendered("base"), "Deployment")
    with cluster_container(service_image, deployment, {"/models": str(models_folder)}, {}) as it:
        yield it


def test_any_user_serves_from_a_read_only_root(running: ClusterContainer) -> None:
    images, labels = digits(20)
    response = httpx.post(f"{running.url}/predict", files=form(images))
    assert response.status_code == 200, response.text
    predicted = [each["label"] for each in response.json()["predictions"]]
    assert sum(a == b for a, b in zip(predicted, labels, strict=True)) >= 18
    found = running.python(
        "import json, os, pathlib\n"
        "refused = []\n"
        "for folder in ('/', '/app', '/venv', '/models'):\n"
        "    try:\n"
        "        pathlib.Path(folder, 'written').touch()\n"
        "    except OSError:\n"
        "        refused.append(folder)\n"
        "status = dict(line.split(':\\t', 1) for line in "
        "pathlib.Path('/proc/1/status').read_text().splitlines() if ':\\t' in line)\n"
        "print(json.dumps([f'{os.getuid()}:{os.getgid()}', refused, int(status['CapBnd'], 16)]))"
    )
    assert found == [USER, ["/", "/app", "/venv", "/models"], 0]


def test_nothing_but_the_port_is_reached(running: ClusterContainer) -> None:
    outcome = running.python(
        "import json, socket\n"
        "def outcome(act):\n"
        "    try:\n"
        "        act()\n"
        "    except OSError:\n"
        "        return 'refused'\n"
        "    return 'reached'\n"
        "print(json.dumps([\n"
        "    outcome(lambda: socket.create_connection(('192.0.2.1', 443), 2)),\n"
        "    outcome(lambda: socket.getaddrinfo('example.org', 443)),\n"
        "]))"
    )
    assert outcome == ["refused", "refused"]
    assert httpx.get(f"{running.url}/health/ready").status_code == 200


def test_commands_reach_the_service_from_inside(running: ClusterContainer) -> None:
    command = ("exec", running.name, "python", "-m", "service.control")
    assert running.run(*command, "pin", "digits", "--version", "1").startswith("digits: ")
    assert running.run(*command, "follow", "digits").startswith("digits: ")


def test_memory_stays_within_the_limit_whatever_clients_send(running: ClusterContainer) -> None:
    picture = _photograph()

    def send(_: int) -> int:
        return httpx.post(
            f"{running.url}/uncertainty",
            content=picture,
            headers={"Content-Type": "image/jpeg"},
            timeout=60,
        ).status_code

    with ThreadPoolExecutor(12) as clients:
        statuses = set(clients.map(send, range(36)))
    peak = running.python(
        "import pathlib; folder = pathlib.Path('/sys/fs/cgroup'); print(max(int(each.read_text()) "
        "for each in (folder / 'memory.peak', folder / 'memory/memory.max_usage_in_bytes') "
        "if each.exists()))"
    )
    assert statuses <= {200, 503}
    assert 200 in statuses
    assert peak < MEMORY_BYTES
    assert not running.state().get("OOMKilled")
    assert httpx.get(f"{running.url}/health/ready").status_code == 200


def test_sigterm_after_a_hook_loses_no_request(
    service_image: tuple[str, str], models_folder: Path
) -> None:
    deployment = the(rendered("base"), "Deployment")
    delay = float(options(deployment)["drain_delay"])
    images, _ = digits(1)
    outcomes: list[int] = []
    stopped = threading.Event()

    def send_until_stopped(url: str) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stopped.is_set():
                outcomes.append(client.post("/uncertainty", files=form(images)).status_code)

    with (
        cluster_container(service_image, deployment, {"/models": str(models_folder)}, {}) as it,
        ThreadPoolExecutor(CLIENTS) as clients,
    ):
        sending = [clients.submit(send_until_stopped, it.url) for _ in range(CLIENTS)]
        it.python("import time; time.sleep(1); print('null')")  # a preStop hook
        before = len(outcomes)
        started = time.monotonic()
        ended = it.terminate()
        not_ready = httpx.get(f"{it.url}/health/ready").status_code
        while time.monotonic() < started + delay - 3:  # nobody is sent here any longer after that
            time.sleep(0.1)
        during = len(outcomes) - before
        stopped.set()
        for each in sending:
            each.result()
        status, _ = ended.communicate(timeout=60)
        seconds = time.monotonic() - started
    assert before > 0
    assert during > 0
    assert set(outcomes) == {200}
    assert not_ready == 503
    assert int(status) == 0
    assert delay <= seconds < delay + 10


def test_changed_config_map_changes_the_version_that_serves(
    service_image: tuple[str, str], bundle_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "overlay").mkdir()
    deployment = the(with_component("rollouts", tmp_path / "overlay"), "Deployment")
    for version in (1, 2):
        copy_bundle(bundle_folder, tmp_path / "models", "digits", version)
    config_map = tmp_path / "rollouts"
    config_map.mkdir()
    _write_config_map(config_map, 1)
    mounts = {"/models": str(tmp_path / "models"), "/rollouts": str(config_map)}
    with cluster_container(service_image, deployment, mounts, {}) as it:
        first = _served(it)
        _write_config_map(config_map, 2)
        deadline = time.monotonic() + 20
        while _served(it) != "2" and time.monotonic() < deadline:
            time.sleep(0.1)
        last = _served(it)
    assert (first, last) == ("1", "2")


def _served(running: ClusterContainer) -> str:
    (model,) = httpx.get(f"{running.url}/models").json()["models"]
    return str(model["version"])


def _write_config_map(folder: Path, version: int) -> None:
    """Change the file as a kubelet does: a new folder, to which a link is turned."""
    (folder / f"..{version}").mkdir()
    content = {"models": {"digits": {"version": version}}}
    (folder / f"..{version}" / "rollouts.json").write_text(json.dumps(content))
    (folder / "..new").symlink_to(f"..{version}")
    (folder / "..new").rename(folder / "..data")
    if not (folder / "rollouts.json").is_symlink():
        (folder / "rollouts.json").symlink_to("..data/rollouts.json")


def test_kserve_mounts_a_bundle_and_names_it(
    service_image: tuple[str, str], bundle_folder: Path
) -> None:
    runtime = the(rendered("kserve"), "ServingRuntime")
    images, labels = digits(1)
    pixels = np.asarray(Image.open(io.BytesIO(images[0])))
    with cluster_container(
        service_image,
        runtime,
        {"/mnt/models": str(bundle_folder)},
        SERVICE_LINKS,
        Name="numerals",
    ) as it:
        tensor = {
            "name": "images",
            "shape": [1, 1, 8, 8],
            "datatype": "UINT8",
            "data": pixels.tolist(),
        }
        v2 = httpx.post(f"{it.url}/v2/models/numerals-mc/infer", json={"inputs": [tensor]})
        rows = {"instances": [(pixels / 255).tolist()]}
        v1 = httpx.post(f"{it.url}/v1/models/numerals:predict", json=rows)
    assert v2.status_code == 200, v2.text
    assert v2.json()["model_name"] == "numerals-mc"
    assert v1.status_code == 200, v1.text
    assert v1.json()["predictions"][0]["label"] == labels[0]


def _photograph() -> bytes:
    """Return a JPEG of twelve megapixels, which is read in a sandbox process."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((4000, 3000)).save(file, "JPEG", quality=80)
    return file.getvalue()
