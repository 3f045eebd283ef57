"""Builds, starts, uses and removes the containers. Run with `make compose-test`."""

import errno
import math
import time

import httpx
import pytest

from tests.containers.compose_stack import Stack, digits, form

pytestmark = pytest.mark.compose

GRACE_SECONDS = 20.0  # the service's own default, shorter than the stop_grace_period
USER = 10_001


def test_predict_classifies_real_digits(stack: Stack) -> None:
    images, labels = digits(50)

    response = httpx.post(f"{stack.url}/predict", files=form(images))

    assert response.status_code == httpx.codes.OK, response.text
    assert (response.json()["model"], response.json()["version"]) == ("digits", "1")
    predicted = [each["label"] for each in response.json()["predictions"]]
    correct = sum(a == b for a, b in zip(predicted, labels, strict=True))
    assert correct >= 0.95 * len(labels)


def test_uncertainty_returns_finite_statistics(stack: Stack) -> None:
    images, _ = digits(10)

    response = httpx.post(f"{stack.url}/uncertainty", files=form(images))

    assert response.status_code == httpx.codes.OK, response.text
    assert len(response.json()["predictions"]) == len(images)
    for each in response.json()["predictions"]:
        by_class = [
            *each["probabilities"].values(),
            *each["probability_std"].values(),
            *each["standard_error"].values(),
        ]
        assert len(by_class) == 3 * 10
        assert all(math.isfinite(value) for value in by_class)
        assert math.isclose(sum(each["probabilities"].values()), 1, abs_tol=1e-5)
        assert 0 <= each["expected_entropy"] <= each["predictive_entropy"] <= math.log(10)
        assert 0 <= each["mutual_information"] <= each["predictive_entropy"]
        assert 0 <= each["variation_ratio"] <= 1


def test_port_is_published_for_this_machine_alone(stack: Stack) -> None:
    bindings = stack.inspect("service", "{{json .HostConfig.PortBindings}}")

    assert bindings == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(stack.port)}]}


def test_profile_monitoring_adds_prometheus_and_grafana(stack: Stack) -> None:
    without = stack.compose("config", "--services").split()
    with_them = stack.compose("--profile", "monitoring", "config", "--services").split()
    assert {*with_them} - {*without} == {"prometheus", "grafana"}


def test_models_are_controlled_from_inside_the_container_only(stack: Stack) -> None:
    outputs = stack.python(
        "import json, subprocess, sys; print(json.dumps([subprocess.run([sys.executable, '-m', "
        "'service.control', action, 'digits'], capture_output=True, text=True).stdout "
        "for action in ('unload', 'load', 'follow')]))"
    )
    outside = httpx.post(f"{stack.url}/v2/repository/models/digits/unload")

    assert outputs == [
        "digits: unloaded\n",
        "digits: loaded\n",
        "digits: stable version 1 (the newest)\n",
    ]
    assert outside.status_code == httpx.codes.FORBIDDEN


def test_service_has_no_torch_and_no_compiler(stack: Stack) -> None:
    modules = stack.python(
        "import importlib.util as i, json; print(json.dumps([name for name in "
        "('onnxruntime', 'torch', 'lightning', 'sklearn', 'training') if i.find_spec(name)]))"
    )
    commands = stack.python(
        "import json, shutil; print(json.dumps([name for name in "
        "('python', 'cc', 'gcc', 'g++', 'clang', 'ld', 'make') if shutil.which(name)]))"
    )

    assert modules == ["onnxruntime"]
    assert commands == ["python"]


def test_service_runs_without_privileges(stack: Stack) -> None:
    status = stack.python(
        "import json, pathlib; print(json.dumps(dict(line.split(':\\t', 1) for line in "
        "pathlib.Path('/proc/1/status').read_text().splitlines())))"
    )

    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(USER)}
    assert {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {
        "CapPrm": 0,
        "CapEff": 0,
        "CapBnd": 0,
    }
    assert int(status["NoNewPrivs"]) == 1


def test_service_can_write_only_to_tmp(stack: Stack) -> None:
    refusals = stack.python(
        "import json, pathlib\n"
        "refusals = {}\n"
        "for folder in ('/app', '/venv', '/models', '/tmp'):\n"
        "    try:\n"
        "        pathlib.Path(folder, 'written').touch()\n"
        "        refusals[folder] = None\n"
        "    except OSError as error:\n"
        "        refusals[folder] = error.errno\n"
        "print(json.dumps(refusals))"
    )

    read_only = errno.EROFS  # not EACCES, which only the file's owner would cause
    assert refusals == {"/app": read_only, "/venv": read_only, "/models": read_only, "/tmp": None}


def test_resource_limits_are_set(stack: Stack) -> None:
    limits = stack.inspect(
        "service",
        '{"memory": {{.HostConfig.Memory}}, "pids": {{.HostConfig.PidsLimit}}, '
        '"nano_cpus": {{.HostConfig.NanoCpus}}}',
    )

    assert limits == {"memory": 2 * 2**30, "pids": 256, "nano_cpus": 10**9}


def test_health_check_passes(stack: Stack) -> None:
    kind, *command = stack.inspect("service", "{{json .Config.Healthcheck.Test}}")

    assert kind == "CMD"
    stack.compose("exec", "-T", "service", *command)


def test_telemetry_of_onnx_runtime_is_off(stack: Stack) -> None:
    # ONNX Runtime writes an identity of the machine when its telemetry is on.
    traces = stack.python(
        "import json, pathlib; print(json.dumps([str(path) for path in "
        "pathlib.Path('/tmp').rglob('*') if path.name in ('deviceid', '.ses')]))"
    )

    assert traces == []


def test_second_up_trains_nothing(stack: Stack) -> None:
    skipped = stack.logs("trainer").count("is there already")

    stack.compose("up", "-d")
    stack.wait_until_ended("trainer")
    stack.wait_until_ready()

    assert stack.logs("trainer").count("is there already") > skipped
    assert stack.inspect("trainer", "{{.State.ExitCode}}") == 0
    assert stack.python("import json, os; print(json.dumps(os.listdir('/models/digits')))") == ["1"]
    served = httpx.get(f"{stack.url}/models").json()["models"]
    assert [(each["name"], each["version"]) for each in served] == [("digits", "1")]


def test_key_made_in_the_container_is_needed_once_its_file_is_named(stack: Stack) -> None:
    file = "/state/keys.json"
    add = ("python", "-m", "service.keys", "add", file, "--name", "alice")
    token = stack.compose("exec", "-T", "service", *add).strip()
    images, _ = digits(1)
    # podman-compose sees no change where only the environment differs.
    again = ("up", "-d", "--no-deps", "--force-recreate", "service")
    try:
        stack.compose(*again, DROPSERVE_API_KEYS_FILE=file)
        stack.wait_until_ready()

        without = httpx.post(f"{stack.url}/predict", files=form(images))
        headers = {"Authorization": f"Bearer {token}"}
        with_key = httpx.post(f"{stack.url}/predict", files=form(images), headers=headers)
    finally:
        stack.compose(*again)
        stack.wait_until_ready()

    assert (without.status_code, with_key.status_code) == (401, 200)


def test_sigterm_ends_the_service_in_time(stack: Stack) -> None:
    started = time.monotonic()

    stack.compose("stop", "service")

    seconds = time.monotonic() - started
    try:
        assert stack.inspect("service", "{{json .State.Status}}") == "exited"
        assert stack.inspect("service", "{{.State.ExitCode}}") == 0  # 137 when it had to be killed
        assert seconds < GRACE_SECONDS
    finally:
        stack.compose("start", "service")
        stack.wait_until_ready()
