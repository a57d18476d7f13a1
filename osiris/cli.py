"""The commands.

Slow imports are inside the command that needs them, so that every `--help` is fast.
"""

import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from osiris import __version__
from osiris.core.errors import OsirisError
from osiris.core.sanitize import clean_text

if TYPE_CHECKING:
    from osiris.config.settings import Settings

app = typer.Typer(
    name="osiris",
    help="Turn GitHub issues into reviewed pull requests with evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
task_app = typer.Typer(help="Show and control tasks.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(task_app, name="task")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
TaskId = Annotated[
    str, typer.Argument(help="A task's number, or its issue as owner/name#N.", metavar="ID")
]


def main() -> NoReturn:
    """Run a command.

    An expected failure prints one sentence to stderr: exit 1; wrong usage: exit 2.
    """
    try:
        app()
    except OsirisError as error:
        print(f"osiris: {' '.join(clean_text(str(error)).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output is gone, as with `| head`
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"osiris {__version__}")
        raise typer.Exit


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option(help="Leave it running at the end, to view it in the browser.")
    ] = False,
) -> None:
    """Run the complete workflow on this machine, with nothing configured."""
    from osiris.playground.demo import play_demo

    _run_async(play_demo(keep=keep))


@app.command()
def local(
    path: Annotated[Path, typer.Argument(help="A git repository of yours.")],
    request: Annotated[
        str, typer.Argument(help="What to do; without it, unfinished work is resumed.")
    ] = "",
    model: Annotated[
        str, typer.Option(help="Model to use, as VENDOR:MODEL (default: OSIRIS_MODEL).")
    ] = "",
    budget: Annotated[
        float | None, typer.Option(help="Most US dollars that a run may cost.", min=0.01)
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Approve the agent's work without asking.")
    ] = False,
) -> None:
    """Run the complete workflow on your own repository; only with your approval, a branch is
    created there, and nothing else changes."""
    from osiris.config.settings import load_settings
    from osiris.local.command import run_local
    from osiris.local.request import LocalRequest

    # a .env in the current directory may be untrusted, and could send the key elsewhere
    settings = load_settings(env_file=None)
    _run_async(
        run_local(
            settings,
            LocalRequest(
                path=path.expanduser(), request=request.strip(), model=model, budget=budget, yes=yes
            ),
        )
    )


@app.command()
def serve() -> None:
    """Run the web server and a worker in one process."""
    _run_server(works=True)


@app.command()
def web() -> None:
    """Run the web server alone; `osiris worker` does the work, here or on other machines."""
    _run_server(works=False)


def _run_server(*, works: bool) -> None:
    from osiris.bootstrap import build_osiris
    from osiris.config.logging import configure_logging
    from osiris.runtime import serve as serve_osiris

    settings = _load_settings()
    configure_logging(settings.osiris_log_format, settings.list_secrets())
    osiris = build_osiris(settings, works=works)
    _run_async(
        serve_osiris(osiris, ready=lambda url: print(f"osiris listens on {url}", file=sys.stderr))
    )


@app.command()
def worker() -> None:
    """Run a worker alone; there may be any number of them, each with its own data folder."""
    from osiris.bootstrap import build_osiris
    from osiris.config.logging import configure_logging
    from osiris.runtime import run_worker

    settings = _load_settings()
    configure_logging(settings.osiris_log_format, settings.list_secrets())
    _run_async(
        run_worker(
            build_osiris(settings),
            ready=lambda name: print(f"osiris works on {name}", file=sys.stderr),
        )
    )


@app.command()
def migrate() -> None:
    """Migrate the database to this version (`serve` does it itself on SQLite)."""
    from osiris.data_folder import make_data_folder, migrate_database
    from osiris.queue.database import connect

    settings = _load_settings()
    if settings.is_embedded:
        make_data_folder(settings)
    _run_async(migrate_database(settings, connect(settings.database)))
    print(f"{settings.database_without_password} is up to date")


@app.command()
def prune(json: Json = False) -> None:
    """Remove what has been over for OSIRIS_KEEP_DAYS; audit logs are exported to files first."""
    from osiris.console.prune import prune_records as remove

    _run_async(remove(_load_settings(), as_json=json))


@app.command()
def doctor(json: Json = False) -> None:
    """Check settings, database, sandbox, model and the GitHub App; exit 1 if something needed is
    missing."""
    from osiris.console.doctor import run_doctor as examine

    if not _run_async(examine(_load_settings(), as_json=json)):
        raise typer.Exit(1)


@app.command()
def request(
    text: Annotated[str, typer.Argument(help="What to do; the first line becomes the title.")],
    repo: Annotated[str, typer.Option(help="The repository, as owner/name.")],
) -> None:
    """File a request that becomes an issue."""
    from osiris.console.commands import file_request

    _run_async(file_request(_load_settings(), text, repo))


@task_app.command("list")
def task_list(
    failed: Annotated[
        bool, typer.Option("--failed", help="List deliveries and orders that were given up.")
    ] = False,
    json: Json = False,
) -> None:
    """List the tasks that changed last."""
    from osiris.console.reports import list_failures, list_tasks

    _run_async((list_failures if failed else list_tasks)(_load_settings(), as_json=json))


@task_app.command("show")
def task_show(
    id: TaskId,
    brief: Annotated[
        bool, typer.Option("--brief", help="Show the exact text that the agent was given.")
    ] = False,
    json: Json = False,
) -> None:
    """Show one task with its complete history."""
    from osiris.console.reports import show_brief, show_task

    _run_async((show_brief if brief else show_task)(_load_settings(), id, as_json=json))


@task_app.command("watch")
def task_watch(id: TaskId, json: Json = False) -> None:
    """Follow a task until it waits for a person or has ended."""
    from osiris.console.reports import watch_task

    _run_async(watch_task(_load_settings(), id, as_json=json))


@task_app.command("cancel")
def task_cancel(id: TaskId, json: Json = False) -> None:
    """Stop a task; what was pushed stays."""
    from osiris.console.commands import cancel_task

    _run_async(cancel_task(_load_settings(), id, as_json=json))


@task_app.command("retry")
def task_retry(id: TaskId, json: Json = False) -> None:
    """Resume a stopped, failed or paused task."""
    from osiris.console.commands import retry_task

    _run_async(retry_task(_load_settings(), id, as_json=json))


def _load_settings() -> "Settings":
    from osiris.config.settings import load_settings

    return load_settings()


def _run_async(work: Coroutine[Any, Any, Any]) -> Any:
    import asyncio

    import uvloop

    try:
        return uvloop.run(work)
    except asyncio.CancelledError:  # by SIGTERM
        raise SystemExit(143) from None
