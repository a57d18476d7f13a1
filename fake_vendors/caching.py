"""The prompt cache of a vendor: which part of a prompt it has seen before, in tokens of four
characters. Nothing is removed from the cache."""

import hashlib
from collections.abc import Sequence
from itertools import accumulate

from fake_vendors.wire import TokenCounts


class PromptCache:
    """The cache of one vendor."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()

    def count_tokens(
        self, model: str, blocks: Sequence[str], marks: Sequence[int] | None
    ) -> TokenCounts:
        """Count the tokens of a prompt, and remember it.

        Only marked prefixes are remembered and read; if `marks` is None, every prefix of whole
        blocks is.
        """
        sizes = [0, *accumulate(map(len, blocks))]
        digests = _list_digests(model, blocks)
        ends = range(1, len(sizes)) if marks is None else sorted(set(marks))
        last = ends[-1] if ends else 0
        cached_blocks = max(
            (end for end in range(1, last + 1) if digests[end] in self._known), default=0
        )
        self._known.update(digests[end] for end in ends)
        cached = sizes[cached_blocks] // 4
        return TokenCounts(input=sizes[-1] // 4, cached=cached, written=sizes[last] // 4 - cached)


def _list_digests(model: str, blocks: Sequence[str]) -> list[bytes]:
    """Return a digest of each prefix, beginning with the empty one."""
    running = hashlib.blake2b(model.encode(), digest_size=16)
    digests = [running.digest()]
    for block in blocks:
        running.update(b"\0" + block.encode("utf-8", "surrogatepass"))
        digests.append(running.copy().digest())
    return digests
