"""The vendors' own libraries against servers that speak their protocols, with and without
faults."""

import asyncio
from dataclasses import replace

import pytest

from fake_vendors import server as loopback
from fake_vendors.server import VENDOR_APIS
from fake_vendors.troubles import (
    BadArguments,
    BreakMidway,
    CutInCall,
    Empty,
    Hang,
    HangMidway,
    Refusal,
    Say,
    Status,
    UnknownTool,
)
from osiris.agents.models.scripted import ScriptedModel
from osiris.bootstrap import Timeouts
from osiris.core.ports.live import ReplyDelta
from osiris.core.ports.models import Message, ignore_deltas
from tests.flow.conftest import (
    ANSWER_STEPS,
    BLOCKING_STEP,
    CHECK_COMMAND,
    FILES,
    FIX_STEPS,
    FlowEnvironment,
    Start,
    build_run,
    build_step,
    get_vendor_settings,
)


@pytest.fixture
def pair() -> dict[str, str]:
    """Use SQLite only: models do not depend on the storage."""
    return {}


VENDORS = tuple(VENDOR_APIS)
every_vendor = pytest.mark.parametrize("vendor", VENDORS)


async def read_status_comment(env: FlowEnvironment, issue: int = 1) -> str:
    [status] = [
        comment for comment in await env.list_bot_comments(issue) if comment.startswith("**Osiris")
    ]
    return status


PARALLEL_CALLS_STEP = {
    "say": "I look first.",
    "call": {"read_file": {"path": "shop.py"}, "list_dir": {"path": "."}},
    "expect": {"contains": ["a - b", "README.md"]},
}
SCRIPT = {
    "runs": [build_run(*ANSWER_STEPS, when="<review"), build_run(PARALLEL_CALLS_STEP, *FIX_STEPS)]
}


@pytest.mark.first_case
@every_vendor
async def test_the_whole_loop_over_a_vendors_own_wire(start: Start, vendor: str):
    async with start(SCRIPT, vendor=vendor) as env:
        with env.osiris.live_events.subscribe() as events:
            _, pull = await env.bring_to_review()
            deltas = [
                event
                for _ in range(events.qsize())
                if isinstance(event := events.get_nowait(), ReplyDelta)
            ]
        transcript = await env.read_transcript()
        model = env.playground.settings.osiris_model
        _assert_deltas_match_replies(deltas, transcript)
        first, *answers = transcript[2:5]
        assert [answer.call for answer in answers] == [call.id for call in first.calls]
        body = (await env.bob.get_pull(pull))["body"]
        assert all(
            part in body for part in ("4 steps in", f"with `{model}`: ", "tokens in", "| 0 |")
        )
        assert (
            "at a price that is not known" if vendor == "openai-compatible" else "US dollars."
        ) in body
        await env.bob.submit_review(pull, "REQUEST_CHANGES", "Notes, please.")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"
        commits = await env.bob.send_request("GET", f"/pulls/{pull}/commits")
        assert [f"Osiris-Model: {model}" in commit["commit"]["message"] for commit in commits] == [
            True,
            True,
        ]
        assert await env.list_failures() == []


def _assert_deltas_match_replies(deltas: list[ReplyDelta], transcript: list[Message]) -> None:
    replies = {
        number: message for number, message in enumerate(transcript) if message.role == "assistant"
    }
    assert {delta.seq for delta in deltas} == replies.keys()
    for number, reply in replies.items():
        call_text = "".join(
            delta.text for delta in deltas if delta.seq == number and delta.kind == "call"
        )
        assert all(call.name in call_text for call in reply.calls)
        assert "".join(d.text for d in deltas if d.seq == number and d.kind == "text") == reply.text


ECHO_STEPS = [build_step("run_command", {"exit_code": 0}, command=f"echo {n}") for n in range(12)]


