"""The hub's world on disk, so that a hub that ended or was killed can continue."""

import itertools
import pickle
from pathlib import Path
from typing import Any

from osiris.config.atomic_file import replace_file
from osiris.core.errors import Refused
from osiris.devhub.world import World

# attributes of the process, not of the saved world
_LEFT_OUT = ("clock", "listeners", "folder", "url", "_ids")


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
        kept: dict[str, Any] = pickle.loads(path.read_bytes())  # noqa: S301 - our own file in our own folder
    except FileNotFoundError:
        return False
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise Refused(f"{path} was not written by this version: {error}") from None
    world._ids = itertools.count(kept.pop("last_id") + 1)
    vars(world).update(kept)
    return True
