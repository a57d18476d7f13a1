"""REST for check runs, which only apps may write."""

from typing import Any

from starlette.responses import Response

from osiris.devhub import check_runs
from osiris.devhub.errors import ApiError, invalid_field_error, not_found_error, validation_error
from osiris.devhub.models import App, CheckRun
from osiris.devhub.payloads import apps
from osiris.devhub.routes.code import resolve_ref
from osiris.devhub.routes.request import ApiRequest, RouteTable, build_response

table = RouteTable()
REPO = "/repos/{owner}/{repo}"
CONCLUSIONS = (
    "action_required",
    "cancelled",
    "failure",
    "neutral",
    "success",
    "skipped",
    "timed_out",
)
STATUSES = ("queued", "in_progress", "completed")
LONGEST = 65_535


def _require_app(call: ApiRequest) -> App:
    if call.who.grant is None or call.who.app is None:
        raise ApiError(403, "You must authenticate via a GitHub App.")
    call.require_permission("checks:write", role="admin")
    return call.who.app


def _read_facts(call: ApiRequest) -> dict[str, Any]:
    """Return the fields of the body, under the names of the attributes of `CheckRun`."""
    facts: dict[str, Any] = {}
    for name, allowed in (("status", STATUSES), ("conclusion", CONCLUSIONS)):
        if (value := call.get_optional_text(name)) is not None:
            if value not in allowed:
                raise invalid_field_error("CheckRun", name)
            facts[name] = value
    for name in ("details_url", "external_id"):
        if (value := call.get_optional_text(name)) is not None:
            facts[name] = value
    if (output := call.get("output", dict)) is not None:
        facts["output"] = _check_output(output)
    if (actions := call.get("actions", list)) is not None:
        facts["actions"] = _check_actions(actions)
    if facts.get("status") == "completed" and "conclusion" not in facts:
        raise validation_error("A completed check run needs a conclusion")
    return facts


def _check_output(given: dict[str, Any]) -> dict[str, str | None]:
    for name in ("summary", "text"):
        if len(given.get(name) or "") > LONGEST:
            raise invalid_field_error(
                "CheckRun", name, "custom", f"{name} exceeds a maximum bytesize of {LONGEST}"
            )
    if not given.get("summary"):
        raise invalid_field_error("CheckRun", "summary", "missing_field")
    return {name: given.get(name) for name in ("title", "summary", "text")}


def _check_actions(given: list[Any]) -> list[dict[str, str]]:
    limits = (("label", 20), ("description", 40), ("identifier", 20))
    if len(given) > 3:
        raise validation_error("Only 3 actions are allowed")
    for action in given:
        if any(len(str(action.get(name, ""))) > limit for name, limit in limits):
            raise validation_error("An action's label, description or identifier is too long")
    return given


@table.route("POST", REPO + "/check-runs")
async def create_check_run(call: ApiRequest) -> Response:
    app = _require_app(call)
    name = call.get_required_text("name")
    sha = call.get_required_text("head_sha")
    if call.repo.git.resolve_commit(sha) is None:
        raise validation_error(f"No commit found for SHA: {sha}")
    run = check_runs.start_check(call.world, call.repo, app, sha, name, **_read_facts(call))
    return build_response(apps.build_check_run(call.world, run), 201)


def _find_run(call: ApiRequest) -> CheckRun:
    found = next((run for run in call.repo.checks if run.id == call.params["id"]), None)
    if found is None:
        raise not_found_error()
    return found


@table.route("GET", REPO + "/check-runs/{id:int}")
async def get_check_run(call: ApiRequest) -> Response:
    call.require_permission("checks:read")
    return build_response(apps.build_check_run(call.world, _find_run(call)))


@table.route("PATCH", REPO + "/check-runs/{id:int}")
async def update_check_run(call: ApiRequest) -> Response:
    app = _require_app(call)
    run = _find_run(call)
    if run.app is not app:
        raise ApiError(
            403,
            "Invalid app_id `"
            + str(app.id)
            + "` - check run can only be modified by the GitHub App that created it.",
        )
    name = call.get_optional_text("name")
    check_runs.update_check(
        call.world, run, **_read_facts(call), **({"name": name} if name else {})
    )
    return build_response(apps.build_check_run(call.world, run))


@table.route("GET", REPO + "/commits/{ref:path}/check-runs")
async def list_check_runs(call: ApiRequest) -> Response:
    call.require_permission("checks:read")
    sha = resolve_ref(call.repo, call.params["ref"])
    name = call.get_query("check_name")
    app_id = call.get_query("app_id")
    runs = [run for run in call.repo.checks if run.sha == sha]
    if call.get_query("filter", "latest") == "latest":
        runs = list({(run.app.id, run.name): run for run in runs}.values())
    wanted = [
        run
        for run in runs
        if (not name or run.name == name) and (not app_id or str(run.app.id) == app_id)
    ]
    wanted = [run for run in wanted if call.get_query("status") in ("", run.status)]
    return call.build_page(wanted, lambda run: apps.build_check_run(call.world, run), "check_runs")
