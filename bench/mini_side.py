"""The comparison for a step: mini-swe-agent with its loop, its deterministic model, its bubblewrap
and its trajectory file.

It runs with the Python of an environment that contains mini-swe-agent. The model repeats one
output, so that the saved file grows as with a real model, and not more.
"""

import json
import sys
import time
from pathlib import Path

from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.extra.bubblewrap import BubblewrapEnvironment
from minisweagent.models.test_models import DeterministicModel, make_output


def main() -> None:
    job = json.load(sys.stdin)
    output = make_output("On with it.", [{"command": "true"}], cost=0.0)
    model = DeterministicModel(outputs=[output])
    sandbox = BubblewrapEnvironment()
    trajectory = Path(job["place"]) / "trajectory.json"
    agent = DefaultAgent(
        model,
        sandbox,
        system_template=job["system"],
        instance_template=job["brief"],
        output_path=trajectory,
    )
    for role, text in (("system", job["system"]), ("user", job["brief"])):
        agent.add_messages(model.format_message(role=role, content=text))
    durations = []
    for _ in range(job["steps"]):
        model.current_index = -1
        began = time.perf_counter()
        agent.step()
        agent.save(agent.config.output_path)
        durations.append(time.perf_counter() - began)
    codes = {
        message["extra"]["returncode"]
        for message in agent.messages
        if "returncode" in message.get("extra", {})
    }
    json.dump(
        {"took": durations, "codes": sorted(codes), "saved": trajectory.stat().st_size}, sys.stdout
    )


if __name__ == "__main__":
    main()
