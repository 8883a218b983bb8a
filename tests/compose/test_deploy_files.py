"""What can be known of deploy/ and docker-compose.yml without running them.

They fit their schemas, linters have nothing to say, and they agree with each other and the code.
"""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from streamproc.kafka.connection import group_of
from streamproc.services.service import PORTS
from streamproc.settings import Settings, known_keys

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = [
    (path, index, manifest)
    for path in sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
    if path.name != "kustomization.yaml"
    for index, manifest in enumerate(yaml.safe_load_all(path.read_text(encoding="utf-8")))
]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
OURS = {name: service for name, service in COMPOSE["services"].items() if name != "kafka"}
# The oldest that is promised, and the newest that the schemas know.
KUBERNETES_VERSIONS = ("1.30", "1.37")


def _closed(required: str, **properties: dict) -> dict:
    """Return the schema of an object with these keys and no others."""
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": False,
    }


_STRING = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_BOOL = {"enum": ["true", "false"]}
_METADATA = _closed(
    "name", name=_STRING, labels={"type": "object", "additionalProperties": _STRING}
)
# What we use of KEDA's documented fields; it reads a trigger's metadata as strings.
KEDA = {
    "ScaledObject": _closed(
        "apiVersion kind metadata spec",
        apiVersion={"const": "keda.sh/v1alpha1"},
        kind={},
        metadata=_METADATA,
        spec=_closed(
            "scaleTargetRef triggers",
            scaleTargetRef=_closed("name", name=_STRING, apiVersion=_STRING, kind=_STRING),
            pollingInterval=_COUNT,
            cooldownPeriod=_COUNT,
            minReplicaCount=_COUNT,
            maxReplicaCount=_COUNT,
            advanced=_closed(
                "",
                horizontalPodAutoscalerConfig=_closed(
                    "", behavior={"type": "object"}, name=_STRING
                ),
            ),
            triggers={
                "type": "array",
                "minItems": 1,
                "items": _closed(
                    "type metadata",
                    type={"const": "kafka"},
                    metadata=_closed(
                        "bootstrapServersFromEnv consumerGroup topic lagThreshold",
                        bootstrapServersFromEnv=_STRING,
                        consumerGroup=_STRING,
                        topic=_STRING,
                        lagThreshold={"type": "string", "pattern": "^[1-9][0-9]*$"},
                        offsetResetPolicy={"enum": ["earliest", "latest"]},
                        allowIdleConsumers=_BOOL,
                        limitToPartitionsWithLag=_BOOL,
                    ),
                    authenticationRef=_closed("name", name=_STRING),
                ),
            },
        ),
    ),
    "TriggerAuthentication": _closed(
        "apiVersion kind metadata spec",
        apiVersion={"const": "keda.sh/v1alpha1"},
        kind={},
        metadata=_METADATA,
        spec=_closed(
            "secretTargetRef",
            secretTargetRef={
                "type": "array",
                "items": _closed(
                    "parameter name key",
                    parameter={
                        "enum": ["sasl", "username", "password", "tls", "ca", "cert", "key"]
                    },
                    name=_STRING,
                    key=_STRING,
                ),
            },
        ),
    ),
}


def _of_kind(*kinds: str) -> list[dict]:
    return [manifest for _, _, manifest in MANIFESTS if manifest["kind"] in kinds]


def _named(kind: str, name: str) -> dict:
    return next(manifest for manifest in _of_kind(kind) if manifest["metadata"]["name"] == name)


def _pods() -> dict[str, dict]:
    """Each workload's name and its pod's template."""
    return {
        manifest["metadata"]["name"]: manifest["spec"]["template"]
        for manifest in _of_kind("Deployment", "StatefulSet", "Job")
    }


def _check_with_kubernetes_schema(manifest: dict, version: str) -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="Kubernetes' schemas come with `make test-compose`"
    )
    kubernetes_validate.validate(manifest, version, strict=True)


