"""The parts of `make fidelity` that need no download: violations, allowances and recordings."""

import json
from pathlib import Path

import pytest

from fidelity import recorder
from fidelity.finding import Allowance, CheckOutcome, build_pointer, load_allowances
from fidelity.invented import UndocumentedFields
from fidelity.recordings import load_recordings
from osiris.devhub.server import Hub
from tests.flow.conftest import PEOPLE, REPO

GET = "GET /repos/{owner}/{repo}"


def create_outcome(*violations: tuple[str, str, str]) -> CheckOutcome:
    outcome = CheckOutcome(check="answers", promise="")
    for where, pointer, reason in violations:
        outcome.add_violation(where, reason, pointer)
    return outcome


def create_allowance(**fields: object) -> Allowance:
    return Allowance(
        **{"name": "n", "checks": ["answers"], "where": "GET .*", "why": "so it is", **fields}
    )


def test_what_is_allowed_by_name_is_no_violation_and_everything_else_is_one():
    outcome = create_outcome(
        (GET, "/a", "null"), (GET, "/a", "null"), (GET, "/b", "null"), ("PUT /x", "/a", "null")
    )
    outcome.apply_allowances([create_allowance(pointer="/a", reason="null")])
    assert (outcome.wrong, outcome.allowed) == (2, {"n": 2})
    assert sorted(map(str, outcome.violations)) == [f"{GET} /b — null", "PUT /x /a — null"]


def test_a_pattern_must_fit_the_whole_text():
    outcome = create_outcome((GET, "/a/b", "null is not a string"))
    outcome.apply_allowances(
        [create_allowance(pointer="/a"), create_allowance(name="m", reason="null")]
    )
    assert f"{GET} /a/b — null is not a string" in map(str, outcome.violations)


def test_an_allowance_that_nothing_needs_is_a_violation_in_its_own_check_alone():
    outcome = create_outcome()
    outcome.apply_allowances([create_allowance(), create_allowance(name="m", checks=["webhooks"])])
    assert [str(violation) for violation in outcome.violations] == [
        "allowed.yml: n — nothing needs this allowance any more; take it out"
    ]


def test_the_allow_list_gives_a_reason_for_each():
    assert all(len(allowance.why) > 40 and allowance.checks for allowance in load_allowances())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {name: a, checks: [b], where: c, why: ' '}", "no reason given: a"),
        ("- {name: a, checks: [b], where: c, why: d}\n" * 2, "used twice: a"),
    ],
)
def test_a_bad_allow_list_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "allowed.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_allowances(path)


def test_a_pointer_names_no_place_in_a_list():
    assert build_pointer(["labels", 3, "a/b~c"]) == "/labels/*/a~1b~0c"


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
    finder = UndocumentedFields(lambda schema: SCHEMAS.get(schema.get("$ref", ""), schema))
    issue = {
        "title": "t",
        "state": "open",
        "mood": "fine",
        "labels": [{"name": "n", "size": 1, "more": {"b": 2}}],
    }
    pointers = [pointer for pointer, _ in finder.find([{"$ref": "#/issue"}], issue)]
    assert pointers == ["/mood", "/labels/*/size"]


async def test_the_recorder_writes_down_what_was_said_without_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    from osiris.playground.environment import start_environment

    monkeypatch.setattr(recorder, "RECORDINGS_FOLDER", folder / "recorded")
    monkeypatch.setattr(Hub, "observers", [recorder.Recorder()])
    async with (
        start_environment(folder, repo=REPO, people=PEOPLE, model="scripted:none") as playground,
        playground.get_person("alice") as alice,
    ):
        await alice.file_issue("add subtracts")
        await playground.hub.wait_until_sent()
        token = playground.hub.world.get_user("alice").token
    recordings = load_recordings(folder / "recorded")
    [request] = [record for record in recordings.requests if record.method == "POST"]
    assert (request.by, request.path, request.status) == ("people", f"/repos/{REPO}/issues", 201)
    assert (
        json.loads(request.answer)["title"] == json.loads(request.body)["title"] == "add subtracts"
    )
    assert {record.event for record in recordings.deliveries} == {"installation", "issues"}
    assert token not in "".join(path.read_text() for path in (folder / "recorded").iterdir())
