"""The Dockerfiles and docker-compose.yml, without running containers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from base64 import urlsafe_b64decode
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from cachesync_airflow.settings import AirflowSettings

from local.airflow import Airflow, connections
from local.settings import REPOSITORY
from serving.settings import Settings

COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = (REPOSITORY / "serving" / "Dockerfile", REPOSITORY / "plugins" / "Dockerfile")
AIRFLOW = SERVICES["airflow-scheduler"]["environment"]


def pins(file: Path) -> set[str]:
    return set(re.findall(r"^[a-z0-9.-]+==[^ ;\\]+", file.read_text(), re.MULTILINE))


def secrets_of(text: str) -> str:
    """Return a text of docker-compose.yml with each required secret filled in."""
    return re.sub(r"\$\{\w+:\?[^}]+\}", "secret", text)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.parent.name)
def test_dockerfile_passes_the_linter(file: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("folder", ["serving", "plugins", "jenkins-job"])
def test_separate_requirements_have_the_same_pins_as_the_main_ones(folder: str) -> None:
    own = pins(REPOSITORY / folder / "requirements.txt")
    assert own
    assert own <= pins(REPOSITORY / "requirements.txt")


def test_env_files_are_excluded_from_the_build_context() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert lines.index("*") < lines.index("!serving") < lines.index("**/.env")


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "restart" in service])
def test_long_running_service_has_a_health_check(name: str) -> None:
    service = SERVICES[name]
    built_in = (
        service["image"].startswith("db-cache-sync-serving:") and "HEALTHCHECK" in DOCKERFILES[0].read_text()
    )
    assert built_in or service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", SERVICES)
def test_container_has_no_capabilities_and_bounded_memory_and_processes(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert 0 < service["pids_limit"] <= 512
    assert re.fullmatch(r"\d+m|1g", service["mem_limit"])


@pytest.mark.parametrize("name", ["sa", "sb"])
def test_each_cache_has_a_password_of_its_own(name: str) -> None:
    password = SERVICES[f"redis-{name}"]["environment"]["REDISCLI_AUTH"]
    assert SERVICES[name]["environment"]["REDIS_URL"] == f"redis://:{password}@redis-{name}:6379/0"
    assert AIRFLOW[f"AIRFLOW_CONN_REDIS_{name.upper()}"] == f"redis://:{password}@redis-{name}:6379/0"
    (script,) = SERVICES[f"redis-{name}"]["command"]
    assert "requirepass $$REDISCLI_AUTH" in script


def test_kafka_requires_a_login_of_every_other_container() -> None:
    broker = SERVICES["kafka"]["environment"]
    listeners = dict(one.split("://") for one in broker["KAFKA_LISTENERS"].split(","))
    protocols = dict(one.split(":") for one in broker["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    for name, address in listeners.items():
        assert address.startswith("127.0.0.1:") or protocols[name] == "SASL_PLAINTEXT"
    users = dict(
        re.findall(r'user_(\w+)="([^"]+)"', broker["KAFKA_LISTENER_NAME_CLIENT_PLAIN_SASL_JAAS_CONFIG"])
    )
    for name in ("sa", "sb", "topics", "story", "cachesync"):
        client = SERVICES[name]["environment"]
        assert client["KAFKA_SASL_PASSWORD"] == users[client["KAFKA_SASL_USERNAME"]]
    for name, value in AIRFLOW.items():
        if name.startswith("AIRFLOW_CONN_KAFKA_"):
            extra = json.loads(value)["extra"]
            assert extra["sasl.password"] == users[extra["sasl.username"]]


def test_prometheus_reads_the_metrics_port_of_each_service_and_of_the_triggerers() -> None:
    configuration = yaml.safe_load((REPOSITORY / "compose" / "prometheus.yml").read_text())
    ports = {job["job_name"]: job["dns_sd_configs"][0]["port"] for job in configuration["scrape_configs"]}
    code = {name: (REPOSITORY / "serving" / name / "__init__.py").read_text() for name in ("sa", "sb")}
    assert ports.pop("triggerer") == int(
        SERVICES["airflow-triggerer"]["environment"]["CACHESYNC_METRICS_PORT"]
    )
    assert all(f"metrics_port: Port = {port}\n" in code[name] for name, port in ports.items())


def test_only_user_facing_ports_are_published_and_only_on_localhost() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"sa", "balancer", "airflow-api-server", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_service_waits_until_its_dependencies_are_healthy_or_completed() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            stays_up = "restart" in SERVICES[needed]
            expected = "service_healthy" if stays_up else "service_completed_successfully"
            assert how == {"condition": expected}, f"{name} needs {needed}"


def bases() -> set[str]:
    return {
        base for file in DOCKERFILES for base in re.findall(r"^FROM (\S+)", file.read_text(), re.MULTILINE)
    }


# tests/containers/stand_ins/make.sh builds only this one.
def test_all_stages_of_both_images_use_the_same_base() -> None:
    assert len(bases()) == 1


def test_every_image_is_pinned() -> None:
    for image in bases() | {service["image"] for service in SERVICES.values()}:
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-[^@\s]+)?(@sha256:[0-9a-f]{64})?$", image), image


def test_kafka_version_matches_the_local_system() -> None:
    pom = (REPOSITORY / "local" / "kafka-server" / "pom.xml").read_text()
    version = re.search(r"<kafka.version>(.+)</kafka.version>", pom)
    assert version is not None
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{version[1]}"


def test_env_example_lists_the_required_secrets() -> None:
    asked = set(re.findall(r"\$\{(\w+):\?", (REPOSITORY / "docker-compose.yml").read_text()))
    example = (REPOSITORY / ".env.example").read_text()
    assert set(re.findall(r"^(\w+)=change-me$", example, re.MULTILINE)) == asked


@pytest.mark.parametrize("name", ["sa", "sb"])
def test_all_variables_of_a_service_are_settings_it_has(name: str) -> None:
    known = {field.upper() for field in Settings.model_fields}
    assert SERVICES[name]["environment"].keys() <= known


def test_all_variables_of_airflow_are_settings_it_has() -> None:
    package = find_spec("airflow")
    assert package is not None
    assert package.submodule_search_locations is not None
    template = Path(package.submodule_search_locations[0], "config_templates", "config.yml")
    sections = yaml.safe_load(template.read_text())
    known = {
        f"AIRFLOW__{section}__{option}".upper()
        for section in sections
        for option in sections[section]["options"]
    }
    assert {name for name in AIRFLOW if name.startswith("AIRFLOW__")} <= known
    ours = {f"CACHESYNC_{field}".upper() for field in AirflowSettings.model_fields}
    assert {name for name in AIRFLOW if name.startswith("CACHESYNC_")} <= ours


def test_airflow_configuration_matches_the_local_system(tmp_path: Path) -> None:
    local = Airflow(tmp_path, admin_dsn="postgresql://postgres@127.0.0.1/postgres", environment={}, port=8080)
    of_this_place = re.compile(
        "__(.*FOLDER|.*DIRECTORY|HOST|PORT|LOAD_EXAMPLES|.*KEY|JWT_SECRET|.*URL|SQL_ALCHEMY_CONN)$"
    )
    expected = {
        name: value
        for name, value in local.environment.items()
        if name.startswith("AIRFLOW__") and not of_this_place.search(name)
    }
    assert expected.items() <= AIRFLOW.items()


def test_airflow_connections_match_the_local_system() -> None:
    urls = {name: secrets_of(AIRFLOW[f"AIRFLOW_CONN_REDIS_{name.upper()}"]) for name in ("sa", "sb")}
    assert urls == {"sa": "redis://:secret@redis-sa:6379/0", "sb": "redis://:secret@redis-sb:6379/0"}
    for name, value in connections(urls, "kafka:9092", "postgresql://").items():
        if value.startswith("{"):
            ours, local = json.loads(secrets_of(AIRFLOW[name])), json.loads(value)
            login = {key for key in ours["extra"] if key.startswith(("sasl.", "security."))}
            assert login == {"security.protocol", "sasl.mechanism", "sasl.username", "sasl.password"}
            assert {key: text for key, text in ours["extra"].items() if key not in login} == local["extra"]
        else:
            assert secrets_of(AIRFLOW[name]).startswith(value)


def test_command_uses_the_connections_of_airflow() -> None:
    command = SERVICES["cachesync"]["environment"]
    used = {name: value for name, value in AIRFLOW.items() if name.startswith("AIRFLOW_CONN_")}
    assert used.items() <= command.items()
    assert command["CACHESYNC_DSN"] == used["AIRFLOW_CONN_POSTGRES_CACHESYNC"]
    urls = [f"{name}={used[f'AIRFLOW_CONN_REDIS_{name.upper()}']}" for name in ("sa", "sb")]
    assert command["CACHESYNC_REDIS_URLS"] == ",".join(urls)


def test_stand_in_of_kafka_has_only_the_jars_of_its_version_and_all_users_can_read_them(
    tmp_path: Path,
) -> None:
    stand_ins = Path("tests", "containers", "stand_ins")
    shutil.copytree(REPOSITORY / stand_ins, tmp_path / stand_ins, ignore=lambda *_: {"jars"})
    (tmp_path / "serving").mkdir()
    for name in ("docker-compose.yml", "serving/Dockerfile"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    _, version = SERVICES["kafka"]["image"].split(":")
    for folder, downloaded in enumerate(("1.0.0", version, version)):
        jar = tmp_path / ".local" / "kafka" / str(folder) / f"kafka-clients-{downloaded}.jar"
        jar.parent.mkdir(parents=True)
        jar.touch(mode=0o600)
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\ncase "$*" in "image inspect apache/kafka:"*) exit 1 ;; esac\n')
    docker.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run([tmp_path / stand_ins / "make.sh"], check=True, env=os.environ | {"PATH": path})
    jars = (tmp_path / stand_ins / "kafka" / "jars").iterdir()
    assert [(jar.name, jar.stat().st_mode & 0o777) for jar in jars] == [
        (f"kafka-clients-{version}.jar", 0o644)
    ]


def test_balancer_has_enough_servers_for_the_replicas() -> None:
    template = re.search(r"server-template sb (\d+) ", (REPOSITORY / "compose" / "haproxy.cfg").read_text())
    assert template is not None
    assert SERVICES["sb"]["deploy"]["replicas"] <= int(template[1])


def test_make_generates_a_different_value_for_each_secret_once(tmp_path: Path) -> None:
    for name in ("Makefile", ".env.example"):
        shutil.copy(REPOSITORY / name, tmp_path)
    file = tmp_path / ".env"
    made = []
    for _ in range(2):
        subprocess.run(["make", "--silent", ".env"], cwd=tmp_path, check=True)
        made.append(file.read_text())
    assert made[0] == made[1]
    assert file.stat().st_mode & 0o077 == 0
    values = re.findall(r"^\w+=(.+)$", made[0], re.MULTILINE)
    assert len(set(values)) == len(values)
    # The length that Airflow's Fernet key must have.
    assert {len(urlsafe_b64decode(value)) for value in values} == {32}
