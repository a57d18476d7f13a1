"""Upgrade of a database that an earlier version wrote in the middle of its work. Osiris migrates
the database, and continues the work."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from alembic import command as alembic
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, create_engine, func, select, text

from osiris.bootstrap import Osiris, Timeouts
from osiris.config.settings import Settings
from osiris.core.errors import Refused
from osiris.core.events import Authentication, Principal
from osiris.devhub.models import Delivery
from osiris.devhub.webhook_sender import PendingDelivery
from osiris.playground.environment import Environment, start_environment
from osiris.playground.users import Person
from osiris.queue import audit_log, serialization
from osiris.queue.database import SCHEMA
from tests.flow.conftest import FILES, PEOPLE, REPO, run_plain_git
from tests.flow.test_several_workers import EXPECTED_FILES, THREE_FILES_SCRIPT

OLD_ROWS_FILE = Path(__file__).with_name("version_0001.json")
"""Rows that version 0001 wrote: a stopped task, a task in the middle of its run, and a label on
which nothing is decided."""
MIGRATIONS = Path(audit_log.__file__).with_name("migrations")


def test_the_version_of_the_schema_is_that_of_the_newest_migration():
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == SCHEMA


@pytest.fixture
def pair(request: pytest.FixtureRequest, pair: dict[str, str]) -> dict[str, str]:
    """Provide the storage settings; the PostgreSQL has no schema yet."""
    if pair:
        pair["database_url"] = request.getfixturevalue("database")
    return pair


def write_old_database(settings: Settings, base: str) -> dict[str, int]:
    """Create a database with rows of version 0001. Return the number of rows of each table."""
    settings.osiris_data_dir.mkdir(mode=0o711)
    address = settings.database.replace("+aiosqlite", "").replace(
        "postgresql:", "postgresql+psycopg:"
    )
    engine = create_engine(address)
    rows = json.loads(OLD_ROWS_FILE.read_text().replace("{base}", base))
    with engine.begin() as connection:
        _insert_rows(connection, rows)
    engine.dispose()
    return {name: len(table_rows) for name, table_rows in rows.items()}


def _insert_rows(connection: Connection, rows: dict[str, list[dict[str, Any]]]) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    alembic.upgrade(config, "0001")
    tables = MetaData()
    tables.reflect(connection)
    for name in ("inbox", "tasks", "outbox", "runs", "steps", "journal"):
        connection.execute(tables.tables[name].insert(), [_convert_row(row) for row in rows[name]])
        if connection.dialect.name == "postgresql" and "id" in rows[name][0]:
            statement = (
                f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), max(id)) FROM {name}"
            )
            connection.execute(text(statement))


def _convert_row(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a row of the file to its stored form. The file contains JSON columns as text, because
    SQLite returned them so, and bytes as text."""
    is_json = {"body": "delivery" not in row, "data": True, "detail": True, "message": True}
    converted = {
        name: json.loads(value) if is_json.get(name) else value for name, value in row.items()
    }
    return {**converted, **({"body": row["body"].encode()} if "delivery" in row else {})}


def test_stored_orders_and_tasks_have_the_names_of_this_version(
    tmp_path: Path, pair: dict[str, str]
):
    """A waiting reply keeps its deduplication key."""
    address = pair.get("database_url", f"sqlite:///{tmp_path}/osiris.db")
    engine = create_engine(address.replace("postgresql:", "postgresql+psycopg:"))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.upgrade(config, "0002")
        request_fields = {"key": "k", "repo": "acme/shop", "title": "T", "body": "B", "by": "ann"}
        for kind, body in {
            "Reply": {"once": "help:7"},
            "Push": {"once": "help:7"},
            "OpenIssue": request_fields,
        }.items():
            connection.execute(
                text(
                    "INSERT INTO outbox (key, kind, lane, body, attempts, about)"
                    " VALUES (:kind, :kind, 0, :body, 0, 'acme/shop#1')"
                ),
                {"kind": kind, "body": json.dumps({"type": kind, **body})},
            )
        connection.execute(
            text(
                "INSERT INTO inbox (source, delivery, kind, body, received, attempts, not_before)"
                " VALUES ('osiris', 'd', 'RequestMade', :body, 0, 0, 0)"
            ),
            {"body": json.dumps({"type": "RequestMade", **request_fields}).encode()},
        )
        alembic.upgrade(config, "head")
        orders = connection.execute(text("SELECT kind, body FROM outbox"))
        bodies = {
            kind: json.loads(body) if isinstance(body, str) else body for kind, body in orders
        }
        request = connection.scalar(text("SELECT body FROM inbox"))
    engine.dispose()
    assert bodies["Reply"] == {"type": "Reply", "dedup_key": "help:7"}
    assert bodies["Push"] == {"type": "Push", "once": "help:7"}
    expected_principal = Principal(name="ann", authentication=Authentication.OPERATOR)
    assert serialization.load(bodies["OpenIssue"]).principal == expected_principal
    assert serialization.load(json.loads(request)).principal == expected_principal


