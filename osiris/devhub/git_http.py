"""Git over HTTP, by git's own `http-backend`."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from osiris.devhub.auth import Caller, TokenStore
from osiris.devhub.errors import ApiError
from osiris.devhub.git_repository import build_environment
from osiris.devhub.models import Repo
from osiris.devhub.pulls import sync_refs
from osiris.devhub.world import World

CHUNK = 65_536
SERVICES = ("git-upload-pack", "git-receive-pack")


@cache
def find_backend() -> str:
    path = subprocess.run(
        ["git", "--exec-path"], capture_output=True, check=True, text=True
    ).stdout.strip()
    return str(Path(path) / "git-http-backend")


def is_git_path(path: str) -> bool:
    return path.endswith(("/info/refs", *(f"/{service}" for service in SERVICES)))


class GitHttp:
    """The git server: clone, fetch and push for callers whose token allows it."""

    def __init__(self, world: World, token_store: TokenStore) -> None:
        self._world = world
        self._token_store = token_store

    async def answer_request(self, request: Request) -> Response:
        name, rest = _split_path(request.url.path)
        service = request.query_params.get("service", "") if rest == "/info/refs" else rest[1:]
        if service not in SERVICES:
            return PlainTextResponse("Please upgrade your git client.\n", 403)
        try:
            who = self._token_store.identify_caller(request.headers.get("authorization", ""))
            if (moved := self._world.moved.get(name.lower())) is not None and who.can_see(moved):
                return RedirectResponse(
                    f"{self._world.url}/{moved.full_name}.git{rest}?{request.url.query}", 301
                )
            repo = self._find_allowed_repo(who, name, writes=service == "git-receive-pack")
        except ApiError as denied:
            return _build_refusal(denied)
        git = _start_backend(request, repo, rest, who)
        if rest == "/git-receive-pack":
            return await self._answer_push(git, repo, who)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(git.close)
            status, headers = await git.read_head()
            stack.pop_all()  # the response closes it
        return _BackendResponse(git, status, headers)

    async def _answer_push(self, git: "GitBackend", repo: Repo, who: Caller) -> Response:
        """Answer when git has ended and the world was updated, also when the client has left."""
        try:
            status, headers = await git.read_head()
            body = b"".join([chunk async for chunk in git.stream_body()])
        finally:
            await git.close()
            sync_refs(self._world, repo, who.account)
        return Response(body, status, headers)

    def _find_allowed_repo(self, who: Caller, name: str, *, writes: bool) -> Repo:
        repo = self._world.repos.get(name.lower())
        if who.user is None and (repo is None or repo.private or writes):
            raise ApiError(401, "Repository not found." if who.app is None else "Bad credentials")
        if repo is None or not who.can_see(repo):
            raise ApiError(404, "Repository not found.")
        if writes and not who.may_access(repo, ["contents:write"], "write"):
            raise ApiError(
                403, f"Permission to {repo.full_name}.git denied to {who.account.login}."
            )
        if writes and repo.archived:
            raise ApiError(403, "This repository was archived so it is read-only.")
        if not who.may_access(repo, ["contents:read"], "read"):
            raise ApiError(403, "Write access to repository not granted.")
        return repo


def _split_path(path: str) -> tuple[str, str]:
    """Split `/owner/name.git/info/refs` into the repository's name and the rest of the path."""
    parts = path.lstrip("/").split("/", 2)
    if len(parts) < 3:
        return "", "/"
    return f"{parts[0]}/{parts[1].removesuffix('.git')}", f"/{parts[2]}"


def _build_refusal(denied: ApiError) -> Response:
    headers = {"WWW-Authenticate": 'Basic realm="GitHub"'} if denied.status == 401 else None
    return PlainTextResponse(f"{denied}\n", denied.status, headers)


@dataclass(kw_only=True)
class GitBackend:
    """A running http-backend, to which a task writes the body of the request.

    It is started by `subprocess` and not by the loop: uvloop forks, which takes several times as
    long as the vfork of `subprocess`. Threads read and write its pipes.
    """

    process: subprocess.Popen[bytes]
    out: IO[bytes]
    feeding: asyncio.Task[None]
    is_read: bool = False

    async def read_head(self) -> tuple[int, dict[str, str]]:
        """Read the status and headers with which the output of a CGI program begins."""
        return await asyncio.to_thread(_read_head, self.out)

    async def stream_body(self) -> AsyncIterator[bytes]:
        while chunk := await asyncio.to_thread(os.read, self.out.fileno(), CHUNK):
            yield chunk
        self.is_read = True

    async def close(self) -> None:
        """Wait for the end of git; kill it first unless its whole output was read."""
        self.feeding.cancel()
        if not self.is_read:
            self.process.kill()
        await asyncio.wait([self.feeding])
        await asyncio.to_thread(self.process.wait)
        await asyncio.to_thread(self.out.close)


class _BackendResponse(StreamingResponse):
    """The output of a backend, which is closed also when the client has left."""

    def __init__(self, git: GitBackend, status: int, headers: dict[str, str]) -> None:
        super().__init__(git.stream_body(), status, headers)
        self._git = git

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._git.close()


def _read_head(out: IO[bytes]) -> tuple[int, dict[str, str]]:
    status = 200
    headers = {}
    while (line := out.readline().strip()) != b"":
        name, _, value = line.decode("latin-1").partition(":")
        if name.lower() == "status":
            status = int(value.split()[0])
        else:
            headers[name] = value.strip()
    return status, headers


def _start_backend(request: Request, repo: Repo, rest: str, who: Caller) -> GitBackend:
    process = subprocess.Popen(
        [find_backend()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env=_build_cgi_environment(request, repo, rest, who),
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a process was started without its pipes")
    feeding = asyncio.create_task(_feed_body(process.stdin, request))
    return GitBackend(process=process, out=process.stdout, feeding=feeding)


def _build_cgi_environment(request: Request, repo: Repo, rest: str, who: Caller) -> dict[str, str]:
    headers = request.headers
    env = build_environment() | {
        "GIT_PROJECT_ROOT": str(repo.git.path),
        "GIT_HTTP_EXPORT_ALL": "1",
        "PATH_INFO": rest,
        "QUERY_STRING": request.url.query,
        "REQUEST_METHOD": request.method,
        "CONTENT_TYPE": headers.get("content-type", ""),
        "GIT_PROTOCOL": headers.get("git-protocol", ""),
        "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
        "REMOTE_ADDR": "127.0.0.1",
    }
    if length := headers.get("content-length"):
        env["CONTENT_LENGTH"] = length
    return env | ({"REMOTE_USER": who.user.login} if who.user else {})


async def _feed_body(pipe: IO[bytes], request: Request) -> None:
    """Write the body of the request to git. A truncated body is a broken pack, which git refuses
    itself."""
    try:
        async for chunk in request.stream():
            if chunk:
                await asyncio.to_thread(_write_chunk, pipe, chunk)
    except (ConnectionError, ClientDisconnect):
        pass
    finally:
        with contextlib.suppress(OSError):
            pipe.close()


def _write_chunk(pipe: IO[bytes], chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[pipe.write(rest) :]
