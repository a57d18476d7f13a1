"""Hostile commands: what runs inside a sandbox wants out, or wants the machine."""


def test_the_environment_of_the_worker(attacked, verdict):
    script = "cat /proc/*/environ | tr '\\0' '\\n'"
    assert attacked.canary in attacked.unprotected(script)
    seen = attacked.bash(script).output.decode()
    assert "HOME=/home/agent" in seen
    assert attacked.canary not in seen
    verdict("own environment only", "the worker's environment was read")
