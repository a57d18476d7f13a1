"""The other side of a step: mini-swe-agent's loop, its deterministic model, its bubblewrap, its
trajectory file.

Run by the python of an environment that holds mini-swe-agent. The model has one output, given again
and again, so that what is saved grows as with a real model and no further.
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
    place = Path(job["place"]) / "trajectory.json"
    agent = DefaultAgent(
        model,
        sandbox,
        system_template=job["system"],
        instance_template=job["brief"],
        output_path=place,
    )
    for role, text in (("system", job["system"]), ("user", job["brief"])):
        agent.add_messages(model.format_message(role=role, content=text))
    took = []
    for _ in range(job["steps"]):
        model.current_index = -1
        began = time.perf_counter()
        agent.step()
        agent.save(agent.config.output_path)
        took.append(time.perf_counter() - began)
    codes = {
        message["extra"]["returncode"]
        for message in agent.messages
        if "returncode" in message.get("extra", {})
    }
    json.dump({"took": took, "codes": sorted(codes), "saved": place.stat().st_size}, sys.stdout)


if __name__ == "__main__":
    main()
