"""Consistency of compose.yaml with the code and the documents."""

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
from tests.test_documents import ALL_COMMANDS, read_table

ROOT = Path(__file__).parents[1]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())[
    "services"
]
OSIRIS_SERVICES = {name: service for name, service in SERVICES.items() if "build" in service}
DEFAULTS = Settings.model_fields


def test_osiris_is_one_web_door_two_workers_and_a_migration_each_a_command_that_exists():
    assert {name: service["command"] for name, service in OSIRIS_SERVICES.items()} == {
        name: ["osiris", name] for name in ("migrate", "web", "worker")
    }
    assert set(OSIRIS_SERVICES) <= set(ALL_COMMANDS)
    assert SERVICES["worker"]["deploy"]["replicas"] == 2


@pytest.mark.parametrize("name", OSIRIS_SERVICES)
def test_every_variable_is_a_setting_and_none_is_a_secret(name: str):
    """Secrets, such as the password in an address, come from the file that belongs to the
    operator."""
    assert OSIRIS_SERVICES[name]["env_file"] == ".env"
    for variable, value in OSIRIS_SERVICES[name]["environment"].items():
        is_secret = isinstance(DEFAULTS[variable.lower()].default, SecretStr)
        assert not is_secret or "PASSWORD:?" in value or "@" not in value, variable


@pytest.mark.parametrize("name", OSIRIS_SERVICES)
def test_the_addresses_lead_to_the_servers_beside_it(name: str):
    environment = OSIRIS_SERVICES[name]["environment"]
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
    conditions = {
        name: {
            service_name: dependency["condition"]
            for service_name, dependency in service["depends_on"].items()
        }
        for name, service in OSIRIS_SERVICES.items()
    }
    all_conditions = {
        "postgres": "service_healthy",
        "redis": "service_healthy",
        "migrate": "service_completed_successfully",
    }
    assert conditions == {
        "migrate": {"postgres": "service_healthy"},
        "web": all_conditions,
        "worker": all_conditions,
    }
    assert {name for name, service in SERVICES.items() if "healthcheck" in service} == {
        "postgres",
        "redis",
        "web",
    }
    assert OSIRIS_SERVICES["migrate"]["restart"] == "no"


def test_each_worker_has_a_data_folder_of_its_own():
    folder = OSIRIS_SERVICES["worker"]["environment"]["OSIRIS_DATA_DIR"]
    assert OSIRIS_SERVICES["worker"]["volumes"] == [
        folder
    ]  # no name, so each container gets its own volume
    assert f"VOLUME {folder}" in (ROOT / "Dockerfile").read_text().splitlines()
    assert "volumes" not in OSIRIS_SERVICES["web"]


def test_the_worker_has_the_flags_that_its_sandbox_needs_and_the_door_has_none():
    table = read_table((ROOT / "docs/operations.md").read_text(), "In Docker")
    flags = {match[1] for row in table if (match := re.match(r"`--security-opt (\S+)`", row[0]))}
    common_flags = {"no-new-privileges:true"}
    assert len(flags) == 3
    assert set(OSIRIS_SERVICES["worker"]["security_opt"]) == flags | common_flags
    assert set(OSIRIS_SERVICES["web"]["security_opt"]) == common_flags


def test_only_the_door_is_published_and_only_to_this_machine():
    port = DEFAULTS["osiris_port"].default
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"web": [f"127.0.0.1:{port}:{port}"]}
    # it must listen on all addresses of its container
    assert OSIRIS_SERVICES["web"]["environment"]["OSIRIS_HOST"] == "0.0.0.0"
    assert f"127.0.0.1:{port}/readyz" in OSIRIS_SERVICES["web"]["healthcheck"]["test"][-1]


def test_the_image_has_what_several_machines_need():
    assert "-r requirements/machines.txt" in (ROOT / "Dockerfile").read_text()
    assert {service["build"]["target"] for service in OSIRIS_SERVICES.values()} == {"container"}


@pytest.mark.parametrize("name", sorted(set(SERVICES) - set(OSIRIS_SERVICES)))
def test_a_servers_image_is_held_to_its_major_version(name: str):
    assert re.fullmatch(r"[a-z]+:\d+(-\w+)?", SERVICES[name]["image"])


def find_compose_command() -> list[str]:
    """Return the command of Docker Compose: the plugin of docker, or the separate program."""
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
    (tmp_path / "osiris-seccomp.json").write_text("{}")  # Compose version 1 reads this file
    command = [*find_compose_command(), "config", "--quiet"]
    (tmp_path / ".env").write_text("POSTGRES_PASSWORD=secret\n")
    accepted = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert accepted.returncode == 0, accepted.stderr
    (tmp_path / ".env").write_text("")
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "write it into .env" in refused.stderr
