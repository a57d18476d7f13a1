"""Text of strangers that once blocked a worker's event loop until its lease expired, all such texts
at once."""

import pytest
from sqlalchemy import select

from osiris.queue.leases import PATIENCE
from osiris.queue.tables import LeaseRow
from tests.flow.conftest import FIX, FlowEnvironment, Start, run, step

GITHUB = 65_000  # characters that GitHub accepts
FLOODS = {
    "returns": "head -c 262144 /dev/zero | tr '\\0' '\\r'",
    "starts of keys": "python3 -c \"print('sk-' * 80000); print('eyJ-' * 60000)\"",
    "escapes": "python3 -c \"print('\\x1b[' * 60000 + '\\x9b0' * 60000)\"",
    "hidden characters": "python3 -c \"print('\\u200b\\U000e0041' * 60000)\"",
}
COMMENTS = {
    "images": "![" * (GITHUB // 2),
    "lists": "- a\n" * (GITHUB // 4),
    "brackets": "[" * GITHUB,
    "spans of code": "`\n/osiris stop\n`\n\n" * (GITHUB // 20),
}


async def list_leases(env: FlowEnvironment) -> tuple[int, ...]:
    async with env.osiris.engine.connect() as connection:
        return tuple(await connection.scalars(select(LeaseRow.number)))


async def test_no_words_cost_a_worker_its_lease(start: Start):
    steps = [step("run_command", command=command) for command in FLOODS.values()]
    async with start({"runs": [run(*steps, *FIX)]}) as env:
        before = await list_leases(env)
        issue = await env.file_labelled_issue("![" * 100, "![" * (GITHUB // 2))
        for words in COMMENTS.values():
            await env.alice.add_comment(issue, words)
            await env.alice.add_comment(issue, f"{words[: GITHUB // 2]}\n\n/osiris status")
        await env.wait_until_settled()
        assert (await env.task()).state == "review"
        assert await list_leases(env) == before
        longest, place = env.osiris.monitor.longest, env.osiris.monitor.place
        assert longest < PATIENCE / 4, place


@pytest.mark.first_case
@pytest.mark.parametrize("name", COMMENTS)
async def test_a_command_is_found_below_hostile_words(start: Start, name: str):
    async with start() as env:
        issue = await env.alice.file_issue("A title", "A body")
        await env.alice.add_comment(issue, f"{COMMENTS[name][:2000]}\n\n/osiris")
        await env.wait_until_settled()
        assert (await env.task()).state == "review"
