"""REST for repositories and their content: files, refs, commits, permissions."""

import base64

from starlette.responses import Response

from osiris.devhub import administration, pulls
from osiris.devhub.auth import ADMINISTRATION
from osiris.devhub.errors import ApiError, not_found_error, validation_error
from osiris.devhub.models import Repo
from osiris.devhub.payloads import code, issues
from osiris.devhub.payloads.issues import Json, build_repo_page_url, build_repo_url
from osiris.devhub.routes.request import ApiRequest, RouteTable, build_response

table = RouteTable()
REPO = "/repos/{owner}/{repo}"
OLD_NAMES = {"maintain": "write", "triage": "read"}


@table.route("GET", REPO)
async def get_repo(call: ApiRequest) -> Response:
    call.require_permission("metadata:read")
    return build_response(issues.build_full_repository(call.world, call.repo, call.who.user))


@table.route("PATCH", REPO)
async def update_repo(call: ApiRequest) -> Response:
    """Rename or archive a repository; the other settings of GitHub are not modelled."""
    call.require_permission(ADMINISTRATION, role="admin")
    if (archived := call.get("archived", bool)) is not None:
        administration.archive_repo(call.world, call.repo, call.account, archived)
    if name := call.get_optional_text("name"):
        administration.rename_repo(call.world, call.repo, call.account, name)
    return build_response(issues.build_full_repository(call.world, call.repo, call.who.user))


@table.route("DELETE", REPO)
async def delete_repo(call: ApiRequest) -> Response:
    call.require_permission(ADMINISTRATION, role="admin")
    administration.delete_repo(call.world, call.repo, call.account)
    return Response(status_code=204)


@table.route("POST", REPO + "/transfer")
async def transfer_repo(call: ApiRequest) -> Response:
    call.require_permission(ADMINISTRATION, role="admin")
    repo = call.hub.transfer_repo(
        call.repo.full_name, call.get_required_text("new_owner"), call.account
    )
    return build_response(issues.build_repository(call.world, repo), 202)


@table.route("DELETE", REPO + "/git/refs/{ref:path}")
async def delete_ref(call: ApiRequest) -> Response:
    """Delete a branch, as the button of a finished pull request does."""
    call.require_permission("contents:write", role="write")
    name = f"refs/{call.params['ref']}"
    if not name.startswith("refs/heads/") or call.repo.git.resolve_commit(name) is None:
        raise validation_error("Reference does not exist")
    call.repo.git.run("update-ref", "-d", name)
    pulls.sync_refs(call.world, call.repo, call.account)
    return Response(status_code=204)


@table.route("GET", REPO + "/collaborators/{login}/permission")
async def get_permission(call: ApiRequest) -> Response:
    call.require_permission("metadata:read", role="write")
    user = call.world.get_user(call.params["login"])
    role = call.repo.get_role(user)
    old = OLD_NAMES.get(role, role)
    body = {
        "permission": old,
        "role_name": role,
        "user": issues.build_user(call.world, user) | {"role_name": role},
    }
    return build_response(body)


@table.route("GET", REPO + "/labels")
async def list_labels(call: ApiRequest) -> Response:
    call.require_permission("issues:read", "pull_requests:read")
    return call.build_page(
        call.repo.labels.values(), lambda label: issues.build_label(call.world, call.repo, label)
    )


MOST_CONTENT = 1_000_000  # bytes


def resolve_ref(repo: Repo, name: str) -> str:
    """Return the commit of a branch, tag or object name."""
    for form in (f"refs/heads/{name}", name, f"refs/tags/{name}"):
        if name and (sha := repo.git.resolve_commit(form)) is not None:
            return sha
    raise ApiError(404, f"No commit found for the ref {name}")


@table.route("GET", REPO + "/contents")
@table.route("GET", REPO + "/contents/{path:path}")
async def get_contents(call: ApiRequest) -> Response:
    call.require_permission("contents:read")
    path = str(call.params.get("path", "")).strip("/")
    sha = resolve_ref(call.repo, call.get_query("ref") or call.repo.default_branch)
    data = call.repo.git.read_file(sha, path) if path else None
    if data is None:
        as_object = "github.object" in call.request.headers.get("accept", "")
        return _build_folder(call, sha, path, as_object=as_object)
    return build_response(_build_file(call, sha, path, data))


def _build_entry(call: ApiRequest, sha: str, path: str, kind: str, blob: str, size: int) -> Json:
    base = build_repo_url(call.world, call.repo)
    page = build_repo_page_url(call.world, call.repo)
    url = f"{base}/contents/{path}?ref={call.get_query('ref') or call.repo.default_branch}"
    git_url = f"{base}/git/{'trees' if kind == 'dir' else 'blobs'}/{blob}"
    html = f"{page}/{'tree' if kind == 'dir' else 'blob'}/{sha}/{path}"
    return {
        "type": kind,
        "name": path.rsplit("/", 1)[-1],
        "path": path,
        "sha": blob,
        "size": size,
        "url": url,
        "git_url": git_url,
        "html_url": html,
        "download_url": f"{page}/raw/{sha}/{path}" if kind == "file" else None,
        "_links": {"self": url, "git": git_url, "html": html},
    }


