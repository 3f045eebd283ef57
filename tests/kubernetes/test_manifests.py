"""The manifests agree with the service, its settings, routes and metrics, and with each other."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.check.edge_check import check_edge
from service.keys.key_ring import KeyRing
from service.observability.metrics_recorder import Metrics
from service.registry.rollouts_file import RolloutsFile
from service.settings import ServiceSettings
from tests.conftest import ROOT
from tests.kubernetes.rendering import (
    COMPONENTS,
    KUBERNETES,
    KUSTOMIZATIONS,
    Manifest,
    container,
    everything,
    of_kind,
    options,
    pod_spec,
    render,
    rendered,
    the,
    with_component,
)
from tests.monitoring.monitoring_files import groups
from tests.service.serving import serving_models
from training.config import TrainingConfig

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
IMAGE = (ROOT / "Dockerfile").read_text()
SERVING = ("Deployment", "ServingRuntime")
WORKLOADS = (*SERVING, "Job")
WRITTEN_OVERLAYS = re.findall(
    r"^(mkdir (deploy/kubernetes/overlays/\w+)\n.*?^END\n)", PAGE, re.MULTILINE | re.DOTALL
)
"""The commands of the page that write an overlay, and its folder."""
MEBIBYTE = {"Mi": 1, "Gi": 1024}


def workloads(kinds: tuple[str, ...] = WORKLOADS) -> Iterator[Manifest]:
    for kind in kinds:
        yield from of_kind(everything(), kind)


def settings_of(manifest: Manifest) -> ServiceSettings:
    return ServiceSettings.model_validate(options(manifest, Name="digits"))


def image_variable(name: str) -> str:
    """Return what the image of the service sets a variable to."""
    (value,) = re.findall(rf"^\s*(?:ENV )?{name}=(\S+)", IMAGE, re.MULTILINE)
    return str(value)


def seconds(manifest: Manifest) -> float:
    settings = settings_of(manifest)
    return settings.drain_delay + settings.grace_seconds + 2


def test_arguments_are_settings_with_valid_values() -> None:
    for manifest in workloads(SERVING):
        assert options(manifest).keys() <= ServiceSettings.model_fields.keys()
        assert settings_of(manifest).drain_delay > 0
    for manifest in workloads(("Job",)):
        assert options(manifest).keys() <= TrainingConfig.model_fields.keys()
        TrainingConfig.model_validate(options(manifest))


@pytest.mark.parametrize("component", COMPONENTS)
def test_component_can_be_added_alone(component: str, tmp_path: Path) -> None:
    manifests = with_component(component, tmp_path)
    added = options(the(manifests, "Deployment"))
    assert added.keys() <= ServiceSettings.model_fields.keys()
    claims = {each["metadata"]["name"] for each in of_kind(manifests, "PersistentVolumeClaim")}
    claims |= {each["metadata"]["name"] for each in of_kind(manifests, "ConfigMap")}
    for volume in pod_spec(the(manifests, "Deployment"))["volumes"]:
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        assert {claim, volume.get("configMap", {}).get("name")} - {None} <= claims


def test_pods_have_time_to_drain_and_to_finish() -> None:
    for manifest in of_kind(everything(), "Deployment"):
        assert pod_spec(manifest)["terminationGracePeriodSeconds"] > seconds(manifest)
    runtime = the(rendered("kserve"), "ServingRuntime")
    assert seconds(runtime) < 30, "which Kubernetes gives where nothing else is said"


def test_ports_are_where_the_service_listens() -> None:
    assert image_variable("DROPSERVE_HOST") == "0.0.0.0"
    for deployment in of_kind(everything(), "Deployment"):
        (port,) = container(deployment)["ports"]
        assert port == {"name": "http", "containerPort": int(image_variable("DROPSERVE_PORT"))}
    runtime = the(rendered("kserve"), "ServingRuntime")
    assert settings_of(runtime).port == container(runtime)["ports"][0]["containerPort"] == 8080
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == "8080"
    assert settings_of(runtime).models_folder == Path("/mnt/models")
    assert container(runtime)["name"] == "kserve-container"
    for folder in ("base", "overlays/production"):
        assert the(rendered(folder), "Service")["spec"]["ports"][0]["targetPort"] == "http"
        (rule,) = the(rendered(folder), "NetworkPolicy")["spec"]["ingress"]
        assert [each["port"] for each in rule["ports"]] == ["http"]


def test_probes_answer_on_the_real_service(models_folder: Path) -> None:
    paths = set()
    for manifest in workloads(SERVING):
        (port,) = container(manifest)["ports"]
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container(manifest).get(kind)
            if probe is not None:
                paths.add(probe["httpGet"]["path"])
                assert probe["httpGet"]["port"] in (port["containerPort"], port.get("name"))
    assert paths == {"/health/live", "/health/ready"}
    monitor = the(rendered("overlays/production"), "ServiceMonitor")
    paths.add(monitor["spec"]["endpoints"][0]["path"])
    with serving_models(models_folder) as application:
        assert {application.get(path).status_code for path in paths} == {200}


def test_readiness_is_asked_for_readiness_alone() -> None:
    for manifest in workloads(SERVING):
        assert container(manifest)["readinessProbe"]["httpGet"]["path"] == "/health/ready"
        assert container(manifest)["livenessProbe"]["httpGet"]["path"] == "/health/live"


@pytest.mark.parametrize("folder", ["base", "overlays/production"])
def test_selectors_match_the_pods(folder: str) -> None:
    manifests = rendered(folder)
    deployment = the(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    selectors: list[Any] = [
        deployment["spec"]["selector"]["matchLabels"],
        the(manifests, "Service")["spec"]["selector"],
        the(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        the(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    constraints = pod_spec(deployment)["topologySpreadConstraints"]
    selectors += [each["labelSelector"]["matchLabels"] for each in constraints]
    assert all(selector.items() <= labels for selector in selectors)
    target = the(manifests, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "which would undo the autoscaler's"


def test_training_pods_get_no_requests() -> None:
    labels = the(rendered("training"), "Job")["spec"]["template"]["metadata"]["labels"]
    selector = the(rendered("base"), "Service")["spec"]["selector"]
    assert not selector.items() <= labels.items()


def test_prometheus_finds_the_service_under_the_job_that_rules_ask_for() -> None:
    manifests = rendered("overlays/production")
    monitor, service = the(manifests, "ServiceMonitor")["spec"], the(manifests, "Service")
    labels = service["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["jobLabel"]] == "dropserve"
    names = [each["name"] for each in service["spec"]["ports"]]
    assert [each["port"] for each in monitor["endpoints"]] == names


def test_prometheus_operator_gets_every_rule() -> None:
    rules = the(rendered("overlays/production"), "PrometheusRule")
    assert rules["spec"]["groups"] == groups()


def test_key_of_prometheus_goes_into_its_secret_without_a_newline(tmp_path: Path) -> None:
    commands = "\n".join(re.findall(r"^python -m service\.keys add .*", PAGE, re.MULTILINE))
    script = commands.replace("python -m", f"{shlex.quote(sys.executable)} -m")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, env=environment, check=True)
    key = KeyRing(tmp_path / "keys.json", Metrics()).find((tmp_path / "metrics.key").read_text())
    assert key is not None
    assert key.scopes == {"metrics"}


@pytest.mark.parametrize(("commands", "overlay"), WRITTEN_OVERLAYS)
def test_written_overlay_runs_the_images_that_were_pushed(
    commands: str, overlay: str, tmp_path: Path
) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "deploy" / "kubernetes")
    subprocess.run(["bash", "-ec", commands], cwd=tmp_path, check=True)
    manifests = render(tmp_path / overlay)
    images = {container(each)["image"] for each in manifests if each["kind"] in WORKLOADS}
    assert images
    assert images <= set(re.findall(r"docker push (\S+)", PAGE))


def test_page_applies_overlays_that_name_the_images_and_nothing_else() -> None:
    applied = re.findall(r"^kubectl apply .*-k (\S+)", PAGE, re.MULTILINE)
    assert applied == [overlay for _, overlay in WRITTEN_OVERLAYS]


def test_production_believes_the_proxies_before_it() -> None:
    settings = settings_of(the(rendered("overlays/production"), "Deployment"))
    assert settings.api_keys_file is not None
    assert settings.trusted_networks
    assert list(check_edge(settings)) == []


def test_rules_for_roles_and_for_other_ports_are_valid_once_they_are_no_comments(
    tmp_path: Path,
) -> None:
    copy = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    file = copy / "components" / "models-source" / "kustomization.yaml"
    text = re.sub(r"^( +)# ((?:- |  )\w+: \[)", r"\1\2", file.read_text(), flags=re.MULTILINE)
    file.write_text(text)
    policy = the(with_component("models-source", tmp_path, copy), "NetworkPolicy")
    opened = [(rule["ports"][-1]["port"], "to" in rule) for rule in policy["spec"]["egress"]]
    assert opened == [(443, False), (80, True), (988, True), (9000, False)]


def test_autoscaler_and_adapter_read_a_metric_that_exists() -> None:
    exposed = set(re.findall(r"^# TYPE (\S+) gauge", Metrics().render().decode(), re.MULTILINE))
    autoscaler = the(rendered("overlays/production"), "HorizontalPodAutoscaler")
    (pods,) = [each["pods"] for each in autoscaler["spec"]["metrics"] if each["type"] == "Pods"]
    file = KUBERNETES / "components" / "queue-autoscaling" / "prometheus-adapter.yaml"
    (rule,) = yaml.safe_load(file.read_text())["rules"]["custom"]
    name = rule["name"]["as"]
    assert pods["metric"]["name"] == name
    assert name in exposed
    assert rule["seriesQuery"].startswith(f"{name}{{")
    batch = ServiceSettings.model_fields["max_batch_rows"].default
    assert int(pods["target"]["averageValue"]) == batch


def test_every_pod_is_confined() -> None:
    for manifest in workloads():
        context = container(manifest)["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        both = pod_spec(manifest).get("securityContext", {}) | context
        assert both["runAsNonRoot"]
        assert "runAsUser" not in both, "any user will do"
        assert both["seccompProfile"] == {"type": "RuntimeDefault"}
        if manifest["kind"] != "ServingRuntime":
            assert pod_spec(manifest)["automountServiceAccountToken"] is False
            assert pod_spec(manifest)["enableServiceLinks"] is False


def test_every_folder_that_is_written_is_a_volume() -> None:
    for manifest in workloads():
        volumes = {each["name"] for each in pod_spec(manifest)["volumes"]}
        mounts = {each["mountPath"]: each for each in container(manifest)["volumeMounts"]}
        assert {each["name"] for each in mounts.values()} <= volumes
        written = {"/tmp"} | ({"/models"} if manifest["kind"] == "Job" else set())
        if manifest["kind"] == "Deployment":
            written.add(image_variable("DROPSERVE_CONTROL_FOLDER"))
            assert mounts[image_variable("DROPSERVE_MODELS_FOLDER")]["readOnly"]
        assert not any(mounts[path].get("readOnly") for path in written)


def test_memory_is_enough_for_two_versions_under_attack() -> None:
    sizes = (ROOT / "docs" / "deployment.md").read_text()
    (measured,) = re.findall(r"^\| Fashion-MNIST, 97,754 .*? MB \| (\d+) MB", sizes, re.MULTILINE)
    attack = 500
    for manifest in workloads(SERVING):
        amount, unit = re.fullmatch(
            r"(\d+)(Mi|Gi)", container(manifest)["resources"]["limits"]["memory"]
        ).groups()  # type: ignore[union-attr]
        mebibytes = int(amount) * MEBIBYTE[unit]
        assert mebibytes * 2**20 > (2 * int(measured) + attack) * 10**6


@pytest.mark.parametrize("name", ["digits", "digits-v1"])
def test_inference_service_names_the_runtime_and_what_it_offers(name: str) -> None:
    manifests = rendered("kserve")
    runtime = the(manifests, "ServingRuntime")
    (found,) = [
        each for each in of_kind(manifests, "InferenceService") if each["metadata"]["name"] == name
    ]
    model = found["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (format_,) = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"] == {"name": format_["name"], "version": format_["version"]}
    assert settings_of(runtime).served_model_name == "digits"


def test_page_names_each_folder() -> None:
    folders = [*KUSTOMIZATIONS, *(f"components/{name}" for name in COMPONENTS)]
    assert [each for each in folders if f"deploy/kubernetes/{each}" not in PAGE] == []


def test_config_map_holds_rollouts_that_the_service_can_follow(tmp_path: Path) -> None:
    manifests = with_component("rollouts", tmp_path)
    deployment, config_map = the(manifests, "Deployment"), the(manifests, "ConfigMap")
    file = settings_of(deployment).rollouts
    assert file is not None
    (mount,) = [
        each
        for each in container(deployment)["volumeMounts"]
        if each["mountPath"] == str(file.parent)
    ]
    assert "subPath" not in mount, "which would never change"
    assert config_map["metadata"]["name"] == "dropserve-rollouts", "a new name restarts every Pod"
    copy = tmp_path / file.name
    copy.write_text(config_map["data"][file.name])
    rollouts = RolloutsFile(copy)
    rollouts.read()
    assert rollouts.is_valid
    assert rollouts.models["digits"].versions == (1,)
