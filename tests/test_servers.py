"""The servers that tests start: they are private, they can be stopped and frozen, and they leave
nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests import server_reaper
from tests.servers import Postgres, Redis, Server, read_process_states

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["postgres", "redis_server"])
def server(request: pytest.FixtureRequest) -> Server:
    """Provide each kind of server in turn."""
    return request.getfixturevalue(request.param)


def wait_until(is_reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run_sql(url: str, statement: str) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_no_process_of_a_server_is_roots(server: Server):
    uids = {os.stat(f"/proc/{pid}").st_uid for pid in server.processes}
    assert len(uids) == 1
    assert uids.isdisjoint({0})


def test_a_server_listens_to_this_machine_alone(server: Server):
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {
        local
        for _, local, _, state, *_ in sockets
        if state == "0A" and local.endswith(f":{server.port:04X}")
    }
    assert listening == {f"0100007F:{server.port:04X}"}
    assert not list(server.folder.rglob(".s.PGSQL*"))


def test_a_database_is_fresh_for_each_test_and_a_copy_has_what_its_template_has(
    postgres: Postgres, database: str
):
    assert run_sql(database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    run_sql(database, "CREATE TABLE found AS SELECT 7 AS seven")
    postgres.create("copied", template=urlsplit(database).path.strip("/"))
    assert run_sql(postgres.build_url("copied"), "SELECT seven FROM found") == [(7,)]
    with psycopg.connect(postgres.build_url("copied")):
        postgres.drop("copied")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        run_sql(postgres.build_url("copied"), "SELECT 1")


def test_a_stopped_postgres_refuses_and_comes_back_with_what_was_committed(
    postgres: Postgres, database: str
):
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        postgres.stop()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        run_sql(database, "SELECT 1")
    postgres.start()
    assert run_sql(database, "SELECT one FROM kept") == [(1,)]


def test_a_stopped_redis_refuses_and_comes_back_empty(redis_server: Redis):
    assert redis_server._send_command("SET word here") == "+OK"
    redis_server.stop()
    with pytest.raises(ConnectionRefusedError):
        redis_server.flush()
    redis_server.start()
    assert redis_server._send_command("EXISTS word") == ":0"
    assert redis_server._send_command("SET word here") == "+OK"
    redis_server.flush()
    assert redis_server._send_command("EXISTS word") == ":0"


def test_a_frozen_server_stands_still_with_all_its_connections_and_goes_on_afterwards(
    postgres: Postgres, database: str
):
    with psycopg.connect(database, autocommit=True) as connection:
        [(backend,)] = connection.execute("SELECT pg_backend_pid()").fetchall()
        postgres.freeze()
        assert backend in postgres.processes
        assert read_process_states(postgres.processes) == {"T"}
        postgres.thaw()
        assert "T" not in read_process_states(postgres.processes)
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


@pytest.mark.parametrize("method", ["stop", "thaw"])
def test_a_frozen_server_can_be_brought_back_either_way(server: Server, method: str):
    server.freeze()
    getattr(server, method)()
    server.start()
    assert server._is_ready()


OWNER_SCRIPT = """
import sys
from tests.servers import start_postgres, start_redis
with start_postgres() as postgres, start_redis() as redis:
    if "frozen" in sys.argv:
        postgres.freeze(), redis.freeze()
    print(postgres.folder, redis.folder, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["running", "frozen"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_servers_and_their_folders_are_gone_when_their_owner_was_killed(
    number: signal.Signals, state: str
):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER_SCRIPT, state],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with owner:
        assert owner.stdout
        folders = [Path(name) for name in owner.stdout.readline().split()]
        assert all(server_reaper.find_processes(folder) for folder in folders)
        owner.send_signal(number)
    for folder in folders:
        wait_until(
            lambda folder=folder: not server_reaper.find_processes(folder) and not folder.exists()
        )