def _build_file(call: ApiRequest, sha: str, path: str, data: bytes) -> Json:
    """Return a file with its content; above 1 MB without it, as GitHub does in the object form."""
    entry = _build_entry(call, sha, path, "file", call.repo.git.read_blob_id(sha, path), len(data))
    if len(data) > MOST_CONTENT:
        return entry | {"encoding": "none", "content": ""}
    return entry | {"encoding": "base64", "content": base64.encodebytes(data).decode()}


def _build_folder(call: ApiRequest, sha: str, path: str, *, as_object: bool) -> Response:
    kinds = {"tree": "dir", "blob": "file", "commit": "submodule"}
    found = call.repo.git.list_folder(sha, path)
    if not found:
        raise not_found_error()
    prefix = f"{path}/" if path else ""
    entries = [
        _build_entry(call, sha, prefix + name, kinds[kind], blob, size)
        for kind, blob, name, size in found
    ]
    if as_object:
        tree = _build_entry(call, sha, path, "dir", call.repo.git.read_blob_id(sha, path), 0) | {
            "entries": entries
        }
        return build_response(tree, headers={"content-type": "application/vnd.github.object"})
    return build_response(entries)


@table.route("GET", REPO + "/git/ref/{ref:path}")
async def get_ref(call: ApiRequest) -> Response:
    call.require_permission("contents:read")
    name = f"refs/{call.params['ref']}"
    sha = call.repo.git.resolve_commit(name)
    if sha is None or not name.startswith(("refs/heads/", "refs/tags/", "refs/pull/")):
        raise not_found_error()
    base = build_repo_url(call.world, call.repo)
    target = {"type": "commit", "sha": sha, "url": f"{base}/git/commits/{sha}"}
    node = "REF_" + base64.urlsafe_b64encode(f"{call.repo.id}:{name}".encode()).decode().rstrip("=")
    return build_response(
        {"ref": name, "node_id": node, "url": f"{base}/git/{name}", "object": target}
    )


@table.route("GET", REPO + "/branches")
async def list_branches(call: ApiRequest) -> Response:
    call.require_permission("contents:read")
    return call.build_page(call.repo.heads.items(), lambda item: _build_short_branch(call, *item))


def _build_short_branch(call: ApiRequest, name: str, sha: str) -> Json:
    url = f"{build_repo_url(call.world, call.repo)}/commits/{sha}"
    return {"name": name, "commit": {"sha": sha, "url": url}, "protected": False}


@table.route("GET", REPO + "/branches/{name:path}")
async def get_branch(call: ApiRequest) -> Response:
    call.require_permission("contents:read")
    name = call.params["name"]
    sha = call.repo.git.resolve_commit(f"refs/heads/{name}")
    if sha is None:
        raise ApiError(404, "Branch not found")
    url = f"{build_repo_url(call.world, call.repo)}/branches/{name}"
    contexts: list[str] = []
    checks = {"enforcement_level": "off", "contexts": contexts, "checks": contexts}
    body = {
        "name": name,
        "commit": code.build_commit(call.world, call.repo, call.repo.git.read_commit(sha)),
        "_links": {
            "self": url,
            "html": f"{build_repo_page_url(call.world, call.repo)}/tree/{name}",
        },
        "protected": False,
        "protection": {"enabled": False, "required_status_checks": checks},
        "protection_url": f"{url}/protection",
    }
    return build_response(body)


@table.route("GET", REPO + "/commits")
async def list_commits(call: ApiRequest) -> Response:
    call.require_permission("contents:read")
    sha = resolve_ref(call.repo, call.get_query("sha") or call.repo.default_branch)
    return call.build_page(
        call.repo.git.list_history(sha), lambda one: code.build_commit(call.world, call.repo, one)
    )


@table.route("GET", REPO + "/commits/{ref}")
async def get_commit(call: ApiRequest) -> Response:
    call.require_permission("contents:read")
    git = call.repo.git
    found = git.read_commit(resolve_ref(call.repo, call.params["ref"]))
    files = git.list_changes(found.parents[0], found.sha) if found.parents else []
    added = sum(one.additions for one in files)
    removed = sum(one.deletions for one in files)
    body = code.build_commit(call.world, call.repo, found)
    body["stats"] = {"total": added + removed, "additions": added, "deletions": removed}
    body["files"] = [
        code.build_changed_file(call.world, call.repo, found.sha, one) for one in files
    ]
    return build_response(body)


@table.route("GET", REPO + "/compare/{ends:path}")
async def compare_commits(call: ApiRequest) -> Response:
    call.require_permission("contents:read")
    base, dots, head = call.params["ends"].partition("...")
    if not dots:
        raise not_found_error()
    base, head = (resolve_ref(call.repo, end.rpartition(":")[2]) for end in (base, head))
    return build_response(code.build_comparison(call.world, call.repo, base, head))
