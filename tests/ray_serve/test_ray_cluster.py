"""Serves with Ray on two nodes of this machine, compares with one server, kills and rolls out.

DROPSERVE_RAY_PYTHON names the python of an environment with Ray and this project. The tests share
one cluster and stand in the order in which they disturb it.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.reliability.checked_clients import WRONG
from benchmarks.reliability.equal_answers import differences, requests_of_every_kind
from benchmarks.reliability.ray_cluster import RayCluster
from benchmarks.reliability.ray_replicas import (
    NODES,
    kill_node,
    kill_replica,
    roll_out_under_load,
    send_while,
    two_replicas,
    unexplained,
)
from benchmarks.reliability.rollout_commands import Commands
from benchmarks.reliability.version_watch import VersionStats, stale_answers
from benchmarks.reliability.wire import Address, exchange, request
from tests.bundles import copy_bundle, edit_manifest
from tests.free_port import free_port
from tests.service.process import service_process

# Read at import: a fixture deletes every DROPSERVE_ variable before the first test.
RAY_PYTHON = os.environ.get("DROPSERVE_RAY_PYTHON")

pytestmark = [
    pytest.mark.timeout(900),  # Ray takes long to start a process on a busy machine
    pytest.mark.ray,
    pytest.mark.skipif(not RAY_PYTHON, reason="DROPSERVE_RAY_PYTHON names no python with Ray"),
]

_REQUESTS = 1000
_ROUNDS = 2


@pytest.fixture(scope="module")
def models(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with version 1 of digits; a test adds version 2."""
    folder = tmp_path_factory.mktemp("models")
    copy_bundle(bundle_folder, folder)
    return folder


@pytest.fixture(scope="module")
def one_server(models: Path) -> Iterator[Address]:
    """One server of version 1, whose answers are the right ones."""
    with service_process(models, "--models", "digits@1") as service:
        yield "127.0.0.1", service.port


@pytest.fixture(scope="module")
def cluster(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """Two nodes with a replica each, which share their rollouts."""
    folder = tmp_path_factory.mktemp("cluster")
    with two_replicas(Path(str(RAY_PYTHON)), folder, free_port(), models) as cluster:
        cluster.wait_until_ready(NODES)
        yield cluster


def test_answers_are_those_of_one_server(one_server: Address, cluster: RayCluster) -> None:
    assert differences(one_server, cluster.address, requests_of_every_kind(_REQUESTS)) == []


def test_body_that_is_too_large_is_refused_before_a_replica(cluster: RayCluster) -> None:
    head = "Transfer-Encoding: chunked"
    chunks = 11 * (b"100000\r\n" + 2**20 * b" " + b"\r\n") + b"0\r\n\r\n"
    message = request("POST", "/predict", None, head, "Content-Type: image/png") + chunks

    response = exchange(cluster.address, message)

    assert response is not None
    assert (response.status, b'"body_too_large"' in response.body) == (413, True)


def test_requests_of_a_killed_replica_are_refused_and_none_is_answered_wrongly(
    one_server: Address, cluster: RayCluster
) -> None:
    counts = asyncio.run(send_while(one_server, cluster, kill_replica)).counts

    assert counts["200"] > 0
    assert (counts[WRONG], unexplained(counts)) == (0, 0), counts


def test_rollout_under_load_loses_no_request(models: Path, cluster: RayCluster) -> None:
    version_2 = copy_bundle(models / "digits" / "1", models, version=2)
    edit_manifest(version_2, class_names=list("9876543210"))  # which tell answers apart
    commands, stats = Commands([cluster.address]), VersionStats()

    asyncio.run(roll_out_under_load(cluster.address, commands, stats, _ROUNDS))

    assert commands.refusals == []
    assert (stats.wrong, stats.counts["sent"] - stats.good) == (0, 0), stats.counts
    assert stale_answers(stats.answers, commands.history) == []


def test_requests_of_a_killed_node_are_refused_and_a_new_node_serves_what_was_rolled_out(
    one_server: Address, cluster: RayCluster
) -> None:
    counts = asyncio.run(send_while(one_server, cluster, kill_node)).counts

    assert counts["200"] > 0
    assert (counts[WRONG], unexplained(counts)) == (0, 0), counts
