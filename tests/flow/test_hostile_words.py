"""Texts of strangers. Each of them once blocked a worker's event loop until its lease expired."""

import pytest
from sqlalchemy import select

from osiris.queue.leases import PATIENCE
from osiris.queue.tables import LeaseRow
from tests.flow.conftest import FIX_STEPS, FlowEnvironment, Start, build_run, build_step

COMMENT_LIMIT = 65_000  # characters that GitHub accepts in a comment
FLOOD_COMMANDS = {
    "returns": "head -c 262144 /dev/zero | tr '\\0' '\\r'",
    "starts of keys": "python3 -c \"print('sk-' * 80000); print('eyJ-' * 60000)\"",
    "escapes": "python3 -c \"print('\\x1b[' * 60000 + '\\x9b0' * 60000)\"",
    "hidden characters": "python3 -c \"print('\\u200b\\U000e0041' * 60000)\"",
}
HOSTILE_COMMENTS = {
    "images": "![" * (COMMENT_LIMIT // 2),
    "lists": "- a\n" * (COMMENT_LIMIT // 4),
    "brackets": "[" * COMMENT_LIMIT,
    "spans of code": "`\n/osiris stop\n`\n\n" * (COMMENT_LIMIT // 20),
}


async def list_leases(env: FlowEnvironment) -> tuple[int, ...]:
    async with env.osiris.engine.connect() as connection:
        return tuple(await connection.scalars(select(LeaseRow.number)))


async def test_no_words_cost_a_worker_its_lease(start: Start):
    steps = [build_step("run_command", command=command) for command in FLOOD_COMMANDS.values()]
    async with start({"runs": [build_run(*steps, *FIX_STEPS)]}) as env:
        leases_before = await list_leases(env)
        issue = await env.file_labelled_issue("![" * 100, "![" * (COMMENT_LIMIT // 2))
        for text in HOSTILE_COMMENTS.values():
            await env.alice.add_comment(issue, text)
            await env.alice.add_comment(issue, f"{text[: COMMENT_LIMIT // 2]}\n\n/osiris status")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"
        assert await list_leases(env) == leases_before
        longest, location = env.osiris.monitor.longest, env.osiris.monitor.place
        assert longest < PATIENCE / 4, location


@pytest.mark.first_case
@pytest.mark.parametrize("name", HOSTILE_COMMENTS)
async def test_a_command_is_found_below_hostile_words(start: Start, name: str):
    async with start() as env:
        issue = await env.alice.file_issue("A title", "A body")
        await env.alice.add_comment(issue, f"{HOSTILE_COMMENTS[name][:2000]}\n\n/osiris")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"