def _tool(name: str) -> str | None:
    """A program beside this Python, or on the path."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.is_file() else shutil.which(name)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize(
    ("path", "index", "manifest"), MANIFESTS, ids=lambda value: getattr(value, "name", None)
)
def test_a_manifest_is_what_its_schema_says(path, index, manifest, version) -> None:
    """Every manifest fits Kubernetes' or KEDA's schema strictly."""
    if manifest["kind"] in KEDA:
        jsonschema.validate(manifest, KEDA[manifest["kind"]])
        return
    _check_with_kubernetes_schema(manifest, version)


@pytest.mark.parametrize(
    "scaled", _of_kind("ScaledObject"), ids=lambda scaled: scaled["metadata"]["name"]
)
def test_keda_scales_what_is_there_by_the_lag_that_the_services_have(scaled) -> None:
    """Consumer group, topic, threshold and most replicas are those of the settings."""
    settings, spec = Settings(), scaled["spec"]
    target = spec["scaleTargetRef"]["name"]
    assert "replicas" not in _named("Deployment", target)["spec"], "KEDA owns the number"
    triggers = [trigger["metadata"] for trigger in spec["triggers"]]
    topics = ["video-ready", "tracks-ready"] if "animator" in target else ["video-ready"]
    assert [trigger["topic"] for trigger in triggers] == topics
    for trigger in triggers:
        assert trigger["consumerGroup"] == group_of(settings, target.removeprefix("streamproc-"))
        assert trigger["lagThreshold"] == str(settings.jobs.videos_at_once)
        assert trigger["limitToPartitionsWithLag"] == "true"
        assert trigger["allowIdleConsumers"] == "false", "KEDA refuses both at once"
        assert trigger["bootstrapServersFromEnv"] in _named("ConfigMap", "streamproc")["data"]
    assert spec["maxReplicaCount"] == settings.topics.video_ready.partitions
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 600


@pytest.mark.parametrize(
    "scaled", _of_kind("ScaledObject"), ids=lambda scaled: scaled["metadata"]["name"]
)
def test_the_scaling_behavior_is_kubernetes_own(scaled) -> None:
    """KEDA gives the behavior to an autoscaler as it is, so that one's schema holds."""
    spec = scaled["spec"]
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "any"},
        "spec": {
            "scaleTargetRef": {"kind": "Deployment", "name": "any"},
            "maxReplicas": spec["maxReplicaCount"],
            "behavior": spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        },
    }
    _check_with_kubernetes_schema(autoscaler, KUBERNETES_VERSIONS[-1])


@pytest.mark.parametrize(("name", "template"), _pods().items(), ids=_pods())
def test_a_pod_is_locked_down_and_has_time_to_finish(name, template) -> None:
    """A pod has no rights that it does not need, and ends after its service's grace period."""
    pod = template["spec"]
    assert pod["enableServiceLinks"] is False, (
        "variables made of the names of our Services would be refused as settings"
    )
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        volumes = {volume["name"] for volume in pod["volumes"]}
        if "matcher" in name:
            volumes.add("state")
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        service = container["name"]
        if service in PORTS:
            variables = _named("ConfigMap", "streamproc")["data"]
            grace_seconds = int(variables["STREAMPROC_SERVICE__GRACE_SECONDS"])
            assert pod["terminationGracePeriodSeconds"] > grace_seconds
            page = [{"name": "page", "containerPort": Settings().review.port}]
            assert container["ports"] == [
                {"name": "http", "containerPort": PORTS[service]},
                *(page if service == "review" else []),
            ]
            assert template["metadata"]["annotations"]["prometheus.io/port"] == str(PORTS[service])
            assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
            assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


@pytest.mark.parametrize(
    "manifest",
    _of_kind("Deployment", "StatefulSet", "Service", "PodDisruptionBudget"),
    ids=lambda manifest: f"{manifest['kind']}-{manifest['metadata']['name']}",
)
def test_a_selector_finds_exactly_its_pods(manifest) -> None:
    """No selector finds the pods of another workload."""
    selector = manifest["spec"]["selector"]
    labels = selector.get("matchLabels", selector)
    found = [
        name for name, pod in _pods().items() if labels.items() <= pod["metadata"]["labels"].items()
    ]
    assert found == [f"streamproc-{manifest['metadata']['labels']['app.kubernetes.io/component']}"]


def test_the_live_page_is_open_to_this_machine_or_asks_for_a_token() -> None:
    """In compose it is published on the loopback; in a cluster its token comes from a secret."""
    service = COMPOSE["services"]["review"]
    assert service["environment"]["STREAMPROC_REVIEW__REQUIRE_TOKEN"] == "false"
    assert service["ports"] == ["127.0.0.1:${REVIEW_HOST_PORT:-8080}:8080"]
    assert service["volumes"][0].endswith(":ro,z")
    [container] = _pods()["streamproc-review"]["spec"]["containers"]
    assert {"secretRef": {"name": "streamproc-review"}} in container["envFrom"]
    assert "STREAMPROC_REVIEW__TOKEN" in _named("Secret", "streamproc-review")["stringData"]
    assert "REQUIRE_TOKEN" not in str(container)
    policy = _named("NetworkPolicy", "streamproc-review")["spec"]
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": Settings().review.port}]
    assert policy["egress"][0]["ports"] == [{"protocol": "TCP", "port": PORTS["matcher"]}]


