"""The JSON of apps, installations, check runs and webhook deliveries."""

import json

from osiris.devhub.models import App, CheckRun, CheckSuite, Delivery, Installation, Pull, Repo
from osiris.devhub.payloads import code, issues
from osiris.devhub.payloads.issues import (
    Json,
    build_api_url,
    build_repo_page_url,
    build_repo_url,
    format_time,
)
from osiris.devhub.world import World


def build_installation(world: World, installation: Installation) -> Json:
    app = installation.app
    url = f"{build_api_url(world)}/app/installations/{installation.id}"
    return {
        "id": installation.id,
        "client_id": app.client_id,
        "account": issues.build_user(world, installation.account),
        "repository_selection": "selected",
        "access_tokens_url": f"{url}/access_tokens",
        "repositories_url": f"{build_api_url(world)}/installation/repositories",
        "html_url": (
            f"{world.url}/organizations/{installation.account.login}/settings/installations/{installation.id}"
        ),
        "app_id": app.id,
        "app_slug": app.slug,
        "target_id": installation.account.id,
        "target_type": "Organization",
        "permissions": dict(app.permissions),
        "events": list(app.events),
        "created_at": format_time(installation.created),
        "updated_at": format_time(installation.created),
        "single_file_name": None,
        "has_multiple_single_files": False,
        "single_file_paths": [],
        "suspended_by": (
            issues.build_user(world, installation.suspended_by)
            if installation.suspended_by
            else None
        ),
        "suspended_at": format_time(installation.suspended),
    }


def build_small_repository(repo: Repo) -> Json:
    return {
        "id": repo.id,
        "node_id": repo.node_id,
        "name": repo.name,
        "full_name": repo.full_name,
        "private": repo.private,
    }


def _build_check_pull(world: World, pull: Pull) -> Json:
    repo = {"id": pull.repo.id, "url": build_repo_url(world, pull.repo), "name": pull.repo.name}
    return {
        "id": pull.id,
        "number": pull.number,
        "url": code.build_pull_url(world, pull),
        "head": {"ref": pull.head_ref, "sha": pull.head_sha, "repo": repo},
        "base": {"ref": pull.base_ref, "sha": pull.base_sha, "repo": repo},
    }


def list_pulls_at(repo: Repo, sha: str) -> list[Pull]:
    return [pull for pull in repo.pulls.values() if pull.head_sha == sha and pull.state == "open"]


def build_check_run(world: World, run: CheckRun) -> Json:
    repo = run.suite.repo
    url = f"{build_repo_url(world, repo)}/check-runs/{run.id}"
    page = f"{build_repo_page_url(world, repo)}/runs/{run.id}"
    return {
        "id": run.id,
        "name": run.name,
        "node_id": run.node_id,
        "head_sha": run.sha,
        "external_id": run.external_id,
        "url": url,
        "html_url": page,
        "details_url": run.details_url or page,
        "status": run.status,
        "conclusion": run.conclusion,
        "started_at": format_time(run.started),
        "completed_at": format_time(run.completed),
        "output": {
            "title": run.output.get("title"),
            "summary": run.output.get("summary"),
            "text": run.output.get("text"),
            "annotations_count": 0,
            "annotations_url": f"{url}/annotations",
        },
        "check_suite": {"id": run.suite.id},
        "app": issues.build_app(world, run.app),
        "pull_requests": [_build_check_pull(world, pull) for pull in list_pulls_at(repo, run.sha)],
    }


def find_conclusion(suite: CheckSuite) -> str:
    conclusions = {run.conclusion for run in suite.runs}
    worst = (
        "failure",
        "timed_out",
        "action_required",
        "cancelled",
        "success",
        "neutral",
        "skipped",
    )
    return next((word for word in worst if word in conclusions), "neutral")


def build_check_suite(world: World, suite: CheckSuite) -> Json:
    repo = suite.repo
    url = f"{build_repo_url(world, repo)}/check-suites/{suite.id}"
    commit = repo.git.read_commit(suite.sha)
    branch = next((name for name, sha in repo.heads.items() if sha == suite.sha), None)
    return {
        "id": suite.id,
        "node_id": suite.node_id,
        "head_branch": branch,
        "head_sha": suite.sha,
        "status": "completed",
        "conclusion": find_conclusion(suite),
        "url": url,
        "before": commit.parents[0] if commit.parents else None,
        "after": suite.sha,
        "pull_requests": [
            _build_check_pull(world, pull) for pull in list_pulls_at(repo, suite.sha)
        ],
        "app": issues.build_app(world, suite.app),
        "created_at": format_time(suite.created),
        "updated_at": format_time(world.now()),
        "rerequestable": True,
        "runs_rerequestable": True,
        "latest_check_runs_count": len(suite.runs),
        "check_runs_url": f"{url}/check-runs",
        "head_commit": {
            "id": commit.sha,
            "tree_id": commit.tree,
            "message": commit.message,
            "timestamp": commit.committed,
            "author": {"name": commit.author.name, "email": commit.author.email},
            "committer": {"name": commit.committer.name, "email": commit.committer.email},
        },
    }


def build_webhook_config(app: App) -> Json:
    return {
        "content_type": app.webhook_content_type,
        "insecure_ssl": "0",
        "url": app.webhook_url,
        **({"secret": "********"} if app.webhook_secret else {}),
    }


def build_delivery(delivery: Delivery) -> Json:
    return {
        "id": delivery.id,
        "guid": delivery.guid,
        "delivered_at": format_time(delivery.delivered),
        "redelivery": delivery.redelivery,
        "duration": round(delivery.duration, 3),
        "status": delivery.status,
        "status_code": delivery.status_code,
        "event": delivery.event,
        "action": delivery.action,
        "installation_id": delivery.installation.id if delivery.installation else None,
        "repository_id": delivery.repo.id if delivery.repo else None,
        "throttled_at": None,
    }


def build_full_delivery(one: Delivery) -> Json:
    return {
        **build_delivery(one),
        "url": one.app.webhook_url,
        "request": {"headers": one.request_headers, "payload": json.loads(one.body)},
        "response": {"headers": one.response_headers, "payload": one.response_body},
    }
