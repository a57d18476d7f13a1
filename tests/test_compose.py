"""compose.yaml holds together, and says what the code and the documents say."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from sqlalchemy import make_url

from osiris.config.settings import Settings
from tests.test_documents import ALL, rows

ROOT = Path(__file__).parents[1]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())[
    "services"
]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
DEFAULTS = Settings.model_fields


def test_osiris_is_one_web_door_two_workers_and_a_migration_each_a_command_that_exists():
    assert {name: service["command"] for name, service in OURS.items()} == {
        name: ["osiris", name] for name in ("migrate", "web", "worker")
    }
    assert set(OURS) <= set(ALL)
    assert SERVICES["worker"]["deploy"]["replicas"] == 2


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_and_none_is_a_secret(name: str):
    """Secrets come from the file, which is nobody's but the operator's; so does the password in an
    address."""
    assert OURS[name]["env_file"] == ".env"
    for variable, value in OURS[name]["environment"].items():
        secret = isinstance(DEFAULTS[variable.lower()].default, SecretStr)
        assert not secret or "PASSWORD:?" in value or "@" not in value, variable


@pytest.mark.parametrize("name", OURS)
def test_the_addresses_lead_to_the_servers_beside_it(name: str):
    environment = OURS[name]["environment"]
    password = SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"]
    database = make_url(environment["DATABASE_URL"].replace(password, "secret"))
    assert (database.get_backend_name(), database.host, database.password) == (
        "postgresql",
        "postgres",
        "secret",
    )
    assert database.username == SERVICES["postgres"]["environment"]["POSTGRES_USER"]
    assert database.database == SERVICES["postgres"]["environment"]["POSTGRES_DB"]
    assert make_url(environment["REDIS_URL"]).host == "redis"


def test_nothing_starts_before_what_it_needs_is_there():
    needed = {
        name: {on: how["condition"] for on, how in service["depends_on"].items()}
        for name, service in OURS.items()
    }
    ready = {
        "postgres": "service_healthy",
        "redis": "service_healthy",
        "migrate": "service_completed_successfully",
    }
    assert needed == {"migrate": {"postgres": "service_healthy"}, "web": ready, "worker": ready}
    assert {name for name, service in SERVICES.items() if "healthcheck" in service} == {
        "postgres",
        "redis",
        "web",
    }
    assert OURS["migrate"]["restart"] == "no"


def test_each_worker_has_a_data_folder_of_its_own():
    folder = OURS["worker"]["environment"]["OSIRIS_DATA_DIR"]
    assert OURS["worker"]["volumes"] == [folder]  # without a name: one for each container
    assert f"VOLUME {folder}" in (ROOT / "Dockerfile").read_text().splitlines()
    assert "volumes" not in OURS["web"]


def test_the_worker_has_the_flags_that_its_sandbox_needs_and_the_door_has_none():
    table = rows((ROOT / "docs/operations.md").read_text(), "In Docker")
    flags = {match[1] for row in table if (match := re.match(r"`--security-opt (\S+)`", row[0]))}
    harmless = {"no-new-privileges:true"}
    assert len(flags) == 3
    assert set(OURS["worker"]["security_opt"]) == flags | harmless
    assert set(OURS["web"]["security_opt"]) == harmless


def test_only_the_door_is_published_and_only_to_this_machine():
    port = DEFAULTS["osiris_port"].default
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"web": [f"127.0.0.1:{port}:{port}"]}
    # inside its container, or nobody comes in
    assert OURS["web"]["environment"]["OSIRIS_HOST"] == "0.0.0.0"
    assert f"127.0.0.1:{port}/readyz" in OURS["web"]["healthcheck"]["test"][-1]


def test_the_image_has_what_several_machines_need():
    assert "-r requirements/machines.txt" in (ROOT / "Dockerfile").read_text()
    assert {service["build"]["target"] for service in OURS.values()} == {"container"}


@pytest.mark.parametrize("name", sorted(set(SERVICES) - set(OURS)))
def test_a_servers_image_is_held_to_its_major_version(name: str):
    assert re.fullmatch(r"[a-z]+:\d+(-\w+)?", SERVICES[name]["image"])


def compose() -> list[str]:
    """Docker's compose: as a plugin, or as a program of its own."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and subprocess.run([*command, "version"], capture_output=True).returncode == 0
        ):
            return command
    raise AssertionError("there is no docker compose; `make setup` installs one")


def test_docker_compose_takes_it_when_the_password_is_there_and_says_so_when_it_is_not(
    tmp_path: Path,
):
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    (tmp_path / "osiris-seccomp.json").write_text("{}")  # version 1 reads it
    command = [*compose(), "config", "--quiet"]
    (tmp_path / ".env").write_text("POSTGRES_PASSWORD=secret\n")
    took = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert took.returncode == 0, took.stderr
    (tmp_path / ".env").write_text("")
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "write it into .env" in refused.stderr
