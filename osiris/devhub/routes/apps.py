"""REST for an app itself (by JWT), its tokens and deliveries, and for the calling account."""

from starlette.responses import Response

from osiris.devhub import installations
from osiris.devhub.errors import ApiError, not_found_error
from osiris.devhub.models import Delivery, Installation
from osiris.devhub.payloads import apps, issues
from osiris.devhub.payloads.issues import Json
from osiris.devhub.routes.request import ApiRequest, RouteTable, build_response

table = RouteTable()


def _find_installation(call: ApiRequest) -> Installation:
    found = call.world.installations.get(call.params["id"])
    if found is None or found.app is not call.app:
        raise not_found_error()
    return found


@table.route("GET", "/app")
async def get_app(call: ApiRequest) -> Response:
    count = sum(installation.app is call.app for installation in call.world.installations.values())
    return build_response(issues.build_app(call.world, call.app) | {"installations_count": count})


@table.route("GET", "/app/installations")
async def list_installations(call: ApiRequest) -> Response:
    mine = [one for one in call.world.installations.values() if one.app is call.app]
    return call.build_page(mine, lambda one: apps.build_installation(call.world, one))


@table.route("GET", "/app/installations/{id:int}")
async def get_installation(call: ApiRequest) -> Response:
    return build_response(apps.build_installation(call.world, _find_installation(call)))


@table.route("PUT", "/app/installations/{id:int}/suspended")
async def suspend_installation(call: ApiRequest) -> Response:
    call.hub.suspend_installation(_find_installation(call))
    return Response(status_code=204)


@table.route("DELETE", "/app/installations/{id:int}/suspended")
async def unsuspend_installation(call: ApiRequest) -> Response:
    call.hub.unsuspend_installation(_find_installation(call))
    return Response(status_code=204)


@table.route("DELETE", "/app/installations/{id:int}")
async def delete_installation(call: ApiRequest) -> Response:
    call.hub.remove_installation(_find_installation(call))
    return Response(status_code=204)


@table.route("GET", "/repos/{owner}/{repo}/installation")
async def get_repo_installation(call: ApiRequest) -> Response:
    repo = call.world.get_repo(f"{call.params['owner']}/{call.params['repo']}")
    found = installations.find_installation(call.world, call.app, repo)
    if found is None:
        raise not_found_error()
    return build_response(apps.build_installation(call.world, found))


@table.route("POST", "/app/installations/{id:int}/access_tokens")
async def create_access_token(call: ApiRequest) -> Response:
    grant = call.hub.token_store.create_grant(
        _find_installation(call),
        permissions=call.get("permissions", dict),
        names=call.get("repositories", list, []),
        ids=call.get("repository_ids", list, []),
    )
    body: Json = {
        "token": grant.token,
        "expires_at": issues.format_time(grant.expires),
        "permissions": dict(grant.permissions),
        "repository_selection": "selected",
    }
    if grant.narrowed:
        body["repositories"] = [issues.build_repository(call.world, repo) for repo in grant.repos]
    return build_response(body, 201)


@table.route("GET", "/installation/repositories")
async def list_installation_repositories(call: ApiRequest) -> Response:
    if call.who.grant is None:
        raise ApiError(
            403,
            "You must authenticate with an installation access token in order to list"
            " repositories.",
        )
    shape = lambda repo: issues.build_repository(call.world, repo)  # noqa: E731
    return call.build_page(
        call.who.grant.repos, shape, "repositories", repository_selection="selected"
    )


# ── deliveries ──


@table.route("GET", "/app/hook/config")
async def get_webhook_config(call: ApiRequest) -> Response:
    return build_response(apps.build_webhook_config(call.app))


@table.route("GET", "/app/hook/deliveries")
async def list_deliveries(call: ApiRequest) -> Response:
    """List deliveries, newest first; `cursor` is the id of the last one seen."""
    size = min(int(call.get_query("per_page") or 30), 100)
    cursor = call.get_query("cursor")
    newest = [one for one in reversed(call.app.deliveries) if one.delivered is not None]
    rest = [one for one in newest if not cursor.isdigit() or one.id < int(cursor)]
    shown = rest[:size]
    more = (
        f"<{call.hub.api_url}/app/hook/deliveries?per_page={size}&cursor={shown[-1].id}>;"
        ' rel="next"'
        if shown
        else ""
    )
    headers = {"Link": more} if len(rest) > size else None
    return build_response([apps.build_delivery(one) for one in shown], headers=headers)


def _find_delivery(call: ApiRequest) -> Delivery:
    found = next((one for one in call.app.deliveries if one.id == call.params["id"]), None)
    if found is None:
        raise not_found_error()
    return found


@table.route("GET", "/app/hook/deliveries/{id:int}")
async def get_delivery(call: ApiRequest) -> Response:
    return build_response(apps.build_full_delivery(_find_delivery(call)))


@table.route("POST", "/app/hook/deliveries/{id:int}/attempts")
async def redeliver_webhook(call: ApiRequest) -> Response:
    call.hub.hooks.redeliver(_find_delivery(call))
    return build_response({}, 202)


# ── the caller ──


@table.route("GET", "/user")
async def get_authenticated_user(call: ApiRequest) -> Response:
    if call.who.app is not None:
        raise ApiError(403, "Resource not accessible by integration")
    return build_response(issues.build_public_user(call.world, call.account))


@table.route("GET", "/users/{login}")
async def get_user(call: ApiRequest) -> Response:
    return build_response(
        issues.build_public_user(call.world, call.world.get_user(call.params["login"]))
    )


@table.route("GET", "/rate_limit")
async def get_rate_limit(call: ApiRequest) -> Response:
    """Return the rate limits; this request is not counted."""
    resources = {
        name: call.hub.rates.describe_limit(call.who, name)
        for name in ("core", "search", "graphql")
    }
    return build_response({"resources": resources, "rate": resources["core"]})


@table.route("GET", "/versions")
async def list_versions(call: ApiRequest) -> Response:
    return build_response(["2022-11-28", "2026-03-10"])
