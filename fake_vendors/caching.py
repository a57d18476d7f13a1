"""Which part of a prompt a vendor has seen before, in tokens of four characters. What has once been
seen stays."""

import hashlib
from collections.abc import Sequence
from itertools import accumulate

from fake_vendors.wire import Counts


class Cache:
    """One vendor's."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()

    def count(self, model: str, blocks: Sequence[str], marks: Sequence[int] | None) -> Counts:
        """Count a prompt and remember it.

        Only marked prefixes are remembered and read; with `marks` None every prefix of whole blocks
        is.
        """
        sizes = [0, *accumulate(map(len, blocks))]
        digests = _digests(model, blocks)
        ends = range(1, len(sizes)) if marks is None else sorted(set(marks))
        last = ends[-1] if ends else 0
        read = max((at for at in range(1, last + 1) if digests[at] in self._known), default=0)
        self._known.update(digests[at] for at in ends)
        cached = sizes[read] // 4
        return Counts(input=sizes[-1] // 4, cached=cached, written=sizes[last] // 4 - cached)


def _digests(model: str, blocks: Sequence[str]) -> list[bytes]:
    """A digest of each prefix, from the empty one on."""
    running = hashlib.blake2b(model.encode(), digest_size=16)
    found = [running.digest()]
    for block in blocks:
        running.update(b"\0" + block.encode("utf-8", "surrogatepass"))
        found.append(running.copy().digest())
    return found
