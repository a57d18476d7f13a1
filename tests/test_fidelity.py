"""The parts of `make fidelity` that need nothing fetched: what counts as wrong, what is allowed,
what is recorded."""

import json
from pathlib import Path

import pytest

from fidelity import recorder
from fidelity.finding import Allowance, CheckOutcome, load_allowances, pointer_to
from fidelity.invented import Invented
from fidelity.recordings import load
from osiris.devhub.server import Hub
from tests.flow.conftest import PEOPLE, REPO

GET = "GET /repos/{owner}/{repo}"


def outcome(*violations: tuple[str, str, str]) -> CheckOutcome:
    found = CheckOutcome(check="answers", promise="")
    for where, pointer, reason in violations:
        found.blame(where, reason, pointer)
    return found


def allowance(**fields: object) -> Allowance:
    return Allowance(
        **{"name": "n", "checks": ["answers"], "where": "GET .*", "why": "so it is", **fields}
    )


def test_what_is_allowed_by_name_is_no_violation_and_everything_else_is_one():
    found = outcome(
        (GET, "/a", "null"), (GET, "/a", "null"), (GET, "/b", "null"), ("PUT /x", "/a", "null")
    )
    found.forgive([allowance(pointer="/a", reason="null")])
    assert (found.wrong, found.allowed) == (2, {"n": 2})
    assert sorted(map(str, found.violations)) == [f"{GET} /b — null", "PUT /x /a — null"]


def test_a_pattern_must_fit_the_whole_text():
    found = outcome((GET, "/a/b", "null is not a string"))
    found.forgive([allowance(pointer="/a"), allowance(name="m", reason="null")])
    assert f"{GET} /a/b — null is not a string" in map(str, found.violations)


def test_an_allowance_that_nothing_needs_is_a_violation_in_its_own_check_alone():
    found = outcome()
    found.forgive([allowance(), allowance(name="m", checks=["webhooks"])])
    assert [str(one) for one in found.violations] == [
        "allowed.yml: n — nothing needs this allowance any more; take it out"
    ]


def test_the_allow_list_gives_a_reason_for_each():
    assert all(len(one.why) > 40 and one.checks for one in load_allowances())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- {name: a, checks: [b], where: c, why: ' '}", "no reason given: a"),
        ("- {name: a, checks: [b], where: c, why: d}\n" * 2, "used twice: a"),
    ],
)
def test_a_bad_allow_list_is_refused(tmp_path: Path, text: str, told: str):
    path = tmp_path / "allowed.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        load_allowances(path)


def test_a_pointer_names_no_place_in_a_list():
    assert pointer_to(["labels", 3, "a/b~c"]) == "/labels/*/a~1b~0c"


SCHEMAS = {
    "#/issue": {
        "allOf": [
            {
                "properties": {
                    "title": {},
                    "labels": {"items": {"oneOf": [{}, {"$ref": "#/label"}]}},
                }
            },
            {"properties": {"state": {}}},
        ]
    },
    "#/label": {
        "properties": {"name": {}, "more": {"properties": {"a": {}}, "additionalProperties": {}}}
    },
}


def test_a_field_that_no_schema_names_is_invented():
    known = Invented(lambda schema: SCHEMAS.get(schema.get("$ref", ""), schema))
    issue = {
        "title": "t",
        "state": "open",
        "mood": "fine",
        "labels": [{"name": "n", "size": 1, "more": {"b": 2}}],
    }
    found = [pointer for pointer, _ in known.fields([{"$ref": "#/issue"}], issue)]
    assert found == ["/mood", "/labels/*/size"]


async def test_the_recorder_writes_down_what_was_said_without_tokens(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    from osiris.playground.environment import start_environment

    monkeypatch.setattr(recorder, "FOLDER", place / "recorded")
    monkeypatch.setattr(Hub, "observers", [recorder.Recorder()])
    async with (
        start_environment(place, repo=REPO, people=PEOPLE, model="scripted:none") as playground,
        playground.get_person("alice") as alice,
    ):
        await alice.file_issue("add subtracts")
        await playground.hub.wait_until_sent()
        token = playground.hub.world.get_user("alice").token
    recordings = load(place / "recorded")
    [asked] = [one for one in recordings.asked if one.method == "POST"]
    assert (asked.by, asked.path, asked.status) == ("people", f"/repos/{REPO}/issues", 201)
    assert json.loads(asked.answer)["title"] == json.loads(asked.body)["title"] == "add subtracts"
    assert {one.event for one in recordings.sent} == {"installation", "issues"}
    assert token not in "".join(path.read_text() for path in (place / "recorded").iterdir())
