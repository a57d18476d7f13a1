"""The size of the beginning of every request in tokens: the system prompt and the descriptions of
the tools."""

import asyncio
import json

from bench.process import run_checked
from bench.row import BenchmarkRow, Threshold
from bench.step import install_mini
from osiris.agents.briefing import read_prompt
from osiris.tools.toolbox import build_specs

_MINI_SCRIPT = """
import json, yaml, minisweagent
from minisweagent.models.utils.actions_toolcall import BASH_TOOL
agent = yaml.safe_load((minisweagent.package_dir / "config/mini.yaml").read_text())["agent"]
print(json.dumps([agent["system_template"], agent["instance_template"], BASH_TOOL]))
"""


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """Return one figure for each side: nothing in it varies."""
    tools = [
        {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
        for spec in build_specs()
    ]
    python = await asyncio.to_thread(install_mini)
    system, brief, bash = json.loads(
        run_checked([python, "-c", _MINI_SCRIPT], env={"MSWEA_SILENT_STARTUP": "1", "HOME": "/tmp"})
    )
    return [
        BenchmarkRow(
            name="prompt",
            what="system prompt and tool descriptions",
            unit="tokens",
            ours=[[_count_tokens(read_prompt(), json.dumps(tools))]],
            other="mini-swe-agent 2.4.6: both its templates, and its tool",
            theirs=[[_count_tokens(system, brief, json.dumps(bash))]],
            target=Threshold(p50=2500),
            note="a token is taken as four characters of the text, and of the tools as JSON",
        )
    ]


def _count_tokens(*texts: str) -> float:
    return float(sum(map(len, texts)) // 4)