@pytest.mark.parametrize(
    "vendor",
    ["openai", *(pytest.param(one, marks=pytest.mark.long) for one in VENDORS if one != "openai")],
)
async def test_all_that_goes_wrong_in_a_run_costs_no_step_and_doubles_nothing(
    start: Start, vendor: str
):
    async with start(
        {"runs": [build_run(*ECHO_STEPS, *FIX_STEPS)]},
        vendor=vendor,
        more={"osiris_model_patience": 5} if vendor == "anthropic" else {},
    ) as env:
        # each lasts until the timeout
        hanging = [Hang(), HangMidway()] if vendor == "anthropic" else []
        await env.osiris.models.probe_model()
        env.vendors.troubles += [
            Status(429, retry_after=0.1),
            Status(503),
            *hanging,
            Status(500),
            BreakMidway(),
            Say("I think I should look first."),
            BadArguments("run_command", '{"command": '),
            CutInCall("write_file", '{"path": "shop.py", "content": "def ad'),
            UnknownTool("browse"),
            Empty(),
            Refusal("I would rather not."),
            BreakMidway(),
            BreakMidway(),  # twice in a row: the run is deferred
            Status(529),
        ]
        _, pull = await env.bring_to_review()
        assert env.vendors.troubles == []
        task = await env.get_task()
        transcript = await env.read_transcript()
        assert [result.command for result in task.work.commands] == [
            *(f"echo {n}" for n in range(12)),
            CHECK_COMMAND,
        ]
        answers = [message.text for message in transcript if message.role == "tool"]
        assert any("run_command was not run" in answer for answer in answers)
        assert any("write_file was not run" in answer for answer in answers)
        assert any("no tool named browse" in answer for answer in answers)
        assert len(await env.bob.send_request("GET", f"/pulls/{pull}/commits")) == 1
        assert await env.list_failures() == []


@pytest.mark.long
async def test_once_the_key_is_mended_a_retry_goes_on_where_it_stopped(start: Start):
    async with start({"runs": [build_run(*ECHO_STEPS[:2], *FIX_STEPS)]}, vendor="anthropic") as env:
        await env.osiris.models.probe_model()
        env.vendors.troubles.append(Status(401))
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        assert (await env.get_task()).state == "paused"
        request_count = len(env.vendors.requests)
        await env.alice.add_comment(issue, "/osiris retry")
        await env.wait_until_settled()
        task = await env.get_task()
        assert (task.state, task.run) == ("review", 1)
        assert len(env.vendors.requests) - request_count == 5


async def test_a_model_that_only_talks_ends_the_run_with_its_words(start: Start):
    async with start(vendor="anthropic") as env:
        await env.osiris.models.probe_model()
        env.vendors.troubles += [Say("Let us talk.")] * 3
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        assert (
            "The model stopped using its tools; it said: Let us talk"
            in await read_status_comment(env, issue)
        )


LARGE_OUTPUT_STEP = build_step("run_command", command="head -c 14000 /dev/zero | tr '\\0' x")


async def test_a_full_window_is_met_by_leaving_old_outputs_out(start: Start):
    async with start(
        {"runs": [build_run(*[LARGE_OUTPUT_STEP] * 8, *FIX_STEPS)]},
        vendor="anthropic",
        more={"osiris_model_window": 24_000},
    ) as env:
        await env.file_labelled_issue()
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review", (await env.get_task()).reason
        bodies = [str(request.body) for request in env.vendors.requests]
        assert "this older output was left out" in bodies[-1]
        assert max(map(len, bodies)) < 24_000 * 4
        assert all("add(1, 2) is -1" in body for body in bodies[1:])


