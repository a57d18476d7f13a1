"""The hub's world on disk, so that a hub that ended or was killed can continue."""

import io
import itertools
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osiris.config.atomic_file import replace_file
from osiris.core.errors import Refused
from osiris.devhub.world import World

# attributes of the process, not of the saved world
_LEFT_OUT = ("clock", "listeners", "folder", "url", "_ids")
_FORMER_MODULES: Mapping[str, str] = {"things": "models", "repos": "git_repository"}
_FORMER_CLASSES: Mapping[str, str] = {
    "Git": "GitRepository",
    "Review": "PullReview",
    "Said": "AuthoredText",
    "Thing": "Resource",
    "Thread": "ReviewThread",
}
"""The names that an earlier version gave modules and classes, and their names now."""


def save_world(world: World, path: Path) -> None:
    """Write the whole world atomically. Only the owner may read the file, because it contains
    keys."""
    kept = {name: value for name, value in vars(world).items() if name not in _LEFT_OUT}
    kept["last_id"] = world.next_id()
    with replace_file(path) as file:
        pickle.dump(kept, file)


def load_world(world: World, path: Path) -> bool:
    """Fill a new world with a saved one. Return False when there is none. Raises Refused for a file
    that this version did not write."""
    try:
        kept: dict[str, Any] = _WorldReader(io.BytesIO(path.read_bytes())).load()
    except FileNotFoundError:
        return False
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise Refused(f"{path} was not written by this version: {error}") from None
    world._ids = itertools.count(kept.pop("last_id") + 1)
    vars(world).update(kept)
    return True


class _WorldReader(pickle.Unpickler):
    """A reader of our own files, also of those that an earlier version wrote."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class by the name that it had when it was written."""
        package, _, last = module.rpartition(".")
        if package == "osiris.devhub" and last in _FORMER_MODULES:
            module = f"{package}.{_FORMER_MODULES[last]}"
            name = _FORMER_CLASSES.get(name, name)
        return super().find_class(module, name)
