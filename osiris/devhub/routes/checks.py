"""REST for check runs: only apps write them."""

from typing import Any

from starlette.responses import Response

from osiris.devhub.errors import Denied, invalid, not_found, unfit
from osiris.devhub.models import App, CheckRun
from osiris.devhub.payloads import apps
from osiris.devhub.routes.code import commit_named
from osiris.devhub.routes.request import Call, Table, answer

table = Table()
REPO = "/repos/{owner}/{repo}"
CONCLUSIONS = ("action_required", "cancelled", "failure", "neutral", "success", "skipped", "timed_out")
STATUSES = ("queued", "in_progress", "completed")
LONGEST = 65_535


def _app(call: Call) -> App:
    if call.who.grant is None or call.who.app is None:
        raise Denied(403, "You must authenticate via a GitHub App.")
    call.need("checks:write", role="admin")
    return call.who.app


def _facts(call: Call) -> dict[str, Any]:
    """What the body says about a run, under the names a run has."""
    facts: dict[str, Any] = {}
    for name, allowed in (("status", STATUSES), ("conclusion", CONCLUSIONS)):
        if (value := call.given(name)) is not None:
            if value not in allowed:
                raise invalid("CheckRun", name)
            facts[name] = value
    for name in ("details_url", "external_id"):
        if (value := call.given(name)) is not None:
            facts[name] = value
    if (output := call.get("output", dict)) is not None:
        facts["output"] = _output(output)
    if (actions := call.get("actions", list)) is not None:
        facts["actions"] = _actions(actions)
    if facts.get("status") == "completed" and "conclusion" not in facts:
        raise unfit("A completed check run needs a conclusion")
    return facts


def _output(given: dict[str, Any]) -> dict[str, str | None]:
    for name in ("summary", "text"):
        if len(given.get(name) or "") > LONGEST:
            raise invalid("CheckRun", name, "custom", f"{name} exceeds a maximum bytesize of {LONGEST}")
    if not given.get("summary"):
        raise invalid("CheckRun", "summary", "missing_field")
    return {name: given.get(name) for name in ("title", "summary", "text")}


def _actions(given: list[Any]) -> list[dict[str, str]]:
    limits = (("label", 20), ("description", 40), ("identifier", 20))
    if len(given) > 3:
        raise unfit("Only 3 actions are allowed")
    for action in given:
        if any(len(str(action.get(name, ""))) > limit for name, limit in limits):
            raise unfit("An action's label, description or identifier is too long")
    return given


@table.on("POST", REPO + "/check-runs")
async def started(call: Call) -> Response:
    app = _app(call)
    name, sha = call.required("name"), call.required("head_sha")
    if call.repo.git.resolve(sha) is None:
        raise unfit(f"No commit found for SHA: {sha}")
    run = call.world.start_check(call.repo, app, sha, name, **_facts(call))
    return answer(apps.check_run(call.world, run), 201)


def _run(call: Call) -> CheckRun:
    found = next((run for run in call.repo.checks if run.id == call.params["id"]), None)
    if found is None:
        raise not_found()
    return found


@table.on("GET", REPO + "/check-runs/{id:int}")
async def shown(call: Call) -> Response:
    call.need("checks:read")
    return answer(apps.check_run(call.world, _run(call)))


@table.on("PATCH", REPO + "/check-runs/{id:int}")
async def updated(call: Call) -> Response:
    app, run = _app(call), _run(call)
    if run.app is not app:
        raise Denied(
            403,
            "Invalid app_id `" + str(app.id) + "` - check run can only be modified by the GitHub App that created it.",
        )
    name = call.given("name")
    call.world.update_check(run, **_facts(call), **({"name": name} if name else {}))
    return answer(apps.check_run(call.world, run))


@table.on("GET", REPO + "/commits/{ref:path}/check-runs")
async def of_commit(call: Call) -> Response:
    call.need("checks:read")
    sha = commit_named(call.repo, call.params["ref"])
    name, app_id = call.query("check_name"), call.query("app_id")
    runs = [run for run in call.repo.checks if run.sha == sha]
    if call.query("filter", "latest") == "latest":
        runs = list({(run.app.id, run.name): run for run in runs}.values())
    wanted = [run for run in runs if (not name or run.name == name) and (not app_id or str(run.app.id) == app_id)]
    wanted = [run for run in wanted if call.query("status") in ("", run.status)]
    return call.paged(wanted, lambda run: apps.check_run(call.world, run), "check_runs")
