"""One story, told over each vendor's own SDK; what does not come back as it was said is refused."""

from pathlib import Path

import pytest
import yaml

from fake_vendors.request_shapes import misfits
from fake_vendors.server import serving
from osiris.core.errors import Refused
from tests.fake_vendors.clients import READY, talking

DENIED = (Exception,)
SEEN = "exit code 0 in 0.1 s\ndef add(a, b):"


async def _step(client, *, stream=True, text=SEEN):
    said = await client.ask(stream=stream)
    client.answer([(id, name, text) for id, name, _ in said.calls])
    return said


@pytest.mark.parametrize("stream", [True, False])
async def test_the_story_passes_over_the_vendors_own_sdk(vendors, vendor, story, stream):
    async with talking(vendors, vendor) as client:
        client.tell("In calc.py add is wrong.")
        said = [await _step(client, stream=stream) for _ in range(3)]
    steps = story["runs"][0]["steps"]
    assert [one.text for one in said] == [step.get("say", "") for step in steps]
    assert [{name: args for _, name, args in one.calls} for one in said] == [
        step["call"] for step in steps
    ]
    ids = [id for one in said for id, _, _ in one.calls]
    assert len(set(ids)) == len(ids) == 4
    assert all("très doucement" in one.thinking for one in said)
    assert [misfits(asked) for asked in vendors.requests] == [[], [], []]


async def test_each_request_is_recorded_as_it_came(vendors, vendor):
    async with talking(vendors, vendor) as client:
        client.tell("In calc.py add is wrong.")
        await _step(client)
        await _step(client)
    assert [asked.vendor for asked in vendors.requests] == [vendor, vendor]
    first, second = vendors.requests
    assert 0 < first.seconds < 5
    assert first.began + first.seconds < second.began
    assert first.path.startswith(f"/{vendor.removeprefix('openai-')}/v1")
    key = next(
        value for name, value in vendors.environ(vendor).items() if name.endswith("_API_KEY")
    )
    assert any(key in value for value in first.headers.values())
    assert "def add" in str(second.body)


async def test_a_story_is_read_from_a_file_too(tmp_path: Path, story):
    (tmp_path / "script.yml").write_text(yaml.safe_dump(story))
    async with serving(tmp_path / "script.yml") as vendors, talking(vendors, "anthropic") as client:
        client.tell("add is wrong")
        assert (await client.ask()).names == ["read_file", "run_command"]


async def test_a_story_that_is_none_is_refused():
    with pytest.raises(Refused, match="runs"):
        async with serving({"steps": []}):
            pass


async def test_a_probe_is_answered_with_a_call_of_ready(vendors, vendor):
    async with talking(vendors, vendor) as client:
        client.tools = READY
        client.tell("Call the tool `ready` with the word yes.")
        said = await client.ask()
    assert [(name, args) for _, name, args in said.calls] == [("ready", {"word": "yes"})]


async def test_a_world_that_differs_is_an_error_with_the_scripts_sentence(vendors, vendor):
    async with talking(vendors, vendor) as client:
        client.tell("add is wrong")
        await _step(client, text="no such file")
        with pytest.raises(DENIED, match="'def add' is not in the answer") as denied:
            await client.ask()
    assert _status(denied.value) == 400


async def test_the_exit_code_in_an_answer_is_held_against_the_script(vendors, vendor):
    async with talking(vendors, vendor) as client:
        client.tell("add is wrong")
        await _step(client)
        await _step(client, text="exit code 1 in 0.1 s\nFAILED")
        with pytest.raises(DENIED, match="exit code 0 was expected"):
            await client.ask()


async def test_an_older_answer_may_be_left_out_later(vendors, vendor):
    async with talking(vendors, vendor) as client:
        client.tell("add is wrong")
        said = await client.ask()
        before = list(client.history)
        client.answer([(id, name, SEEN) for id, name, _ in said.calls])
        await client.ask()
        client.history = before
        client.answer([(id, name, "[left out]") for id, name, _ in said.calls])
        assert (await client.ask()).calls[0][2] == {"command": "pytest"}


@pytest.mark.parametrize("vendor", ["anthropic", "openai", "google"])
@pytest.mark.parametrize("fault", ["forget", "blur"])
async def test_a_reply_that_comes_back_without_its_state_is_refused(vendors, vendor, fault):
    async with talking(vendors, vendor) as client:
        client.tell("add is wrong")
        said = await client.ask()
        getattr(client, fault)()
        client.answer([(id, name, SEEN) for id, name, _ in said.calls])
        with pytest.raises(DENIED, match="is missing, or is not what it was") as denied:
            await client.ask()
    assert _status(denied.value) == 400


@pytest.mark.parametrize("times", [0, 2])
async def test_a_call_must_have_exactly_one_answer(vendors, vendor, times):
    async with talking(vendors, vendor) as client:
        client.tell("add is wrong")
        [first, second] = (await client.ask()).calls
        client.answer([(id, name, SEEN) for id, name, _ in [first, *[second] * times]])
        with pytest.raises(DENIED, match=f"{second[0]} must be answered once") as denied:
            await client.ask()
    assert _status(denied.value) == 400


