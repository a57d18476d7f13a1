"""REST for repositories and what is in them: files, refs, commits, who may do what."""

import base64

from starlette.responses import Response

from osiris.devhub import administration, pulls
from osiris.devhub.auth import ADMINISTRATION
from osiris.devhub.errors import Denied, not_found, unfit
from osiris.devhub.models import Repo
from osiris.devhub.payloads import code, issues
from osiris.devhub.payloads.issues import Json, repo_api, repo_page
from osiris.devhub.routes.request import Call, Table, answer

table = Table()
REPO = "/repos/{owner}/{repo}"
OLD_NAMES = {"maintain": "write", "triage": "read"}


@table.on("GET", REPO)
async def repo(call: Call) -> Response:
    call.need("metadata:read")
    return answer(issues.full_repository(call.world, call.repo, call.who.user))


@table.on("PATCH", REPO)
async def changed(call: Call) -> Response:
    """Another name, or archived: what else GitHub lets an owner change is not modelled."""
    call.need(ADMINISTRATION, role="admin")
    if (archived := call.get("archived", bool)) is not None:
        administration.archive(call.world, call.repo, call.by, archived)
    if name := call.given("name"):
        administration.rename(call.world, call.repo, call.by, name)
    return answer(issues.full_repository(call.world, call.repo, call.who.user))


@table.on("DELETE", REPO)
async def deleted(call: Call) -> Response:
    call.need(ADMINISTRATION, role="admin")
    administration.delete(call.world, call.repo, call.by)
    return Response(status_code=204)


@table.on("POST", REPO + "/transfer")
async def transferred(call: Call) -> Response:
    call.need(ADMINISTRATION, role="admin")
    repo = call.hub.transfer(call.repo.full_name, call.required("new_owner"), call.by)
    return answer(issues.repository(call.world, repo), 202)


@table.on("DELETE", REPO + "/git/refs/{ref:path}")
async def ref_deleted(call: Call) -> Response:
    """A branch, as by the button of a pull request that is over."""
    call.need("contents:write", role="write")
    name = f"refs/{call.params['ref']}"
    if not name.startswith("refs/heads/") or call.repo.git.resolve(name) is None:
        raise unfit("Reference does not exist")
    call.repo.git.run("update-ref", "-d", name)
    pulls.notice_refs(call.world, call.repo, call.by)
    return Response(status_code=204)


@table.on("GET", REPO + "/collaborators/{login}/permission")
async def permission(call: Call) -> Response:
    call.need("metadata:read", role="write")
    user = call.world.user(call.params["login"])
    role = call.repo.role_of(user)
    old = OLD_NAMES.get(role, role)
    body = {"permission": old, "role_name": role, "user": issues.user(call.world, user) | {"role_name": role}}
    return answer(body)


@table.on("GET", REPO + "/labels")
async def labels(call: Call) -> Response:
    call.need("issues:read", "pull_requests:read")
    return call.paged(call.repo.labels.values(), lambda label: issues.label(call.world, call.repo, label))


MOST_CONTENT = 1_000_000  # bytes


def commit_named(repo: Repo, name: str) -> str:
    """A branch, tag or object name, whichever it is."""
    for form in (f"refs/heads/{name}", name, f"refs/tags/{name}"):
        if name and (sha := repo.git.resolve(form)) is not None:
            return sha
    raise Denied(404, f"No commit found for the ref {name}")


@table.on("GET", REPO + "/contents")
@table.on("GET", REPO + "/contents/{path:path}")
async def contents(call: Call) -> Response:
    call.need("contents:read")
    path = str(call.params.get("path", "")).strip("/")
    sha = commit_named(call.repo, call.query("ref") or call.repo.default_branch)
    data = call.repo.git.read(sha, path) if path else None
    if data is None:
        as_object = "github.object" in call.request.headers.get("accept", "")
        return _folder(call, sha, path, as_object=as_object)
    return answer(_file(call, sha, path, data))


def _entry(call: Call, sha: str, path: str, kind: str, blob: str, size: int) -> Json:
    base, page = repo_api(call.world, call.repo), repo_page(call.world, call.repo)
    url = f"{base}/contents/{path}?ref={call.query('ref') or call.repo.default_branch}"
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


