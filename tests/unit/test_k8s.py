"""The manifests of each overlay, as `kubectl kustomize` renders them."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from cachesync import __version__
from cachesync.cli.main import app
from cachesync.kafka.settings import KafkaSettings
from serving.settings import Settings

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
OVERLAYS = ("minikube", "production")
# With the option to run the streams and the relay on Kubernetes as well.
BACKGROUND = {overlay: f"{overlay} with background" for overlay in OVERLAYS}
PROCESSES = ("stream-sa", "stream-sb", "relay", "live-check")
SERVICES = ("sa", "sb")
NAME = "app.kubernetes.io/name"
NAMESPACE = "kubernetes.io/metadata.name"
SECRET = re.compile(r"PASSWORD|DSN|AUTH|_URL|SECRET|TOKEN")
# Texts that are made of other variables alone; an empty one is not given here.
REFERENCES = re.compile(r"([a-z]+=\$\(\w+\),?)*")
# docs/connections.md
AIRFLOWS_SESSIONS = {
    "outbox_relay": 2,
    "live_check": 2,
    "dead_letter_retry": 1,
    "stream_check": 1,
    "reconcile": 32,
    "the page": 8,
}
INSTALL_SESSIONS = 1
RESERVED = {"superuser_reserved_connections": 3, "psql": 5}
FLOWS = {
    ("sa", "postgres", 5432),
    ("sa", "redis-sa", 6379),
    ("sa", "kafka", 9092),
    ("sb", "postgres", 5432),
    ("sb", "redis-sb", 6379),
    ("sb", "kafka", 9092),
    ("install", "postgres", 5432),
    ("topics", "kafka", 9092),
}
FLOWS_OF_BACKGROUND = {
    ("stream-sa", "redis-sa", 6379),
    ("stream-sa", "kafka", 9092),
    ("stream-sb", "redis-sb", 6379),
    ("stream-sb", "kafka", 9092),
    ("relay", "postgres", 5432),
    ("relay", "kafka", 9092),
    ("live-check", "postgres", 5432),
    ("live-check", "redis-sa", 6379),
    ("live-check", "redis-sb", 6379),
}

SECRETS_OF_BACKGROUND = {
    "relay": {"CACHESYNC_DSN"},
    "live-check": {"CACHESYNC_DSN", "CACHESYNC_REDIS_URLS", "REDIS_URL_SA", "REDIS_URL_SB"},
}

Manifest = dict[str, Any]


class Manifests(list[Manifest]):
    """The manifests of an overlay."""

    def of(self, *kinds: str) -> list[Manifest]:
        return [one for one in self if one["kind"] in kinds]

    def one(self, kind: str, name: str) -> Manifest:
        [found] = [
            one for one in self.of(kind) if re.sub("-[a-z0-9]{10}$", "", one["metadata"]["name"]) == name
        ]
        return found

    @property
    def workloads(self) -> list[Manifest]:
        return self.of("Deployment", "StatefulSet", "Job")

    def environment(self, container: Manifest) -> dict[str, str]:
        """Return the environment variables of a container; values from Secrets are decoded."""
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            for kind, reference in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if reference in source:
                    named = source[reference]
                    found = [one for one in self.of(kind) if one["metadata"]["name"] == named["name"]]
                    assert found or named.get("optional")
                    for name, text in (found[0]["data"] if found else {}).items():
                        variables[name] = b64decode(text).decode() if kind == "Secret" else text
        return variables | {one["name"]: one.get("value", "") for one in container.get("env", [])}


def copy_of_manifests(parent: Path) -> Path:
    """Copy k8s/, and create the credentials as a user would."""
    folder = parent / "k8s"
    shutil.copytree(REPOSITORY / "k8s", folder, ignore=shutil.ignore_patterns("*.env", "unfinished"))
    shutil.copy(REPOSITORY / "k8s/overlays/production/addresses.env", folder / "overlays/production")
    shutil.rmtree(folder / "overlays/minikube/secrets", ignore_errors=True)
    subprocess.run([folder / "overlays/minikube/make-secrets"], check=True, capture_output=True)
    for example in folder.glob("overlays/production/**/secrets/*.example"):
        shutil.copy(example, example.with_suffix(""))
    return folder


def render(overlay: Path) -> Manifests:
    command = [str(PROGRAMS / "kubectl"), "kustomize", str(overlay)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Manifests(yaml.safe_load_all(text))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifests]:
    folder = copy_of_manifests(tmp_path_factory.mktemp("k8s")) / "overlays"
    plain = {overlay: render(folder / overlay) for overlay in OVERLAYS}
    for overlay in OVERLAYS:
        with (folder / overlay / "kustomization.yaml").open("a") as file:
            file.write("components: [background]\n")
    return plain | {name: render(folder / overlay) for overlay, name in BACKGROUND.items()}


@pytest.fixture(params=[*OVERLAYS, *BACKGROUND.values()])
def manifests(rendered: dict[str, Manifests], request: pytest.FixtureRequest) -> Manifests:
    return rendered[request.param]


def pod(workload: Manifest) -> Manifest:
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def container(workload: Manifest) -> Manifest:
    [only] = pod(workload)["containers"]
    assert isinstance(only, dict)
    return only


def is_background(workload: Manifest) -> bool:
    return labels(workload).get("app.kubernetes.io/component") == "background"


def labels(workload: Manifest) -> dict[str, str]:
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


@pytest.mark.parametrize("version", ["1.32", "1.37"])
def test_manifests_are_valid_for_the_kubernetes_version(
    manifests: Manifests, version: str, tmp_path: Path
) -> None:
    file = tmp_path / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(manifests))
    command = [str(PROGRAMS / "kubernetes-validate"), "--kubernetes-version", version, "--strict", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, [line for line in result.stdout.splitlines() if "passed" not in line]


def test_pods_are_restricted_and_have_no_service_account_token(manifests: Manifests) -> None:
    for workload in manifests.workloads:
        spec = pod(workload)
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container(workload)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    [namespace] = manifests.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_requests_and_limits_are_set(manifests: Manifests) -> None:
    for workload in manifests.workloads:
        resources = container(workload)["resources"]
        assert resources["requests"].keys() == resources["limits"].keys() == {"cpu", "memory"}


def test_long_running_workloads_have_all_probes(manifests: Manifests) -> None:
    for workload in manifests.of("Deployment", "StatefulSet"):
        assert container(workload).keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}


def test_only_the_startup_probe_of_a_service_requires_its_database(manifests: Manifests) -> None:
    for service in SERVICES:
        only = container(manifests.one("Deployment", service))
        paths = [only[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")]
        assert paths == ["/health/ready", "/health/live", "/health/live"]


def test_credentials_are_only_in_secrets(manifests: Manifests) -> None:
    for one in manifests.of("ConfigMap"):
        assert not [name for name in one["data"] if SECRET.search(name)]
    for workload in manifests.workloads:
        variables = container(workload).get("env", [])
        literal = [one for one in variables if not REFERENCES.fullmatch(one.get("value", ""))]
        assert not [one["name"] for one in literal if SECRET.search(one["name"])]


def test_pods_get_no_environment_variables_for_services(manifests: Manifests) -> None:
    assert all(pod(workload)["enableServiceLinks"] is False for workload in manifests.workloads)


def test_all_variables_of_a_service_are_settings_it_has(manifests: Manifests) -> None:
    known = {name.upper() for name in Settings.model_fields}
    for service in SERVICES:
        variables = manifests.environment(container(manifests.one("Deployment", service)))
        assert variables.keys() <= known
        assert variables.keys() >= {"DB_USERNAME", "DB_PASSWORD", "DB_HOST", "REDIS_URL", "LISTEN_ADDRESS"}


def test_kafka_login_can_be_configured_by_files_alone(tmp_path: Path) -> None:
    overlay = copy_of_manifests(tmp_path) / "overlays/production"
    with (overlay / "addresses.env").open("a") as file:
        file.write("KAFKA_SECURITY_PROTOCOL=SASL_SSL\nKAFKA_SASL_MECHANISM=SCRAM-SHA-512\n")
    for name in ("sa", "sb", "topics"):
        with (overlay / f"secrets/{name}.env").open("a") as file:
            file.write(f"KAFKA_SASL_USERNAME={name}\nKAFKA_SASL_PASSWORD=a password\n")
    kustomization = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    kustomization["secretGenerator"].append({"name": "topics", "envs": ["secrets/topics.env"]})
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    manifests = render(overlay)
    for kind, name in (("Deployment", "sa"), ("Deployment", "sb"), ("Job", "topics")):
        variables = manifests.environment(container(manifests.one(kind, name)))
        client = KafkaSettings.model_validate({key.lower(): text for key, text in variables.items()}).kafka
        assert (client["security.protocol"], client["sasl.username"]) == ("SASL_SSL", name)


def test_jobs_get_only_the_variables_they_need(manifests: Manifests) -> None:
    install = manifests.environment(container(manifests.one("Job", "install")))
    assert install.keys() == {"CACHESYNC_DSN", "CACHESYNC_ENTITIES"}
    topics = manifests.environment(container(manifests.one("Job", "topics")))
    assert not [name for name in topics if SECRET.search(name)]


def test_selectors_match_the_pods_they_are_meant_for(manifests: Manifests) -> None:
    pods = [labels(workload) for workload in manifests.workloads]
    for one in manifests.of("Service", "PodDisruptionBudget", "Deployment", "StatefulSet"):
        selector = one["spec"]["selector"]
        wanted = selector.get("matchLabels", selector)
        assert [found[NAME] for found in pods if wanted.items() <= found.items()] == [one["metadata"]["name"]]
    for service in manifests.of("Service"):
        name = service["metadata"]["name"]
        [port] = service["spec"]["ports"]
        [workload] = [
            one for one in manifests.of("Deployment", "StatefulSet") if one["metadata"]["name"] == name
        ]
        [named] = [one for one in container(workload)["ports"] if one["name"] != "metrics"]
        assert (port["targetPort"], port["port"]) == (named["name"], named["containerPort"])


def test_pods_of_each_service_are_spread_over_nodes(manifests: Manifests) -> None:
    for service in SERVICES:
        workload = manifests.one("Deployment", service)
        for constraint in pod(workload)["topologySpreadConstraints"]:
            assert constraint["labelSelector"]["matchLabels"].items() <= labels(workload).items()
            assert NAME in constraint["matchLabelKeys"]


def test_draining_a_node_is_possible_and_leaves_a_pod_of_each_service(manifests: Manifests) -> None:
    for service in SERVICES:
        allowed = manifests.one("PodDisruptionBudget", service)["spec"]["maxUnavailable"]
        assert 0 < allowed < replicas(manifests, service)[0]


def test_only_the_autoscaler_sets_the_number_of_sb_pods(manifests: Manifests) -> None:
    scaler = manifests.one("HorizontalPodAutoscaler", "sb")["spec"]
    assert 2 <= scaler["minReplicas"] < scaler["maxReplicas"]
    deployment = manifests.one("Deployment", "sb")
    assert "replicas" not in deployment["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_rolling_update_waits_for_requests_in_flight(manifests: Manifests) -> None:
    tree = ast.parse((REPOSITORY / "serving/gunicorn_conf.py").read_text())
    [graceful] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "graceful_timeout"
    ]
    for service in SERVICES:
        workload = manifests.one("Deployment", service)
        assert workload["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        pause = container(workload)["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pause >= 5
        assert pod(workload)["terminationGracePeriodSeconds"] >= pause + graceful + 5


def test_traffic_is_denied_by_default(manifests: Manifests) -> None:
    spec = manifests.one("NetworkPolicy", "default-deny")["spec"]
    assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_policies_allow_exactly_the_expected_egress(rendered: dict[str, Manifests]) -> None:
    assert named_flows(rendered["minikube"], "Egress") == FLOWS
    for client in ("sa", "sb", "install", "topics"):
        rules = rendered["production"].one("NetworkPolicy", client)["spec"]["egress"]
        ports = sorted(port["port"] for rule in rules for port in rule["ports"])
        assert ports == sorted(port for name, _, port in FLOWS if name == client)
        assert all(list(peer) == ["ipBlock"] for rule in rules for peer in rule["to"])


def test_policies_allow_exactly_the_expected_ingress(rendered: dict[str, Manifests]) -> None:
    assert named_flows(rendered["minikube"], "Ingress") == FLOWS


def test_clients_can_reach_only_the_services(rendered: dict[str, Manifests]) -> None:
    gateway = {"from": [{"namespaceSelector": {"matchLabels": {NAMESPACE: "gateway"}}}]}
    for overlay, source in (("minikube", {}), ("production", gateway)):
        manifests = rendered[overlay]
        assert manifests.one("NetworkPolicy", "clients")["spec"] == {
            "podSelector": {"matchLabels": {"app.kubernetes.io/component": "service"}},
            "policyTypes": ["Ingress"],
            "ingress": [{**source, "ports": [{"port": "http"}]}],
        }
        open_to_all = [
            one["metadata"]["name"]
            for one in manifests.of("NetworkPolicy")
            if any("from" not in rule for rule in one["spec"].get("ingress", []))
        ]
        assert open_to_all == ([] if source else ["clients"])


def test_only_the_monitoring_namespace_can_reach_the_metrics(manifests: Manifests) -> None:
    assert manifests.one("NetworkPolicy", "metrics")["spec"] == {
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "service"}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [{"namespaceSelector": {"matchLabels": {NAMESPACE: "monitoring"}}}],
                "ports": [{"port": "metrics"}],
            }
        ],
    }
    for service in SERVICES:
        only = container(manifests.one("Deployment", service))
        ports = {one["name"]: str(one["containerPort"]) for one in only["ports"]}
        variables = manifests.environment(only)
        assert ports == {"http": variables["PORT"], "metrics": variables["METRICS_PORT"]}


def test_policies_of_the_background_processes_allow_exactly_what_they_need(
    rendered: dict[str, Manifests],
) -> None:
    for direction in ("Egress", "Ingress"):
        assert named_flows(rendered[BACKGROUND["minikube"]], direction) == FLOWS | FLOWS_OF_BACKGROUND
    for client in PROCESSES:
        policy = rendered[BACKGROUND["production"]].one("NetworkPolicy", client)["spec"]
        ports = sorted(port["port"] for rule in policy["egress"] for port in rule["ports"])
        assert ports == sorted(port for name, _, port in FLOWS_OF_BACKGROUND if name == client)
        assert all(list(peer) == ["ipBlock"] for rule in policy["egress"] for peer in rule["to"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_background_processes_get_the_variables_that_their_commands_need(
    rendered: dict[str, Manifests], overlay: str
) -> None:
    manifests = rendered[BACKGROUND[overlay]]
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name in PROCESSES:
        only = container(manifests.one("Deployment", name))
        assert only["args"][:3] == ["python", "-m", "cachesync"]
        command, *arguments = only["args"][3:]
        variables = manifests.environment(only)
        for parameter in commands[command].params:
            if parameter.required and not set(parameter.opts) & set(arguments):
                assert parameter.envvar in variables, f"{name} needs {parameter.name}"
        secret = {variable for variable in variables if SECRET.search(variable)}
        assert secret == SECRETS_OF_BACKGROUND.get(name, {"REDIS_URL"})


def test_only_the_monitoring_namespace_can_reach_the_metrics_of_the_background_processes(
    rendered: dict[str, Manifests],
) -> None:
    manifests = rendered[BACKGROUND["production"]]
    metrics = {"ports": [{"port": "metrics"}]}
    source = {"from": [{"namespaceSelector": {"matchLabels": {NAMESPACE: "monitoring"}}}]}
    assert manifests.one("NetworkPolicy", "background-metrics")["spec"] == {
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "background"}},
        "policyTypes": ["Ingress"],
        "ingress": [source | metrics],
    }
    for name in PROCESSES:
        only = container(manifests.one("Deployment", name))
        [port] = only["ports"]
        assert str(port["containerPort"]) == manifests.environment(only)["METRICS_PORT"]


def test_documented_pod_monitor_reads_every_pod_with_metrics_as_a_job_that_the_alerts_name(
    rendered: dict[str, Manifests],
) -> None:
    page = (REPOSITORY / "docs/kubernetes.md").read_text()
    objects = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    [spec] = [one["spec"] for one in objects if one.get("kind") == "PodMonitor"]
    [wanted] = spec["selector"]["matchExpressions"]
    [port] = [one["port"] for one in spec["podMetricsEndpoints"]]
    jobs = {
        labels(workload)[spec["jobLabel"]]
        for workload in rendered[BACKGROUND["production"]].of("Deployment")
        if labels(workload).get(wanted["key"]) in wanted["values"]
        and port in [one["name"] for one in container(workload)["ports"]]
    }
    assert jobs == {*SERVICES, *PROCESSES}
    [named] = re.findall(r'up{job=~"(.*?)"}', (REPOSITORY / "monitoring/alerts/cachesync.yml").read_text())
    assert all(re.fullmatch(named, job) for job in jobs)


def test_sum_of_all_connections_is_within_the_limit_of_postgresql(rendered: dict[str, Manifests]) -> None:
    manifests = rendered["minikube"]
    settings = Settings.model_fields
    services = 0
    for service in SERVICES:
        variables = manifests.environment(container(manifests.one("Deployment", service)))
        workers = int(variables.get("WORKERS", settings["workers"].default))
        pool = int(variables.get("DB_POOL", settings["db_pool"].default))
        # During a rolling update, each pod can coexist with its successor.
        services += 2 * replicas(manifests, service)[1] * workers * pool
    total = services + sum(AIRFLOWS_SESSIONS.values()) + INSTALL_SESSIONS + sum(RESERVED.values())
    arguments = container(manifests.one("StatefulSet", "postgres"))["args"]
    [limit] = [int(argument.partition("=")[2]) for argument in arguments if argument.startswith("max_conn")]
    assert total <= limit
    page = (REPOSITORY / "docs/connections.md").read_text()
    assert f"| **sum** | | **{total}** |" in page
    assert f"`max_connections={limit}`" in page


def test_entities_file_is_that_of_the_repository(manifests: Manifests) -> None:
    entities = manifests.one("ConfigMap", "entities")["data"]["entities.toml"]
    assert entities == (REPOSITORY / "entities.toml").read_text()


def test_sample_tables_match_the_local_system() -> None:
    sample = REPOSITORY / "k8s/overlays/minikube/sample.sql"
    assert sample.read_text() == (REPOSITORY / "local/sample.sql").read_text()


def test_image_tag_is_the_current_version(manifests: Manifests) -> None:
    background = [one["metadata"]["name"] for one in manifests.workloads if is_background(one)]
    for name in (*SERVICES, "install", "topics", *background):
        [workload] = [one for one in manifests.workloads if one["metadata"]["name"] == name]
        image = container(workload)["image"]
        assert image.rpartition("/")[2] == f"db-cache-sync-serving:{__version__}"


def test_redis_pods_of_a_service_never_run_concurrently(rendered: dict[str, Manifests]) -> None:
    for service in SERVICES:
        spec = rendered["minikube"].one("Deployment", f"redis-{service}")["spec"]
        assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_data_of_postgresql_and_kafka_is_on_volumes(rendered: dict[str, Manifests]) -> None:
    for name, folder in (("postgres", "/var/lib/postgresql"), ("kafka", "/var/lib/kafka/data")):
        workload = rendered["minikube"].one("StatefulSet", name)
        [claim] = workload["spec"]["volumeClaimTemplates"]
        mounted = {one["mountPath"]: one["name"] for one in container(workload)["volumeMounts"]}
        assert mounted[folder] == claim["metadata"]["name"]


def test_topics_have_one_replica_on_the_single_broker(rendered: dict[str, Manifests]) -> None:
    arguments = container(rendered["minikube"].one("Job", "topics"))["args"]
    assert ("--replication", "1") in pairwise(arguments)


def test_secrets_are_generated_once_and_differ(tmp_path: Path) -> None:
    program = shutil.copy(REPOSITORY / "k8s/overlays/minikube/make-secrets", tmp_path)
    subprocess.run([program], check=True, capture_output=True)
    files = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    subprocess.run([program], check=True, capture_output=True)
    assert {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()} == files
    assert len(set(re.findall(r"[0-9a-f]{32}", "".join(files.values())))) == 7
    assert all(file.stat().st_mode & 0o077 == 0 for file in (tmp_path / "secrets").iterdir())


def replicas(manifests: Manifests, service: str) -> tuple[int, int]:
    """Return the minimum and maximum number of replicas of a service."""
    for scaler in manifests.of("HorizontalPodAutoscaler"):
        spec = scaler["spec"]
        if spec["scaleTargetRef"]["name"] == service:
            return int(spec["minReplicas"]), int(spec["maxReplicas"])
    fixed = int(manifests.one("Deployment", service)["spec"]["replicas"])
    return fixed, fixed


def named_flows(manifests: Manifests, direction: str) -> set[tuple[str, str, int]]:
    """Return the allowed flows between pods of the namespace, as client, server and port."""
    side = "from" if direction == "Ingress" else "to"
    flows = set()
    for one in manifests.of("NetworkPolicy"):
        own = one["spec"]["podSelector"].get("matchLabels", {}).get(NAME)
        for rule in one["spec"].get(direction.lower(), []):
            for peer in rule.get(side, []):
                if "namespaceSelector" in peer:
                    continue
                other = peer["podSelector"]["matchLabels"][NAME]
                client, server = (other, own) if direction == "Ingress" else (own, other)
                flows |= {(client, server, port["port"]) for port in rule["ports"]}
    return flows
