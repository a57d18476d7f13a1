"""Checkouts that are kept, each in an image that nothing is written to any more.

Workspaces are laid over them, which takes 17 ms instead of the 400 of checking 8,000 files out. Only root can do that.
"""

import asyncio
import hashlib
import os
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

from osiris.tools.image import KEPT, ImageDisk

Fill = Callable[[ImageDisk], Awaitable[None]]
"""Makes a disk and checks the commit out on it. Raises Refused or Unavailable."""


class Layers:
    """The kept checkouts of this machine; those used longest ago make room."""

    def __init__(self, root: Path, most: int, *, uid: int | None) -> None:
        """`most` is how many bytes they may take together."""
        self._root, self._most, self._uid = root, most, uid
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def get(self, repo: str, commit: str, salt: str, fill: Fill) -> Path:
        """The image of a commit's checkout, made by `fill` when it is not there. `salt` changes with this machine."""
        name = KEPT + hashlib.sha256(f"{repo}\0{commit}\0{salt}".encode()).hexdigest()[:24]
        image = self._root / "@disks" / f"{name}.img"
        async with self._locks[name]:
            if not image.exists():
                await self._make(image, fill)
                await asyncio.to_thread(self._make_room, image)
            os.utime(image)
        return image

    async def _make(self, image: Path, fill: Fill) -> None:
        disk = ImageDisk(self._root, f"@new-{secrets.token_hex(8)}", uid=self._uid)
        try:
            await fill(disk)
            await asyncio.to_thread(disk.put_away, image)
        finally:
            await asyncio.to_thread(disk.remove)

    def _make_room(self, newest: Path) -> None:
        """An image that a workspace lies over goes only from sight: it is there as long as that."""
        images = sorted(newest.parent.glob(f"{KEPT}*.img"), key=lambda image: image.stat().st_mtime)
        total = sum(_size(image) for image in images)
        for image in images:
            if total > self._most and image != newest:
                total -= _size(image)
                image.unlink()


def _size(image: Path) -> int:
    """The bytes that it takes, without its holes."""
    return image.stat().st_blocks * 512
