"""The review page, in a real browser."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.devhub.environment import FILES, HubEnvironment

PULL = "/acme/shop/pull/2"


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        yield browser
        await browser.close()


async def _take_screenshots(page: Page, name: str) -> None:
    """Save screenshots of the page, in light and dark, if DEVHUB_PICTURES names a folder."""
    if folder := os.environ.get("DEVHUB_PICTURES"):
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            await page.screenshot(path=str(Path(folder) / f"{name}-{scheme}.png"), full_page=True)


async def _open_draft_pull(env: HubEnvironment) -> None:
    """Open an issue, and a draft pull request of the bot for it, with a check and a comment."""
    body = "`total` shows too many digits.\n\n- [ ] round\n- [x] find it\n\n<!-- osiris:task=1 -->"
    issue = env.hub.world.open_issue(
        env.repo, env.mia, "Prices have too many digits", body, labels=["osiris"]
    )
    env.hub.world.add_comment(
        issue, env.app.bot, "I am on it. <details><summary>Plan</summary>\n\n1. round\n</details>"
    )
    env.hub.world.add_reaction(issue, env.app.bot, "eyes")
    token = await env.create_token()
    bot = env.create_client(token)
    pull_body = (
        "Rounds the total.\n\n<script>alert(1)</script>\n\n| check | exit |\n|---|---|\n| pytest |"
        " 0 |\n\nCloses #1"
    )
    pull = await env.open_pull(bot, token, draft=True, body=pull_body, title="Round the total")
    output = {
        "title": "12 passed",
        "summary": "`pytest` ended with 0",
        "text": "12 passed in 0.2 s",
    }
    check_run = {
        "name": "Osiris",
        "head_sha": pull["head"]["sha"],
        "conclusion": "success",
        "output": output,
    }
    await bot.post("/repos/acme/shop/check-runs", json=check_run)


@pytest.mark.long
async def test_a_person_reviews_asks_for_changes_approves_marks_ready_and_merges(
    env: HubEnvironment, browser: Browser
) -> None:
    await _open_draft_pull(env)
    page = await browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    await page.goto(env.hub.build_sign_in_url("mia", "/"))
    await _take_screenshots(page, "home")
    await page.get_by_role("link", name="Round the total").click()
    await expect(page.get_by_text("alert(1)")).to_be_visible()  # shown as text, not run
    await _take_screenshots(page, "talk")

    await page.get_by_role("link", name="Files changed").click()
    await page.get_by_role("button", name="Request changes").click()
    await expect(page.get_by_role("alert")).to_contain_text("A review needs some words")
    await page.locator("tr.added td.text").first.hover()
    await page.get_by_role("button", name="Comment on shop/cart.py line 2", exact=True).click()
    await page.get_by_label("Line comment").fill("Money wants Decimal.")
    await page.get_by_role("button", name="Add to review").click()
    await expect(page.get_by_text("pending", exact=True)).to_be_visible()
    assert env.repo.pulls[2].reviews[0].state == "PENDING"
    await _take_screenshots(page, "files")
    await page.get_by_label("Review summary").fill("Not with floats, please.")
    await page.get_by_role("button", name="Request changes").click()
    await expect(page.get_by_text("1 pending")).to_have_count(0)
    await _take_screenshots(page, "reviewed")
    (review,) = env.repo.pulls[2].reviews
    assert (review.state, review.author.login) == ("CHANGES_REQUESTED", "mia")
    await env.list_events()
    review_payload = env.receiver.get_last_payload("pull_request_review.submitted")["review"]
    assert (review_payload["state"], review_payload["body"], review_payload["user"]["login"]) == (
        "changes_requested",
        "Not with floats, please.",
        "mia",
    )
    comment_payload = env.receiver.get_last_payload("pull_request_review_comment.created")[
        "comment"
    ]
    assert (comment_payload["path"], comment_payload["line"], comment_payload["body"]) == (
        "shop/cart.py",
        2,
        "Money wants Decimal.",
    )

    fixed_file = FILES["shop/cart.py"].replace("sum(prices)", "sum(prices, Decimal())")
    await env.push_branch("fix", {"shop/cart.py": fixed_file}, await env.create_token())
    await page.get_by_role("link", name="Review changes").click()
    await _take_screenshots(page, "outdated")
    await page.get_by_role("button", name="Approve").click()
    await expect(page.get_by_text("approved these changes")).to_be_visible()
    await _take_screenshots(page, "approved")
    await page.get_by_role("button", name="Ready for review").click()
    await page.get_by_role("button", name="Merge pull request").click()
    await expect(page.locator("header .state")).to_have_text("Merged")
    await _take_screenshots(page, "merged")
    assert env.repo.git.read_file("main", "shop/cart.py") == fixed_file.encode()
    assert env.repo.issues[1].state == "closed"
    closed = (await env.list_events()) and env.receiver.get_last_payload("pull_request.closed")
    assert (closed["pull_request"]["merged"], closed["sender"]["login"]) == (True, "mia")
    # the browser logs the refused review, which this test expects
    assert [problem for problem in problems if "422" not in problem] == []


async def test_a_person_opens_labels_and_comments_an_issue(
    env: HubEnvironment, browser: Browser
) -> None:
    page = await browser.new_page()
    await page.goto(env.hub.build_sign_in_url("mia", "/acme/shop"))
    await page.get_by_label("Title").fill("Prices")
    await page.get_by_label("Description").fill("two\nlines <!-- hidden -->")
    await page.get_by_role("button", name="Open issue").click()
    await page.get_by_label("Label", exact=True).fill("osiris")
    await page.get_by_role("button", name="Add", exact=True).click()
    await expect(page.locator("aside .label")).to_have_text("osiris")
    await page.get_by_label("Comment").fill("Please **hurry**")
    await page.get_by_role("button", name="Comment", exact=True).click()
    await expect(page.locator(".words strong")).to_have_text("hurry")
    await expect(page.get_by_text("hidden")).to_have_count(0)
    await _take_screenshots(page, "issue")
    await page.get_by_role("button", name="Remove label osiris").click()
    await expect(page.locator("aside .label")).to_have_count(0)
    await page.get_by_role("button", name="Close as not planned").click()
    await expect(page.locator("header .state")).to_have_text("Not planned")
    issue = env.repo.issues[1]
    assert (issue.body, issue.state_reason) == ("two\nlines <!-- hidden -->", "not_planned")
    names = [name for name in await env.list_events() if name.startswith("issue")]
    assert names == [
        "issues.opened",
        "issues.labeled",
        "issue_comment.created",
        "issues.unlabeled",
        "issues.closed",
    ]


async def test_forms_from_elsewhere_and_keys_of_nobody_are_turned_away(
    env: HubEnvironment,
) -> None:
    env.hub.world.open_issue(env.repo, env.mia, "Prices")
    url = f"{env.hub.url}/acme/shop/issues/1/comment"
    async with httpx.AsyncClient(trust_env=False) as person:
        signed_in = await person.get(env.hub.build_sign_in_url("mia", "//elsewhere.example"))
        assert signed_in.headers["location"] == "/"
        cookie = signed_in.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert (await person.post(url, data={"body": "hi"})).status_code == 403
        foreign_origin = {"Origin": "http://127.0.0.1:1"}
        assert (
            await person.post(url, data={"body": "hi"}, headers=foreign_origin)
        ).status_code == 403
        answer = await person.post(url, data={"body": "hi"}, headers={"Origin": env.hub.url})
        assert answer.status_code == 303
    async with httpx.AsyncClient(trust_env=False) as anonymous:
        assert (await anonymous.get(f"{env.hub.url}/_enter?key=guess&to=/")).status_code == 403
        assert (
            await anonymous.post(url, data={"body": "hi"}, headers={"Origin": env.hub.url})
        ).status_code == 401
    assert [comment.body for comment in env.repo.issues[1].comments] == ["hi"]


async def test_binary_files_strange_names_and_huge_diffs_are_shown_without_trouble(
    env: HubEnvironment,
) -> None:
    token = await env.create_token()
    files = {
        "logo.png": b"\x89PNG\x00\x01",
        "naïve \U0001f600.txt": "é\r\nx\ry\n",
        "latin.txt": b"caf\xe9\n",
        "huge.csv": "1,2\n" * 3000,
        "README.md": None,
    }
    work = env.folder / "work"
    await env.run_git("clone", "-q", env.build_address(token), str(work))
    (Path(os.fsdecode(bytes(work))) / os.fsdecode(b"odd-\xff.txt")).write_text("odd\n")
    await env.push_branch("odd", files, token)
    body = {"title": "Odd", "head": "odd", "base": "main"}
    assert (
        await env.create_client(token).post("/repos/acme/shop/pulls", json=body)
    ).status_code == 201
    async with httpx.AsyncClient(trust_env=False) as anonymous:
        page = await anonymous.get(f"{env.hub.url}/acme/shop/pull/1/files")
    assert page.status_code == 200
    for text in (
        "No text to show",
        "naïve \U0001f600.txt",
        "odd-\ufffd.txt",
        "too many to show here",
        "caf\ufffd",
    ):
        assert text in page.text
