"""Fixtures with the fake vendors, and the script that they follow."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from fake_vendors.server import Vendors, serve_vendors

SCRIPT = {
    "runs": [
        {
            "when": "add is wrong",
            "steps": [
                {
                    "say": "I look at both – first.",
                    "call": {
                        "read_file": {"path": 'src/"calc" – 漢字 🎉.py'},
                        "run_command": {"command": "printf 'a\\n\tb'"},
                    },
                    "expect": {"contains": "def add"},
                },
                {"call": {"run_command": {"command": "pytest"}}, "expect": {"exit_code": 0}},
                {"say": "Done.", "call": {"submit": {"summary": "fixed"}}},
            ],
        }
    ]
}


@pytest.fixture
def script() -> dict[str, Any]:
    return SCRIPT


@pytest.fixture
async def vendors() -> AsyncIterator[Vendors]:
    async with serve_vendors(SCRIPT) as vendors:
        yield vendors


@pytest.fixture(params=["anthropic", "openai", "google", "openai-compatible"])
def vendor(request: pytest.FixtureRequest) -> str:
    return request.param