async def test_a_second_model_takes_over_after_three_failures_and_keeps_the_transcript(
    start: Start,
):
    second_model = {"osiris_second_model": f"openai:{VENDOR_APIS['openai'].model}"}
    async with start(
        {"runs": [build_run(BLOCKING_STEP, *FIX_STEPS)]},
        vendor="anthropic",
        second_vendor="openai",
        more=second_model,
    ) as env:
        await env.file_labelled_issue()
        await env.wait_until_running()
        env.vendors.troubles += [Status(529)] * 3
        env.release_step()
        await env.wait_until_settled()
        task = await env.get_task()
        assert (task.state, task.run) == ("review", 1)
        assert (
            task.work.model
            == f"{env.playground.settings.osiris_model}, {second_model['osiris_second_model']}"
        )
        assert [result.command for result in task.work.commands] == [
            BLOCKING_STEP["call"]["run_command"]["command"],
            CHECK_COMMAND,
        ]


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("anthropic", "openai"),
        pytest.param("openai", "google", marks=pytest.mark.long),
        pytest.param("google", "anthropic", marks=pytest.mark.long),
    ],
)
async def test_a_person_changes_the_model_in_the_middle_of_a_run(
    start: Start, first: str, other: str
):
    async with start(
        {"runs": [build_run(BLOCKING_STEP, *FIX_STEPS)]}, vendor=first, second_vendor=other
    ) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_running()
        model = get_vendor_settings(env.vendors, other)["osiris_model"]
        await env.alice.add_comment(issue, f"/osiris model {model}")
        await env.wait_until_answered()
        env.release_step()
        await env.wait_until_settled()
        task = await env.get_task()
        assert task.state == "review"
        assert task.work.model == f"{env.playground.settings.osiris_model}, {model}"
        assert f"alice chose the model `{model}`" in await read_status_comment(env, issue)
        [commit] = await env.bob.send_request("GET", f"/pulls/{task.pull}/commits")
        assert f"Osiris-Model: {task.work.model}" in commit["commit"]["message"]


@pytest.mark.long
async def test_a_model_that_is_not_there_is_refused_with_a_list_of_those_that_are(start: Start):
    async with start(vendor="anthropic", second_vendor="openai") as env:
        issue, _pull = await env.bring_to_review()
        for model, reason in {
            "nobody:x": (
                "there is no model 'nobody:x' here; configured are: anthropic:claude-sonnet-5,"
                " anthropic:…,"
            ),
            "openai:missing": (
                "there is no model openai:missing at its address; configured are: anthropic:"
            ),
            "openai:toolless": "openai:toolless cannot call tools",
            "scripted:/etc/passwd": "there is no model 'scripted:/etc/passwd' here",
        }.items():
            await env.alice.add_comment(issue, f"/osiris model {model}")
            await env.wait_until_settled()
            assert (
                f"I did not change the model: {reason}" in (await env.list_bot_comments(issue))[-1]
            )
        assert (await env.get_task()).model == ""


async def test_an_outsiders_choice_asks_no_model(start: Start):
    async with start(vendor="anthropic", second_vendor="openai") as env:
        issue, _pull = await env.bring_to_review()
        request_count = len(env.vendors.requests)
        await env.tina.add_comment(issue, "/osiris model openai:gpt-5")
        await env.wait_until_settled()
        assert (len(env.vendors.requests), (await env.get_task()).model) == (request_count, "")


@pytest.mark.long
async def test_the_repository_says_who_builds(start: Start):
    files = {
        **FILES,
        ".github/osiris.yml": f"models:\n  build: openai:{VENDOR_APIS['openai'].model}\n",
    }
    async with start(vendor="anthropic", second_vendor="openai", files=files) as env:
        await env.bring_to_review()
        assert (await env.get_task()).work.model == f"openai:{VENDOR_APIS['openai'].model}"


@pytest.mark.long
async def test_a_vendor_that_the_operator_has_not_configured_pauses_the_task(start: Start):
    files = {**FILES, ".github/osiris.yml": "models:\n  build: google:gemini-3-pro-preview\n"}
    async with start(vendor="anthropic", files=files) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        assert (
            "The model 'google:gemini-3-pro-preview' cannot be used here, because GOOGLE_API_KEY is"
            " not set; configured are: anthropic:" in await read_status_comment(env)
        )
        await env.alice.add_comment(issue, f"/osiris model {env.playground.settings.osiris_model}")
        await env.alice.add_comment(issue, "/osiris retry")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"


