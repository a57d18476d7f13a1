"""Packs as nobody's git makes them: what a collecting sandbox that was taken over could hand to the
host.

The format: gitformat-pack(5).
"""

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

COMMIT = 1
TREE = 2
BLOB = 3
TAG = 4
OFS_DELTA = 6
REF_DELTA = 7
NAMES: Final = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob", TAG: b"tag"}
FILE = "100644"
PROGRAM = "100755"
LINK = "120000"
FOLDER = "40000"
GITLINK = "160000"
WHO: Final = b"a <a@x> 1 +0000"
_ONE_MIB: Final = bytes(1 << 20)


@dataclass(frozen=True)
class PackObject:
    """One object of a pack."""

    kind: int
    content: bytes

    @cached_property
    def id(self) -> str:
        return hashlib.sha1(
            b"%s %d\0%s" % (NAMES[self.kind], len(self.content), self.content)
        ).hexdigest()

    def packed(self) -> bytes:
        return _head(self.kind, len(self.content)) + zlib.compress(self.content, 1)


@dataclass(frozen=True)
class Stored:
    """A file that is packed as large as it is."""

    content: bytes

    def packed(self) -> bytes:
        return _head(BLOB, len(self.content)) + zlib.compress(self.content, 0)


@dataclass(frozen=True)
class Zeros:
    """A file of so many MiB of zeros; it takes a thousandth of that, and no time to make."""

    mib: int

    @cached_property
    def id(self) -> str:
        digest = hashlib.sha1(b"blob %d\0" % (self.mib << 20))
        for _ in range(self.mib):
            digest.update(_ONE_MIB)
        return digest.hexdigest()

    def packed(self) -> bytes:
        """One piece of deflate over and over: zlib's format is a head, the pieces, an end, and a
        checksum."""
        stream = zlib.compressobj(1, zlib.DEFLATED, -15)
        piece = stream.compress(_ONE_MIB) + stream.flush(zlib.Z_FULL_FLUSH)
        checksum = ((self.mib << 20) % 65521) << 16 | 1  # Adler-32 of zeros
        whole = b"\x78\x01" + piece * self.mib + b"\x03\x00" + checksum.to_bytes(4, "big")
        return _head(BLOB, self.mib << 20) + whole


@dataclass(frozen=True)
class PackDelta:
    """An object that is made from the one named `base` by instructions."""

    base: str
    instructions: bytes

    def packed(self) -> bytes:
        head = _head(REF_DELTA, len(self.instructions)) + bytes.fromhex(self.base)
        return head + zlib.compress(self.instructions, 1)


Entry = tuple[str, str | bytes, "PackObject | str"]
"""(mode, name, the thing or its id) in a folder."""


def blob(content: bytes) -> PackObject:
    return PackObject(BLOB, content)


def tree(*entries: Entry, sort: bool = True) -> PackObject:
    rows = [
        (mode, _bytes(name), thing if isinstance(thing, str) else thing.id)
        for mode, name, thing in entries
    ]
    if sort:
        rows.sort(key=lambda row: row[1] + (b"/" if row[0].endswith(FOLDER) else b""))
    return PackObject(
        TREE,
        b"".join(
            b"%s %s\0%s" % (mode.encode(), name, bytes.fromhex(id_)) for mode, name, id_ in rows
        ),
    )


def commit(of: PackObject) -> PackObject:
    return PackObject(
        COMMIT, b"tree %s\nauthor %s\ncommitter %s\n\nmade\n" % (of.id.encode(), WHO, WHO)
    )


def tag(of: PackObject, name: bytes = b"t") -> PackObject:
    return PackObject(
        TAG, b"object %s\ntype tree\ntag %s\ntagger %s\n\nmade\n" % (of.id.encode(), name, WHO)
    )


def pack(
    things: Iterable["PackObject | PackDelta | Stored | Zeros"], *, count: int | None = None
) -> bytes:
    """A whole pack; `count` is a lie about how many things are in it."""
    parts = [thing.packed() for thing in things]
    return sealed(
        b"PACK"
        + (2).to_bytes(4, "big")
        + (len(parts) if count is None else count).to_bytes(4, "big"),
        parts,
    )


def sealed(head: bytes, parts: Sequence[bytes] = ()) -> bytes:
    """With the checksum at its end."""
    whole = head + b"".join(parts)
    return whole + hashlib.sha1(whole).digest()


def copies(size: int, times: int) -> bytes:
    """Instructions of a delta: `times` copies of a base of `size` bytes."""
    return _varint(size) + _varint(size * times) + (b"\xf0" + size.to_bytes(3, "little")) * times


def beyond(size: int) -> bytes:
    """Instructions that copy what lies behind the end of a base of `size` bytes."""
    return _varint(size) + _varint(64) + b"\x91" + bytes([size]) + b"\x40"


def lying_index(thing: PackObject, alias: str, of: bytes) -> bytes:
    """The index of a pack `of` with one thing, that calls it `alias`."""
    first = int(alias[:2], 16)
    fanout = b"".join((1 if byte >= first else 0).to_bytes(4, "big") for byte in range(256))
    crc = zlib.crc32(thing.packed()).to_bytes(4, "big")
    return sealed(
        b"\xfftOc\0\0\0\2"
        + fanout
        + bytes.fromhex(alias)
        + crc
        + (12).to_bytes(4, "big")
        + of[-20:]
    )


def _head(kind: int, size: int) -> bytes:
    first = size & 15
    rest = size >> 4
    return bytes([(0x80 if rest else 0) | kind << 4 | first]) + (_varint(rest) if rest else b"")


def _varint(number: int) -> bytes:
    found = []
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _bytes(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode()
