"""One script, played over each vendor's own SDK. The vendors refuse replies that come back
changed."""

from pathlib import Path

import pytest
import yaml

from fake_vendors.request_shapes import find_misfits
from fake_vendors.server import serve_vendors
from osiris.core.errors import Refused
from tests.fake_vendors.clients import READY, open_client

ANY_ERROR = (Exception,)
TOOL_OUTPUT = "exit code 0 in 0.1 s\ndef add(a, b):"


async def _take_step(client, *, stream=True, text=TOOL_OUTPUT):
    reply = await client.request_reply(stream=stream)
    client.add_answers([(id, name, text) for id, name, _ in reply.calls])
    return reply


@pytest.mark.parametrize("stream", [True, False])
async def test_the_story_passes_over_the_vendors_own_sdk(vendors, vendor, script, stream):
    async with open_client(vendors, vendor) as client:
        client.add_message("In calc.py add is wrong.")
        replies = [await _take_step(client, stream=stream) for _ in range(3)]
    steps = script["runs"][0]["steps"]
    assert [reply.text for reply in replies] == [step.get("say", "") for step in steps]
    assert [{name: args for _, name, args in reply.calls} for reply in replies] == [
        step["call"] for step in steps
    ]
    ids = [id for reply in replies for id, _, _ in reply.calls]
    assert len(set(ids)) == len(ids) == 4
    assert all("très doucement" in reply.thinking for reply in replies)
    assert [find_misfits(request) for request in vendors.requests] == [[], [], []]


async def test_each_request_is_recorded_as_it_came(vendors, vendor):
    async with open_client(vendors, vendor) as client:
        client.add_message("In calc.py add is wrong.")
        await _take_step(client)
        await _take_step(client)
    assert [request.vendor for request in vendors.requests] == [vendor, vendor]
    first, second = vendors.requests
    assert 0 < first.seconds < 5
    assert first.began + first.seconds < second.began
    assert first.path.startswith(f"/{vendor.removeprefix('openai-')}/v1")
    key = next(
        value for name, value in vendors.build_environ(vendor).items() if name.endswith("_API_KEY")
    )
    assert any(key in value for value in first.headers.values())
    assert "def add" in str(second.body)


async def test_a_story_is_read_from_a_file_too(tmp_path: Path, script):
    (tmp_path / "script.yml").write_text(yaml.safe_dump(script))
    async with (
        serve_vendors(tmp_path / "script.yml") as vendors,
        open_client(vendors, "anthropic") as client,
    ):
        client.add_message("add is wrong")
        assert (await client.request_reply()).names == ["read_file", "run_command"]


async def test_a_story_that_is_none_is_refused():
    with pytest.raises(Refused, match="runs"):
        async with serve_vendors({"steps": []}):
            pass


async def test_a_probe_is_answered_with_a_call_of_ready(vendors, vendor):
    async with open_client(vendors, vendor) as client:
        client.tools = READY
        client.add_message("Call the tool `ready` with the word yes.")
        reply = await client.request_reply()
    assert [(name, args) for _, name, args in reply.calls] == [("ready", {"word": "yes"})]


async def test_a_world_that_differs_is_an_error_with_the_scripts_sentence(vendors, vendor):
    async with open_client(vendors, vendor) as client:
        client.add_message("add is wrong")
        await _take_step(client, text="no such file")
        with pytest.raises(ANY_ERROR, match="'def add' is not in the answer") as refused:
            await client.request_reply()
    assert _get_status(refused.value) == 400


async def test_the_exit_code_in_an_answer_is_held_against_the_script(vendors, vendor):
    async with open_client(vendors, vendor) as client:
        client.add_message("add is wrong")
        await _take_step(client)
        await _take_step(client, text="exit code 1 in 0.1 s\nFAILED")
        with pytest.raises(ANY_ERROR, match="exit code 0 was expected"):
            await client.request_reply()


async def test_an_older_answer_may_be_left_out_later(vendors, vendor):
    async with open_client(vendors, vendor) as client:
        client.add_message("add is wrong")
        reply = await client.request_reply()
        before = list(client.history)
        client.add_answers([(id, name, TOOL_OUTPUT) for id, name, _ in reply.calls])
        await client.request_reply()
        client.history = before
        client.add_answers([(id, name, "[left out]") for id, name, _ in reply.calls])
        assert (await client.request_reply()).calls[0][2] == {"command": "pytest"}


@pytest.mark.parametrize("vendor", ["anthropic", "openai", "google"])
@pytest.mark.parametrize("fault", ["forget", "blur"])
async def test_a_reply_that_comes_back_without_its_state_is_refused(vendors, vendor, fault):
    async with open_client(vendors, vendor) as client:
        client.add_message("add is wrong")
        reply = await client.request_reply()
        getattr(client, fault)()
        client.add_answers([(id, name, TOOL_OUTPUT) for id, name, _ in reply.calls])
        with pytest.raises(ANY_ERROR, match="is missing, or is not what it was") as refused:
            await client.request_reply()
    assert _get_status(refused.value) == 400


@pytest.mark.parametrize("times", [0, 2])
async def test_a_call_must_have_exactly_one_answer(vendors, vendor, times):
    async with open_client(vendors, vendor) as client:
        client.add_message("add is wrong")
        [first, second] = (await client.request_reply()).calls
        client.add_answers([(id, name, TOOL_OUTPUT) for id, name, _ in [first, *[second] * times]])
        with pytest.raises(ANY_ERROR, match=f"{second[0]} must be answered once") as refused:
            await client.request_reply()
    assert _get_status(refused.value) == 400