async def test_a_budget_in_dollars_is_held_and_granted_again(start: Start):
    async with start(vendor="anthropic", more={"osiris_run_usd": 0.000_001}) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        assert (await env.get_task()).state == "paused"
        assert "US dollars is spent" in await read_status_comment(env, issue)


@pytest.mark.long
async def test_a_price_that_is_not_known_cannot_be_held_and_another_model_goes_on(start: Start):
    async with start(
        vendor="openai-compatible", second_vendor="openai", more={"osiris_run_usd": 5}
    ) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        assert "No price is known for this model" in await read_status_comment(env, issue)
        await env.alice.add_comment(issue, f"/osiris model openai:{VENDOR_APIS['openai'].model}")
        await env.alice.add_comment(issue, "/osiris retry")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"


@pytest.mark.long
async def test_a_model_chosen_while_the_run_waits_for_another_is_asked_at_once(start: Start):
    async with start(vendor="anthropic", second_vendor="openai") as env:
        await env.osiris.models.probe_model()
        env.vendors.troubles.append(Status(429, retry_after=250))
        issue = await env.file_labelled_issue()
        async with asyncio.timeout(20):
            while env.vendors.troubles:
                await asyncio.sleep(0.05)
        await env.alice.add_comment(issue, f"/osiris model openai:{VENDOR_APIS['openai'].model}")
        await env.wait_until_settled()
        assert (await env.get_task()).work.model == f"openai:{VENDOR_APIS['openai'].model}"


@pytest.mark.long
async def test_a_model_chosen_while_the_run_is_being_set_up_counts(start: Start):
    async with start(vendor="anthropic", second_vendor="openai") as env:
        is_fetching = asyncio.Event()
        may_continue = asyncio.Event()

        async def hold_fetch(request, forward):
            if request.url.path.endswith("/git-upload-pack"):
                is_fetching.set()
                await may_continue.wait()
            return await forward()

        env.playground.hub.interceptors.append(hold_fetch)
        issue = await env.file_labelled_issue()
        async with asyncio.timeout(20):
            await is_fetching.wait()
        await env.alice.add_comment(issue, f"/osiris model openai:{VENDOR_APIS['openai'].model}")
        async with asyncio.timeout(20):
            while (await env.get_task()).model == "":
                await asyncio.sleep(0.05)
        may_continue.set()
        await env.wait_until_settled()
        assert (await env.get_task()).work.model == f"openai:{VENDOR_APIS['openai'].model}"


@pytest.mark.long
async def test_a_choice_without_a_name_is_answered_with_what_can_be_said(start: Start):
    async with start(vendor="anthropic") as env:
        issue, _pull = await env.bring_to_review()
        for command in ("/osiris model", "/osiris model `anthropic:x`"):
            await env.alice.add_comment(issue, command)
            await env.wait_until_settled()
            assert "`/osiris model VENDOR:MODEL`" in (await env.list_bot_comments(issue))[-1]
        assert (await env.get_task()).model == ""


SELECT_MODEL_CODE = """
import asyncio, sys
from osiris.agents.models.registry import Access, ModelRegistry
access = Access(key="k", url="http://127.0.0.1:9")
models = ModelRegistry("{vendor}:x", {{"{vendor}": access}})
async def main():
    await models.select()
    await models.close()
asyncio.run(main())
print([name for name in {libraries} if name in sys.modules])
"""


@pytest.mark.long
async def test_only_the_chosen_vendors_library_is_loaded():
    """Each vendor is checked in a separate process."""
    import subprocess
    import sys

    libraries = {
        "anthropic": "anthropic",
        "openai": "openai",
        "google": "google.genai",
        "openai-compatible": "openai",
    }
    for vendor, library in libraries.items():
        code = SELECT_MODEL_CODE.format(vendor=vendor, libraries=sorted(set(libraries.values())))
        completed = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert completed.stdout.strip() == str([library])


