"""Check runs and their suites: starting, updating, completing."""

from collections.abc import Mapping
from typing import Any

from osiris.devhub.models import App, CheckRun, CheckSuite, Repo
from osiris.devhub.world import World


def start_check(world: World, repo: Repo, app: App, sha: str, name: str, **facts: Any) -> CheckRun:
    suite = _ensure_suite(world, repo, app, sha)
    run = CheckRun(id=world.next_id(), suite=suite, name=name, started=world.now())
    suite.runs.append(run)
    world.index_resources(run)
    _apply_facts(run, facts, world.now())
    world.publish_event("check_run", "created", repo, app.bot, run=run)
    _publish_completion(world, run, was="")
    return run


def update_check(world: World, run: CheckRun, **facts: Any) -> None:
    was = run.status
    _apply_facts(run, facts, world.now())
    _publish_completion(world, run, was)


def _publish_completion(world: World, run: CheckRun, was: str) -> None:
    if run.status != "completed" or was == "completed":
        return
    repo = run.suite.repo
    world.publish_event("check_run", "completed", repo, run.app.bot, run=run)
    if all(other.status == "completed" for other in run.suite.runs):
        world.publish_event("check_suite", "completed", repo, run.app.bot, suite=run.suite)


def _ensure_suite(world: World, repo: Repo, app: App, sha: str) -> CheckSuite:
    for suite in repo.suites:
        if suite.app is app and suite.sha == sha:
            return suite
    suite = CheckSuite(id=world.next_id(), repo=repo, app=app, sha=sha, created=world.now())
    repo.suites.append(suite)
    world.index_resources(suite)
    return suite


def _apply_facts(run: CheckRun, facts: Mapping[str, Any], now: float) -> None:
    """Set the attributes of a run that a caller gave; a conclusion completes the run."""
    for name, value in facts.items():
        setattr(run, name, value)
    if run.conclusion is not None:
        run.status = "completed"
    if run.status == "completed":
        run.completed = run.completed or now
