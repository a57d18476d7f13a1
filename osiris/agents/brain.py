"""Which model thinks: the only file that knows vendors."""

from pathlib import Path

from osiris.agents.scripted import ScriptedBrain
from osiris.errors import Refused
from osiris.ports import Brain

VENDORS = ("scripted",)


def brain(model: str) -> Brain:
    """The brain that OSIRIS_MODEL names as VENDOR:MODEL. Raises Refused for one that does not exist here."""
    vendor, _, name = model.partition(":")
    match vendor:
        case "scripted":
            return ScriptedBrain.from_file(Path(name))
        case "":
            raise Refused("no model is configured; the operator sets OSIRIS_MODEL, for example scripted:script.yml")
    raise Refused(f"there is no model vendor {vendor!r} here; there are: {', '.join(VENDORS)}")