def test_manifests_name_no_namespace() -> None:
    """Whoever applies the manifests chooses the namespace."""
    assert [
        path.name for path, _, manifest in MANIFESTS if "namespace" in manifest["metadata"]
    ] == []


@pytest.mark.parametrize("components", [[], ["keda"]], ids=["plain", "keda"])
def test_kustomize_builds_what_the_files_say(components, tmp_path) -> None:
    """kustomize builds every manifest that is no example, and KEDA's only on demand."""
    kubectl, kustomize = shutil.which("kubectl"), shutil.which("kustomize")
    if not (kubectl or kustomize):
        pytest.skip("neither kubectl nor kustomize is here")
    folder = shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    own = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    assert "components" not in own, "KEDA is not in every cluster"
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump(own | {"components": components}), encoding="utf-8"
    )
    command = [kubectl, "kustomize"] if kubectl else [kustomize, "build"]
    built = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    names = [(each["kind"], each["metadata"]["name"]) for each in yaml.safe_load_all(built)]
    folders = {"kubernetes", *components}
    expected = [
        (manifest["kind"], manifest["metadata"]["name"])
        for path, _, manifest in MANIFESTS
        if "example" not in path.name and path.parent.name in folders
    ]
    assert sorted(names) == sorted(expected)
    assert "image: streamproc:local" in built


def test_the_two_dockerfiles_differ_in_extras_labels_a_compiler_and_what_nvidia_reads() -> None:
    """The GPU's Dockerfile is the other one but for what a GPU needs."""
    cpu = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    cuda = (DEPLOY / "Dockerfile.cuda").read_text(encoding="utf-8").splitlines()
    changes = [
        line
        for line in difflib.ndiff(cpu, cuda)
        if line[0] in "+-" and not line[2:].startswith("#")
    ]
    allowed = re.compile(
        r"[+-] (ARG EXTRAS=|LABEL org|\s+org\.opencontainers|\s+NVIDIA_|RUN apt-get update|"
        r" && apt-get install.* gcc | && rm -rf /var/lib/apt/lists)"
    )
    assert [line for line in changes if not allowed.match(line)] == []
    assert '+ ARG EXTRAS="s3,gpu"' in changes
    assert "ARG PYTHON_IMAGE=python:3.13-slim-trixie" in cpu
    assert {line.split()[1] for line in cpu if line.startswith("FROM")} == {"${PYTHON_IMAGE}"}


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_the_linter_has_nothing_to_say(name) -> None:
    """hadolint accepts both Dockerfiles."""
    hadolint = _tool("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint: it comes with `make test-compose`")
    done = subprocess.run(
        [hadolint, str(DEPLOY / name)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_every_variable_of_ours_is_a_setting() -> None:
    """Each STREAMPROC_ variable in the files is one that the settings know."""
    files = [ROOT / "docker-compose.yml", *DEPLOY.rglob("*.yaml"), *DEPLOY.glob("Dockerfile*")]
    named = set()
    for file in files:
        named |= set(re.findall(r"STREAMPROC_\w+", file.read_text()))
    keys = {f"STREAMPROC_{key.upper().replace('.', '__')}" for key in known_keys()}
    assert named - keys - {"STREAMPROC_"} == set()


@pytest.mark.parametrize("name", OURS)
def test_a_container_of_ours_is_locked_down(name) -> None:
    """A container has a read-only file system and no capabilities."""
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    # It gives one folder to the animator's user, reaches nothing else, and ends.
    if name == "media-folder":
        assert (service["network_mode"], service["cap_add"]) == ("none", ["CHOWN", "DAC_OVERRIDE"])
        return
    assert "cap_add" not in service
    assert service.get("user") in {None, "${MEDIA_USER:-10001:10001}"}


def test_published_ports_are_this_machine_s_only() -> None:
    """Compose publishes no port beyond the loopback."""
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("profile", [[], ["--profile", "gpu"]], ids=["plain", "gpu"])
def test_compose_reads_its_file(profile) -> None:
    """Docker finds the services that are meant, and the GPU worker only with its profile."""
    docker = _tool("docker")
    version = [docker or "docker", "compose", "version"]
    if docker is None or subprocess.run(version, capture_output=True, check=False).returncode:
        pytest.skip("no docker compose here")
    command = [docker, "compose", *profile, "config", "--services"]
    services = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    wanted = {"kafka", "topics", "media-folder", "worker", "matcher", "animator", "review"}
    assert set(services) == wanted | ({"worker-gpu"} if profile else set())