def _file(call: Call, sha: str, path: str, data: bytes) -> Json:
    """A file with its content; without it above 1 MB, as GitHub does in the object form."""
    entry = _entry(call, sha, path, "file", call.repo.git.blob_id(sha, path), len(data))
    if len(data) > MOST_CONTENT:
        return entry | {"encoding": "none", "content": ""}
    return entry | {"encoding": "base64", "content": base64.encodebytes(data).decode()}


def _folder(call: Call, sha: str, path: str, *, as_object: bool) -> Response:
    kinds = {"tree": "dir", "blob": "file", "commit": "submodule"}
    found = call.repo.git.listing(sha, path)
    if not found:
        raise not_found()
    prefix = f"{path}/" if path else ""
    entries = [_entry(call, sha, prefix + name, kinds[kind], blob, size) for kind, blob, name, size in found]
    if as_object:
        tree = _entry(call, sha, path, "dir", call.repo.git.blob_id(sha, path), 0) | {"entries": entries}
        return answer(tree, headers={"content-type": "application/vnd.github.object"})
    return answer(entries)


@table.on("GET", REPO + "/git/ref/{ref:path}")
async def ref(call: Call) -> Response:
    call.need("contents:read")
    name = f"refs/{call.params['ref']}"
    sha = call.repo.git.resolve(name)
    if sha is None or not name.startswith(("refs/heads/", "refs/tags/", "refs/pull/")):
        raise not_found()
    base = repo_api(call.world, call.repo)
    target = {"type": "commit", "sha": sha, "url": f"{base}/git/commits/{sha}"}
    node = "REF_" + base64.urlsafe_b64encode(f"{call.repo.id}:{name}".encode()).decode().rstrip("=")
    return answer({"ref": name, "node_id": node, "url": f"{base}/git/{name}", "object": target})


@table.on("GET", REPO + "/branches")
async def branches(call: Call) -> Response:
    call.need("contents:read")
    return call.paged(call.repo.heads.items(), lambda item: _short_branch(call, *item))


def _short_branch(call: Call, name: str, sha: str) -> Json:
    url = f"{repo_api(call.world, call.repo)}/commits/{sha}"
    return {"name": name, "commit": {"sha": sha, "url": url}, "protected": False}


@table.on("GET", REPO + "/branches/{name:path}")
async def branch(call: Call) -> Response:
    call.need("contents:read")
    name = call.params["name"]
    sha = call.repo.git.resolve(f"refs/heads/{name}")
    if sha is None:
        raise Denied(404, "Branch not found")
    url = f"{repo_api(call.world, call.repo)}/branches/{name}"
    contexts: list[str] = []
    checks = {"enforcement_level": "off", "contexts": contexts, "checks": contexts}
    body = {
        "name": name,
        "commit": code.commit(call.world, call.repo, call.repo.git.commit(sha)),
        "_links": {"self": url, "html": f"{repo_page(call.world, call.repo)}/tree/{name}"},
        "protected": False,
        "protection": {"enabled": False, "required_status_checks": checks},
        "protection_url": f"{url}/protection",
    }
    return answer(body)


@table.on("GET", REPO + "/commits")
async def commits(call: Call) -> Response:
    call.need("contents:read")
    sha = commit_named(call.repo, call.query("sha") or call.repo.default_branch)
    return call.paged(call.repo.git.history(sha), lambda one: code.commit(call.world, call.repo, one))


@table.on("GET", REPO + "/commits/{ref}")
async def commit(call: Call) -> Response:
    call.need("contents:read")
    git = call.repo.git
    found = git.commit(commit_named(call.repo, call.params["ref"]))
    files = git.changes(found.parents[0], found.sha) if found.parents else []
    added, removed = sum(one.additions for one in files), sum(one.deletions for one in files)
    body = code.commit(call.world, call.repo, found)
    body["stats"] = {"total": added + removed, "additions": added, "deletions": removed}
    body["files"] = [code.changed_file(call.world, call.repo, found.sha, one) for one in files]
    return answer(body)


@table.on("GET", REPO + "/compare/{ends:path}")
async def compare(call: Call) -> Response:
    call.need("contents:read")
    base, dots, head = call.params["ends"].partition("...")
    if not dots:
        raise not_found()
    base, head = (commit_named(call.repo, end.rpartition(":")[2]) for end in (base, head))
    return answer(code.comparison(call.world, call.repo, base, head))
