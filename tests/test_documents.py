"""Agreement of the documents with the code, as far as a test can check it."""

import importlib.util
import inspect
import itertools
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from pydantic import BaseModel

from osiris.cli import app
from osiris.config import repository_file
from osiris.config.app_manifest import APP_EVENTS, APP_PERMISSIONS
from osiris.config.settings import Settings
from osiris.core import errors
from osiris.core.policy import Policy
from osiris.core.ports.models import LanguageModel

ROOT = Path(__file__).parents[1]
TRACKED_FILES = sorted(
    path
    for name in subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.split(b"\0")
    if name and (path := ROOT / name.decode()).is_file()
)
PAGES = [
    path
    for path in TRACKED_FILES
    if path.suffix == ".md" and not {"sample", "prompts"} & set(path.parts)
]
DECISIONS = [path for path in PAGES if path.parent.name == "decisions"]
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
CODE_BLOCK = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`\n]+)`")


def format_path(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read_prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return CODE_BLOCK.sub("", page.read_text())


def read_code(page: Path) -> list[str]:
    """Return every line of the code blocks and every code span of a page."""
    return [
        *CODE_SPAN.findall(read_prose(page)),
        *"\n".join(CODE_BLOCK.findall(page.read_text())).splitlines(),
    ]


def read_table(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    section = text.partition(f"## {heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table, f"there is no table below {heading}"
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]
    ]


# ── settings ──────────────────────────────────────────────────────────────────────────────────────


def test_every_setting_is_documented_and_every_documented_one_exists():
    documented = [row[0].strip("`") for row in read_table(CONFIGURATION, "Settings")]
    assert documented == [name.upper() for name in Settings.model_fields]


def test_the_documented_defaults_are_the_real_ones():
    settings = Settings()
    for name, default, _meaning in read_table(CONFIGURATION, "Settings"):
        if name == "`OSIRIS_DATA_DIR`":
            continue  # the default for root differs
        value = getattr(settings, name.strip("`").lower())
        value = value.get_secret_value() if hasattr(value, "get_secret_value") else value
        assert default.strip("`") == (str(value) if value else ""), name


def test_every_setting_the_readme_names_exists():
    code_text = " ".join(read_code(ROOT / "README.md"))
    named = set(re.findall(r"\b(?:OSIRIS|GITHUB|DATABASE)_[A-Z_]+\b", code_text))
    assert named <= {name.upper() for name in Settings.model_fields}


def list_keys(model: type[BaseModel], prefix: str = "") -> dict[str, object]:
    """Return every key of the repository's file, as a.b, with its default."""
    defaults: dict[str, object] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            defaults |= list_keys(type(field.default), f"{prefix}{name}.")
        else:
            defaults[prefix + name] = field.default
    return defaults


def test_every_key_of_the_repositorys_file_is_documented_with_its_default():
    documented = {
        row[0].strip("`"): row[1].strip("`")
        for row in read_table(CONFIGURATION, "`.github/osiris.yml`")
    }
    actual = {
        name: ", ".join(default) if isinstance(default, list) else str(default)
        for name, default in list_keys(repository_file._File).items()
    }
    assert documented == actual


def test_the_example_of_the_repositorys_file_is_a_good_one():
    [example] = re.findall(r"```yaml\n(.*?)```", CONFIGURATION, re.DOTALL)
    policy = repository_file.parse_policy(example)
    assert policy.deny == (".github/workflows/", "migrations/")
    assert policy != Policy()


# ── tests ─────────────────────────────────────────────────────────────────────────────────────────


def list_named_tests() -> dict[str, list[tuple[Path, str]]]:
    """Return the tests that docs/testing.md names for each promise, with their files."""
    tests_by_promise: dict[str, list[tuple[Path, str]]] = {}
    promise = ""
    page = (ROOT / "docs/testing.md").read_text()
    for row_promise, files, tests in read_table(page, "What attacks each promise"):
        promise = row_promise or promise
        paths = [ROOT / name for name in CODE_SPAN.findall(files)]
        for name in CODE_SPAN.findall(tests):
            [path] = [path for path in paths if f"def {name}(" in path.read_text()]
            tests_by_promise.setdefault(promise, []).append((path, name))
    return tests_by_promise


NAMED_TESTS = list_named_tests()


@pytest.mark.parametrize("promise", NAMED_TESTS)
def test_every_change_runs_an_attack_on_each_promise(promise: str):
    """A test marked `long` runs in `make test-long` only."""
    definitions = {
        name: re.search(
            rf"(?:^[@ )\]].*\n)*^(?:async )?def {name}\(", path.read_text(), re.MULTILINE
        )
        for path, name in NAMED_TESTS[promise]
    }
    assert any(
        definition and "mark.long" not in definition[0] for definition in definitions.values()
    )


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


def list_commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """Return every command by its full name. A group of commands is not a command."""
    commands_by_name: dict[str, Any] = {}
    for name, command in group.commands.items():
        is_group = hasattr(command, "commands")
        commands_by_name |= (
            list_commands(command, f"{prefix}{name} ") if is_group else {prefix + name: command}
        )
    return commands_by_name


ALL_COMMANDS = list_commands(typer.main.get_command(app))
CALL = re.compile(
    r"(?:(?:\.venv/bin/|docker exec osiris )?osiris (?=[a-z])|(?=task ))((?:task )?[a-z]+)(.*)"
)


def find_calls(page: Path) -> list[tuple[str, str]]:
    """Return (command, rest of the line) for each call of osiris in the code of a page."""
    return [(match[1], match[2]) for line in read_code(page) if (match := CALL.fullmatch(line))]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/operations.md"], ids=format_path)
def test_every_command_a_page_calls_exists_with_its_options(page: Path):
    assert find_calls(page)
    for name, rest in find_calls(page):
        command = ALL_COMMANDS[name]
        help_text = command.get_help(command.make_context(name, [], resilient_parsing=True))
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in help_text, f"{name} {option}"


def test_every_command_is_in_the_table_of_commands():
    table = read_table((ROOT / "docs/operations.md").read_text(), "Commands")
    assert {row[0].strip("`").removeprefix("osiris ") for row in table} == set(ALL_COMMANDS)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_a_page_names_exists(page: str):
    named = {
        target for line in read_code(ROOT / page) for target in re.findall(r"^make ([a-z-]+)", line)
    }
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named
    assert named <= targets


def test_what_every_change_must_pass_are_the_commands_of_the_readme():
    run = re.findall(r"^make .*", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert run == ["make demo", "make check", "make test", "make test-long"]
    assert set(run) <= set(read_code(ROOT / "README.md"))


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_app_file_asks_for_what_osiris_needs():
    manifest = yaml.safe_load((ROOT / "app.yml").read_text())
    assert manifest["default_permissions"] == APP_PERMISSIONS
    assert tuple(manifest["default_events"]) == APP_EVENTS
    assert manifest["hook_attributes"]["url"].endswith("/webhooks/github")


def test_the_image_keeps_osiris_awake_and_is_no_root_by_default():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    fly = tomllib.loads((ROOT / "fly.toml").read_text())
    assert 'CMD ["osiris", "serve"]' in lines
    assert [line for line in lines if line.startswith(("FROM", "USER"))][-1] == "USER osiris"
    assert f" AS {fly['build']['build-target']}" in "\n".join(lines)
    assert fly["http_service"]["auto_stop_machines"] == "off"
    assert fly["http_service"]["internal_port"] == Settings.model_fields["osiris_port"].default
    assert fly["http_service"]["checks"][0]["path"] == "/readyz"


def make_anchor(heading: str) -> str:
    """Return a heading as GitHub makes an anchor of it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=format_path)
def test_every_link_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", read_prose(page)):
        if "://" in target:
            continue
        file, _, fragment = target.partition("#")
        linked_page = (page.parent / file) if file else page
        assert linked_page.exists(), target
        if fragment:
            assert fragment in [
                make_anchor(heading)
                for heading in re.findall(r"^#+ (.*)$", linked_page.read_text(), re.MULTILINE)
            ], target


@pytest.mark.parametrize("page", PAGES, ids=format_path)
def test_every_path_of_ours_a_page_names_exists(page: Path):
    named = [
        span
        for span in CODE_SPAN.findall(read_prose(page))
        if re.fullmatch(r"(osiris|tests|docs|scripts)/[\w./-]+", span)
    ]
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("record", DECISIONS, ids=format_path)
def test_a_decision_has_its_three_parts(record: Path):
    parts = re.findall(r"^## (.*)\n\n(.+)", record.read_text(), re.MULTILINE)
    assert [name for name, _ in parts] == ["Context", "Choice", "What would change our mind"]
    assert re.match(rf"# {record.name[:4]}\. \S", record.read_text())


def test_decisions_are_numbered_without_a_gap():
    assert [record.name[:4] for record in DECISIONS] == [
        f"{n:04}" for n in range(1, len(DECISIONS) + 1)
    ]


def test_every_runtime_dependency_has_its_line_in_a_decision():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = [
        *project["dependencies"],
        *itertools.chain(*project["optional-dependencies"].values()),
    ]
    names = [re.split(r"[^\w-]", line)[0] for line in dependencies]
    table = read_table((ROOT / "docs/decisions/0006-dependencies.md").read_text(), "Choice")
    assert sorted(row[0] for row in table) == sorted(names)


def read_lock_file(name: str) -> set[str]:
    """Return what a lock file installs, as NAME==VERSION."""
    return set(
        re.findall(
            r"^([\w.-]+==[^ ;]+)", (ROOT / f"requirements/{name}.txt").read_text(), re.MULTILINE
        )
    )


def test_each_lock_file_has_all_of_the_smaller_one():
    """So one file is enough to install from, and the tests run with the versions that are installed
    elsewhere."""
    assert read_lock_file("runtime") < read_lock_file("machines") < read_lock_file("dev")


def test_every_error_has_a_row_that_says_what_the_worker_does():
    text = (ROOT / "docs/architecture.md").read_text()
    table = text[text.index("## Errors") : text.index("## Promises")]
    row_names = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert row_names == classes - {"OsirisError"}


def test_what_a_model_vendor_has_to_offer_is_what_the_port_asks_for():
    text = (ROOT / "docs/architecture.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| a model vendor |"))
    port_names = {name for name in vars(LanguageModel) if not name.startswith("_")}
    assert set(re.findall(r"a class with `(\w+)` and `(\w+)`", row)[0]) == port_names


def test_every_setting_is_used_or_said_to_be_unused():
    sources = [path.read_text() for path in (ROOT / "osiris").rglob("*.py")]
    unused = {
        name
        for name in Settings.model_fields
        if sum(len(re.findall(rf"\b{name}\b", source)) for source in sources) < 2
    }
    page = (ROOT / "docs/configuration.md").read_text()
    documented = re.findall(r"^\| `(\w+)` .*accepted, not used yet", page, re.MULTILINE)
    assert unused == {name.lower() for name in documented}


def test_the_figures_of_the_architecture_are_those_of_the_code():
    figures = _load_script("figures")
    page = figures.PAGE.read_text()
    assert page == figures.update_page(page), "run `make docs`"


REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pypi", "python", "org"),
        ("python" + "hosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("crates", "io"),
        ("rubygems", "org"),
        ("proxy", "golang", "org"),
        ("maven", "org"),
    )
]


def test_no_tracked_file_names_a_package_registry():
    named = [
        (format_path(path), host)
        for path in TRACKED_FILES
        for host in REGISTRIES
        if host.encode() in path.read_bytes().lower()
    ]
    assert named == []


@pytest.mark.parametrize("whole", [True, False])
def test_only_a_whole_torture_changes_the_figures_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, whole: bool
):
    torture = _load_script("torture")
    figures = dict.fromkeys(torture.COLUMNS, 7)
    parts = {"enemy": figures}
    report = {
        "at": "2026-01-01",
        "seed": 1,
        "whole": whole,
        "machine": {"cores": 2, "python": "3"},
        "parts": parts,
    }
    (tmp_path / "counted.json").write_text(json.dumps(report))
    (tmp_path / "page.md").write_text(f"a {torture.BEGIN}\nold\n{torture.END} z")
    monkeypatch.setattr(torture, "REPORT", tmp_path / "counted.json")
    monkeypatch.setattr(torture, "PAGE", tmp_path / "page.md")
    assert torture.main() == 0
    page = (tmp_path / "page.md").read_text()
    assert ("old" not in page, "| 7 | 7 |" in page) == (whole, whole)
    assert (page[:2], page[-2:]) == ("a ", " z")


def _load_script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module