@pytest.mark.long
async def test_a_vendor_that_stays_away_halts_the_run_and_it_goes_on_once_it_is_back(start: Start):
    async with start(
        {"runs": [build_run(BLOCKING_STEP, *FIX_STEPS)]},
        vendor="anthropic",
        timeouts=Timeouts(pauses=(0.05,), tries=4),
    ) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_running()
        env.vendors.troubles += [Status(503)] * 4
        env.release_step()
        await env.wait_until_settled()
        assert (await env.get_task()).state == "paused"
        assert "Anthropic has trouble" in await read_status_comment(env, issue)
        assert "(tried 4 times)" in await read_status_comment(env, issue)
        await env.alice.add_comment(issue, "/osiris retry")
        await env.wait_until_settled()
        task = await env.get_task()
        assert (task.state, task.run, task.work.steps) == ("review", 1, 4)


@pytest.mark.long
async def test_outages_never_add_up_while_a_run_gets_on(start: Start):
    async with start(
        {"runs": [build_run(*ECHO_STEPS[:3], *FIX_STEPS)]},
        vendor="anthropic",
        timeouts=Timeouts(pauses=(0.05,), tries=3),
    ) as env:
        await env.osiris.models.probe_model()
        # three in a row would reach the limit of attempts
        env.vendors.troubles += [Status(503), Status(503), None] * 6
        await env.bring_to_review()
        assert (await env.get_task()).run == 1


@pytest.mark.long
async def test_a_bug_in_a_run_halts_it_and_loses_no_step(start: Start):
    state = {"is_broken": False}

    class FailingModel(ScriptedModel):
        async def reply(self, transcript, tools, on_delta=ignore_deltas):
            if state["is_broken"] and len(transcript) > 4:
                raise RuntimeError("what this says stays in the log")
            return await super().reply(transcript, tools, on_delta)

    fake_model = FailingModel({"runs": [build_run(*ECHO_STEPS[:1], *FIX_STEPS)]})

    async def select_model(model: str) -> ScriptedModel:
        return fake_model

    state["is_broken"] = True
    async with start(select_model=select_model) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        assert (await env.get_task()).state == "paused"
        assert "A bug in Osiris (RuntimeError)" in await read_status_comment(env, issue)
        state["is_broken"] = False
        await env.alice.add_comment(issue, "/osiris retry")
        await env.wait_until_settled()
        task = await env.get_task()
        assert (task.state, task.run, task.work.steps) == ("review", 1, 4)


@pytest.mark.long
async def test_calls_that_share_an_id_are_each_done(start: Start):
    class DuplicateIdModel(ScriptedModel):
        async def reply(self, transcript, tools, on_delta=ignore_deltas):
            message = await super().reply(transcript, tools, on_delta)
            calls = tuple(replace(call, id="same") for call in message.calls)
            return replace(message, calls=calls)

    fake_model = DuplicateIdModel({"runs": [build_run(PARALLEL_CALLS_STEP, *FIX_STEPS)]})

    async def select_model(model: str) -> ScriptedModel:
        return fake_model

    async with start(select_model=select_model) as env:
        await env.bring_to_review()
        transcript = await env.read_transcript()
        ids = [call.id for message in transcript for call in message.calls]
        assert len(ids) == len(set(ids)) == 5
        assert {message.call for message in transcript if message.role == "tool"} == set(ids[:-1])


async def test_the_doctor_asks_the_model(run_cli, folder):
    async with loopback.serve_vendors({"runs": [build_run(*FIX_STEPS)]}) as vendors:
        environ = {**vendors.build_environ("anthropic"), "OSIRIS_DATA_DIR": str(folder / "data")}
        _, out, _ = await run_cli("doctor", **environ)
        assert "ok   model anthropic:claude-sonnet-5: it calls tools" in out
        _, out, _ = await run_cli("doctor", **{**environ, "ANTHROPIC_API_KEY": "sk-wrong"})
        assert "FAIL model anthropic:claude-sonnet-5: the model refused the key" in out
        assert "Traceback" not in out
