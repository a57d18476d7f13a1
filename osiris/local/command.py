"""The command `osiris local`: it checks the request and the machine, starts the environment and
runs the session in it."""

import asyncio
import json
import logging
import re
from pathlib import Path

import httpx

from osiris.config import repository_file
from osiris.config.atomic_file import write_atomically
from osiris.config.settings import Settings
from osiris.console.support import get_operator_name
from osiris.core.errors import Refused, Unavailable
from osiris.factories import create_models, create_sandbox
from osiris.local.repository import LocalRepository
from osiris.local.request import LocalRequest
from osiris.local.session import LocalSession, WorkDropped
from osiris.local.terminal import Terminal, UserLeft
from osiris.local.work_directories import REQUEST, WorkDirectories
from osiris.playground.environment import start_environment

_CARRIED = re.compile(
    r"osiris_(model|second|run|toolchains|sandbox|network|cache)|(anthropic|openai|google)_"
)
_LONGEST = 60_000  # characters of a request


async def run_local(settings: Settings, request: LocalRequest) -> None:
    """Run one piece of local work until the branch is delivered or the person leaves.

    Raises Refused with what is missing or went wrong.
    """
    terminal = Terminal()
    repository = LocalRepository.open_at(request.path)
    if not (request.yes or terminal.is_terminal):
        raise Refused("there is no terminal to ask you on; --yes approves what the agent hands in")
    if len(request.request) > _LONGEST:
        raise Refused(
            f"the request has more than {_LONGEST} characters; put the rest into a file of the"
            " repository"
        )
    # with a mistake in this file no run would start
    repository_file.parse_policy(repository.read_file(repository.commit, repository_file.PATH))
    settings = _apply_choices(settings, request)
    await _check_readiness(settings)
    directories = WorkDirectories.for_repository(settings.osiris_data_dir, repository.path)
    directory = (
        _store_request(directories, request, repository)
        if request.request
        else directories.find_unfinished()
    )
    logging.disable(logging.WARNING)  # the terminal shows what matters
    try:
        with directories.lock_directory(directory):
            await _run_in_environment(settings, request, repository, directory, terminal)
    except httpx.HTTPStatusError as error:
        raise Refused(
            f"the hub refused: {error.response.text[:300]}. {request.resume_hint}"
        ) from None
    except UserLeft:
        terminal.print_line(request.resume_hint, "bold")
    except asyncio.CancelledError:
        terminal.print_line(f"\nStopped. {request.resume_hint}", "bold")
        raise


def _apply_choices(settings: Settings, request: LocalRequest) -> Settings:
    changes = {
        "osiris_model": request.model or settings.osiris_model,
        "osiris_run_usd": request.budget,
    }
    if not changes["osiris_model"]:
        raise Refused(
            "no model is chosen; give --model anthropic:claude-sonnet-5 (or openai:…, google:…,"
            " openai-compatible:…) or set OSIRIS_MODEL, and set the vendor's key, for example"
            " ANTHROPIC_API_KEY"
        )
    return settings.model_copy(update={name: value for name, value in changes.items() if value})


async def _check_readiness(settings: Settings) -> None:
    """Raise Refused when the model or the sandbox cannot be used."""
    models = create_models(settings)
    try:
        await models.probe_model()
    except Unavailable as outage:
        raise Refused(f"the model cannot be asked now: {outage}") from None
    finally:
        await models.close()
    settings.osiris_data_dir.mkdir(parents=True, exist_ok=True)
    for probe in await create_sandbox(settings).probe():
        if probe.needed and not probe.ok and not probe.passing:
            raise Refused(
                f"no safe sandbox on this machine: {probe.name}: {probe.detail}; {probe.fix}"
            )


def _store_request(
    directories: WorkDirectories, request: LocalRequest, repository: LocalRepository
) -> Path:
    """Create a directory with the request in it and return it: from here on the work can be resumed
    after any interruption."""
    directory = directories.create_directory()
    asked = {"request": request.request, "commit": repository.commit, "branch": repository.branch}
    write_atomically(directory / REQUEST, json.dumps(asked))
    return directory


async def _run_in_environment(
    settings: Settings,
    request: LocalRequest,
    repository: LocalRepository,
    directory: Path,
    terminal: Terminal,
) -> None:
    login = _build_login()
    name = f"{login}/{re.sub(r'[^A-Za-z0-9._-]+', '-', repository.path.name)}"
    carried = {
        field: getattr(settings, field) for field in Settings.model_fields if _CARRIED.match(field)
    }
    asked = json.loads((directory / REQUEST).read_text())
    source = (repository.path, asked["commit"])
    people = {login: "admin"}
    async with (
        start_environment(
            directory, repo=name, import_from=source, people=people, more=carried, keep=True
        ) as environment,
        environment.run_osiris(repositories_choose=False) as osiris,
        environment.get_person(login) as person,
    ):
        await environment.hub.resend_webhooks()
        session = LocalSession(environment, osiris, person, repository, terminal, request)
        reason = ""
        try:
            await session.run(asked)
        except WorkDropped as dropped:
            reason = str(dropped)
    WorkDirectories.mark_finished(directory)
    if reason:
        raise Refused(f"the work ended without a branch: {reason}")


def _build_login() -> str:
    """Return the person's login on the hub."""
    return re.sub(r"[^A-Za-z0-9]+", "-", get_operator_name()).strip("-") or "me"