@pytest.mark.parametrize("vendor", ["anthropic", "google", "openai-compatible"])
async def test_an_answer_behind_other_words_is_refused(vendors, vendor):
    async with talking(vendors, vendor) as client:
        client.tell("add is wrong")
        said = await client.ask()
        client.tell("Hurry up.")
        client.answer([(id, name, SEEN) for id, name, _ in said.calls])
        with pytest.raises(DENIED, match="must be answered once, right behind it"):
            await client.ask()


async def test_an_answer_to_a_call_that_nobody_made_is_refused(vendors, vendor):
    async with talking(vendors, vendor) as client:
        client.tell("add is wrong")
        said = await client.ask()
        client.answer(
            [(id, name, SEEN) for id, name, _ in said.calls] + [("call_9", "read_file", SEEN)]
        )
        with pytest.raises(DENIED, match="call_9"):
            await client.ask()


async def test_a_conversation_begun_elsewhere_goes_on_without_state(vendors, vendor):
    async with talking(vendors, vendor) as client:
        client.tell("add is wrong")
        client.foreign()
        assert (await client.ask()).names == ["run_command"]


async def test_a_wrong_key_is_refused_as_the_vendor_does(vendors):
    told = {}
    for vendor in ("anthropic", "openai", "google"):
        async with talking(vendors, vendor, key="sk-another-key-0123456789") as client:
            client.tell("add is wrong")
            with pytest.raises(DENIED) as denied:
                await client.ask()
        told[vendor] = (
            _status(denied.value),
            f"{denied.value} {getattr(denied.value, 'body', '')}",
        )
    assert {vendor: status for vendor, (status, _) in told.items()} == {
        "anthropic": 401,
        "openai": 401,
        "google": 400,
    }
    assert "authentication_error" in told["anthropic"][1]
    assert "sk-anoth*************6789" in told["openai"][1]
    assert "invalid_api_key" in told["openai"][1]
    assert "API_KEY_INVALID" in told["google"][1]


async def test_the_compatible_server_takes_any_key(vendors):
    async with talking(vendors, "openai-compatible", key="none") as client:
        client.tell("add is wrong")
        assert (await client.ask()).calls


async def test_there_is_no_model_named_missing(vendors, vendor):
    async with talking(vendors, vendor, model="missing") as client:
        client.tell("add is wrong")
        with pytest.raises(DENIED, match="missing") as denied:
            await client.ask()
    assert _status(denied.value) == 404


@pytest.mark.parametrize("vendor", ["anthropic", "openai", "google"])
async def test_a_model_without_tools_only_talks(vendors, vendor):
    async with talking(vendors, vendor, model="toolless") as client:
        client.tools = READY
        client.tell("Call the tool `ready` with the word yes.")
        said = await client.ask()
    assert said.text
    assert not said.calls


async def test_a_compatible_server_says_that_its_model_has_no_tools(vendors):
    async with talking(vendors, "openai-compatible", model="toolless") as client:
        client.tell("add is wrong")
        with pytest.raises(DENIED, match="does not support tools") as denied:
            await client.ask()
    assert _status(denied.value) == 400


async def test_what_was_sent_before_is_counted_as_repeated(vendors, vendor):
    async with talking(vendors, vendor) as client:
        client.tell("add is wrong")
        said = [await _step(client) for _ in range(3)]
    assert said[0].cached == 0
    assert 0 < said[0].input < said[1].input < said[2].input
    assert [one.cached for one in said[1:]] == [one.input for one in said[:2]]
    share = sum(one.cached for one in said[1:]) / sum(one.input for one in said[1:])
    assert vendors.repeated(vendor) == pytest.approx(share)


async def test_a_changed_beginning_is_not_repeated(vendors, vendor):
    async with talking(vendors, vendor) as client:
        client.tell("add is wrong")
        await _step(client)
        client.tools = dict(reversed(client.tools.items()))
        assert (await client.ask()).cached == 0
    assert vendors.repeated(vendor) == 0


async def test_anthropic_repeats_only_what_was_marked(vendors):
    async with talking(vendors, "anthropic") as client:
        client.marked = False
        client.tell("add is wrong")
        await _step(client)
        client.marked = True
        assert (await _step(client)).cached == 0
        assert (await client.ask()).cached > 0


async def test_anthropic_takes_no_more_than_four_marks(vendors):
    async with talking(vendors, "anthropic") as client:
        block = {"type": "text", "text": "add is wrong", "cache_control": {"type": "ephemeral"}}
        client.history.append({"role": "user", "content": [block] * 4})
        with pytest.raises(DENIED, match="maximum of 4 blocks"):
            await client.ask()


def _status(error) -> int:
    return getattr(error, "status_code", None) or error.code
