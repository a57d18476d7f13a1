"""Upgrade of a database that an earlier version wrote in the middle of its work: it is migrated,
and the work continues."""

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
from tests.flow.conftest import FILES, PEOPLE, REPO, plain_git
from tests.flow.test_several_workers import EXPECTED_FILES, STEPS

WRITTEN = Path(__file__).with_name("version_0001.json")
"""Rows that version 0001 wrote: a stopped task, a task in the middle of its run, and a label that
is not decided yet."""
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
    """Create a database as version 0001 left it. Return the number of rows of each table."""
    settings.osiris_data_dir.mkdir(mode=0o711)
    address = settings.database.replace("+aiosqlite", "").replace(
        "postgresql:", "postgresql+psycopg:"
    )
    engine = create_engine(address)
    rows = json.loads(WRITTEN.read_text().replace("{base}", base))
    with engine.begin() as connection:
        _fill(connection, rows)
    engine.dispose()
    return {name: len(some) for name, some in rows.items()}


def _fill(connection: Connection, rows: dict[str, list[dict[str, Any]]]) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    alembic.upgrade(config, "0001")
    tables = MetaData()
    tables.reflect(connection)
    for name in ("inbox", "tasks", "outbox", "runs", "steps", "journal"):
        connection.execute(tables.tables[name].insert(), [_read(row) for row in rows[name]])
        if connection.dialect.name == "postgresql" and "id" in rows[name][0]:
            last = f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), max(id)) FROM {name}"
            connection.execute(text(last))


def _read(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a row of the file to its stored form: SQLite returned JSON as text, and bytes are
    text in the file."""
    names = {"body": "delivery" not in row, "data": True, "detail": True, "message": True}
    read = {name: json.loads(value) if names.get(name) else value for name, value in row.items()}
    return {**read, **({"body": row["body"].encode()} if "delivery" in row else {})}


def test_stored_orders_and_tasks_have_the_names_of_this_version(
    tmp_path: Path, pair: dict[str, str]
):
    """A waiting reply is still identified by its deduplication key."""
    address = pair.get("database_url", f"sqlite:///{tmp_path}/osiris.db")
    engine = create_engine(address.replace("postgresql:", "postgresql+psycopg:"))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.upgrade(config, "0002")
        asked = {"key": "k", "repo": "acme/shop", "title": "T", "body": "B", "by": "ann"}
        for kind, body in {
            "Reply": {"once": "help:7"},
            "Push": {"once": "help:7"},
            "OpenIssue": asked,
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
            {"body": json.dumps({"type": "RequestMade", **asked}).encode()},
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


async def file_labelled_issue(playground: Environment, alice: Person) -> None:
    """Bring GitHub to the state of that time, with everything delivered."""

    async def drop_delivery(_delivery: Delivery, send: PendingDelivery) -> None:
        send.drop()

    playground.hub.hooks.interceptors.append(drop_delivery)
    for title in ("given up", "three files", "three more"):
        await alice.add_label(await alice.file_issue(title, "make three files"))
    await playground.hub.wait_until_sent()
    playground.hub.hooks.interceptors.remove(drop_delivery)


async def test_the_work_of_the_first_version_goes_on_to_its_end(
    place: Path, pair: dict[str, str], command: Any
):
    script = place / "script.yml"
    script.write_text(yaml.safe_dump(STEPS))
    more = {**pair, "osiris_model": f"scripted:{script}"}
    async with (
        start_environment(place, repo=REPO, files=FILES, people=PEOPLE, more=more) as playground,
        playground.get_person("alice") as alice,
    ):
        await file_labelled_issue(playground, alice)
        hub = str(place / "hub/repos" / f"{REPO}.git")
        before = await asyncio.to_thread(
            write_old_database,
            playground.settings,
            plain_git("--git-dir", hub, "rev-parse", "HEAD").strip(),
        )
        if pair:
            with pytest.raises(Refused, match="run `osiris migrate` first"):
                async with playground.run_osiris():
                    pass
            assert await command(
                "migrate", DATABASE_URL=pair["database_url"], OSIRIS_DATA_DIR=str(place / "osiris")
            ) == (
                0,
                f"{pair['database_url']} is up to date\n",
                "",
            )
        async with playground.run_osiris(timeouts=Timeouts(pauses=(0.05,))) as osiris:
            await playground.wait_until_settled(osiris.store)
            await _assert_tasks_continue(osiris, alice, hub, before)


async def _assert_tasks_continue(
    osiris: Osiris, alice: Person, hub: str, before: dict[str, int]
) -> None:
    lines = {line.id: line.task for line in await osiris.read_models.list_tasks()}
    assert {id: str(task.state) for id, task in lines.items()} == {
        1: "cancelled",
        2: "review",
        3: "review",
    }
    assert await osiris.read_models.list_failures() == []
    for pull in await alice.list_pulls():
        changed = await alice.send_request("GET", f"/pulls/{pull['number']}/files")
        assert {
            f["filename"]: plain_git(
                "--git-dir", hub, "show", f"{pull['head']['sha']}:{f['filename']}"
            )
            for f in changed
        } == EXPECTED_FILES
    assert sorted(task.pull for task in lines.values() if task.pull) == sorted(
        p["number"] for p in await alice.list_pulls()
    )
    said = [step.message for step in await osiris.read_models.list_steps(2)]
    assert [message.role for message in said].count("assistant") == 6
    assert (
        sum(message.role == "tool" and message.text.startswith("interrupted") for message in said)
        == 1
    )
    for task in lines:
        await _assert_hash_chain(osiris, task)
    async with osiris.engine.connect() as connection:
        for name, many in before.items():
            assert await connection.scalar(select(func.count()).select_from(text(name))) >= many


async def _assert_hash_chain(osiris: Osiris, task: int) -> None:
    """Assert that the hash chain of the audit log is intact from the old version's lines to the new
    ones."""
    async with osiris.engine.connect() as connection:
        query = select(audit_log.JournalRow.__table__).where(audit_log.JournalRow.task_id == task)
        link = ""
        for row in await connection.execute(query.order_by(audit_log.JournalRow.seq)):
            link = audit_log.hash_entry(link, row.seq, row.at, row.kind, row.what, row.detail)
            assert link == row.hash