@pytest.mark.parametrize("vendor", ["anthropic", "google", "openai-compatible"])
async def test_an_answer_behind_other_words_is_refused(vendors, vendor):
    async with open_client(vendors, vendor) as client:
        client.add_message("add is wrong")
        reply = await client.request_reply()
        client.add_message("Hurry up.")
        client.add_answers([(id, name, TOOL_OUTPUT) for id, name, _ in reply.calls])
        with pytest.raises(ANY_ERROR, match="must be answered once, right behind it"):
            await client.request_reply()


async def test_an_answer_to_a_call_that_nobody_made_is_refused(vendors, vendor):
    async with open_client(vendors, vendor) as client:
        client.add_message("add is wrong")
        reply = await client.request_reply()
        client.add_answers(
            [(id, name, TOOL_OUTPUT) for id, name, _ in reply.calls]
            + [("call_9", "read_file", TOOL_OUTPUT)]
        )
        with pytest.raises(ANY_ERROR, match="call_9"):
            await client.request_reply()


async def test_a_conversation_begun_elsewhere_goes_on_without_state(vendors, vendor):
    async with open_client(vendors, vendor) as client:
        client.add_message("add is wrong")
        client.add_foreign_turn()
        assert (await client.request_reply()).names == ["run_command"]


async def test_a_wrong_key_is_refused_as_the_vendor_does(vendors):
    errors = {}
    for vendor in ("anthropic", "openai", "google"):
        async with open_client(vendors, vendor, key="sk-another-key-0123456789") as client:
            client.add_message("add is wrong")
            with pytest.raises(ANY_ERROR) as refused:
                await client.request_reply()
        errors[vendor] = (
            _get_status(refused.value),
            f"{refused.value} {getattr(refused.value, 'body', '')}",
        )
    assert {vendor: status for vendor, (status, _) in errors.items()} == {
        "anthropic": 401,
        "openai": 401,
        "google": 400,
    }
    assert "authentication_error" in errors["anthropic"][1]
    assert "sk-anoth*************6789" in errors["openai"][1]
    assert "invalid_api_key" in errors["openai"][1]
    assert "API_KEY_INVALID" in errors["google"][1]


async def test_the_compatible_server_takes_any_key(vendors):
    async with open_client(vendors, "openai-compatible", key="none") as client:
        client.add_message("add is wrong")
        assert (await client.request_reply()).calls


async def test_there_is_no_model_named_missing(vendors, vendor):
    async with open_client(vendors, vendor, model="missing") as client:
        client.add_message("add is wrong")
        with pytest.raises(ANY_ERROR, match="missing") as refused:
            await client.request_reply()
    assert _get_status(refused.value) == 404


@pytest.mark.parametrize("vendor", ["anthropic", "openai", "google"])
async def test_a_model_without_tools_only_talks(vendors, vendor):
    async with open_client(vendors, vendor, model="toolless") as client:
        client.tools = READY
        client.add_message("Call the tool `ready` with the word yes.")
        reply = await client.request_reply()
    assert reply.text
    assert not reply.calls


async def test_a_compatible_server_says_that_its_model_has_no_tools(vendors):
    async with open_client(vendors, "openai-compatible", model="toolless") as client:
        client.add_message("add is wrong")
        with pytest.raises(ANY_ERROR, match="does not support tools") as refused:
            await client.request_reply()
    assert _get_status(refused.value) == 400


async def test_what_was_sent_before_is_counted_as_repeated(vendors, vendor):
    async with open_client(vendors, vendor) as client:
        client.add_message("add is wrong")
        replies = [await _take_step(client) for _ in range(3)]
    assert replies[0].cached == 0
    assert 0 < replies[0].input < replies[1].input < replies[2].input
    assert [reply.cached for reply in replies[1:]] == [reply.input for reply in replies[:2]]
    share = sum(reply.cached for reply in replies[1:]) / sum(reply.input for reply in replies[1:])
    assert vendors.get_repeated_share(vendor) == pytest.approx(share)


async def test_a_changed_beginning_is_not_repeated(vendors, vendor):
    async with open_client(vendors, vendor) as client:
        client.add_message("add is wrong")
        await _take_step(client)
        client.tools = dict(reversed(client.tools.items()))
        assert (await client.request_reply()).cached == 0
    assert vendors.get_repeated_share(vendor) == 0


async def test_anthropic_repeats_only_what_was_marked(vendors):
    async with open_client(vendors, "anthropic") as client:
        client.uses_cache_marks = False
        client.add_message("add is wrong")
        await _take_step(client)
        client.uses_cache_marks = True
        assert (await _take_step(client)).cached == 0
        assert (await client.request_reply()).cached > 0


async def test_anthropic_takes_no_more_than_four_marks(vendors):
    async with open_client(vendors, "anthropic") as client:
        block = {"type": "text", "text": "add is wrong", "cache_control": {"type": "ephemeral"}}
        client.history.append({"role": "user", "content": [block] * 4})
        with pytest.raises(ANY_ERROR, match="maximum of 4 blocks"):
            await client.request_reply()


def _get_status(error) -> int:
    return getattr(error, "status_code", None) or error.code