async def file_old_issues(playground: Environment, alice: Person) -> None:
    """File and label the issues of the old database. Their events are dropped, because version
    0001 has received them."""

    async def drop_delivery(_delivery: Delivery, send: PendingDelivery) -> None:
        send.drop()

    playground.hub.hooks.interceptors.append(drop_delivery)
    for title in ("given up", "three files", "three more"):
        await alice.add_label(await alice.file_issue(title, "make three files"))
    await playground.hub.wait_until_sent()
    playground.hub.hooks.interceptors.remove(drop_delivery)


async def test_the_work_of_the_first_version_goes_on_to_its_end(
    folder: Path, pair: dict[str, str], run_cli: Any
):
    script_file = folder / "script.yml"
    script_file.write_text(yaml.safe_dump(THREE_FILES_SCRIPT))
    more = {**pair, "osiris_model": f"scripted:{script_file}"}
    async with (
        start_environment(folder, repo=REPO, files=FILES, people=PEOPLE, more=more) as playground,
        playground.get_person("alice") as alice,
    ):
        await file_old_issues(playground, alice)
        hub_repository = str(folder / "hub/repos" / f"{REPO}.git")
        old_row_counts = await asyncio.to_thread(
            write_old_database,
            playground.settings,
            run_plain_git("--git-dir", hub_repository, "rev-parse", "HEAD").strip(),
        )
        if pair:
            with pytest.raises(Refused, match="run `osiris migrate` first"):
                async with playground.run_osiris():
                    pass
            assert await run_cli(
                "migrate", DATABASE_URL=pair["database_url"], OSIRIS_DATA_DIR=str(folder / "osiris")
            ) == (
                0,
                f"{pair['database_url']} is up to date\n",
                "",
            )
        async with playground.run_osiris(timeouts=Timeouts(pauses=(0.05,))) as osiris:
            await playground.wait_until_settled(osiris.store)
            await _assert_tasks_continue(osiris, alice, hub_repository, old_row_counts)


async def _assert_tasks_continue(
    osiris: Osiris, alice: Person, hub_repository: str, old_row_counts: dict[str, int]
) -> None:
    lines = {line.id: line.task for line in await osiris.read_models.list_tasks()}
    assert {id: str(task.state) for id, task in lines.items()} == {
        1: "cancelled",
        2: "review",
        3: "review",
    }
    assert await osiris.read_models.list_failures() == []
    for pull in await alice.list_pulls():
        changed_files = await alice.send_request("GET", f"/pulls/{pull['number']}/files")
        assert {
            f["filename"]: run_plain_git(
                "--git-dir", hub_repository, "show", f"{pull['head']['sha']}:{f['filename']}"
            )
            for f in changed_files
        } == EXPECTED_FILES
    assert sorted(task.pull for task in lines.values() if task.pull) == sorted(
        p["number"] for p in await alice.list_pulls()
    )
    messages = [step.message for step in await osiris.read_models.list_steps(2)]
    assert [message.role for message in messages].count("assistant") == 6
    assert (
        sum(
            message.role == "tool" and message.text.startswith("interrupted")
            for message in messages
        )
        == 1
    )
    for task in lines:
        await _assert_hash_chain(osiris, task)
    async with osiris.engine.connect() as connection:
        for name, count in old_row_counts.items():
            assert await connection.scalar(select(func.count()).select_from(text(name))) >= count


async def _assert_hash_chain(osiris: Osiris, task: int) -> None:
    """Assert that the hash chain of the audit log is intact, from the lines of the old version to
    the new ones."""
    async with osiris.engine.connect() as connection:
        query = select(audit_log.JournalRow.__table__).where(audit_log.JournalRow.task_id == task)
        link = ""
        for row in await connection.execute(query.order_by(audit_log.JournalRow.seq)):
            link = audit_log.hash_entry(link, row.seq, row.at, row.kind, row.what, row.detail)
            assert link == row.hash
