"""Packs that no git would write, such as a compromised sandbox could hand to the host.

The format is described in gitformat-pack(5).
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
KIND_NAMES: Final = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob", TAG: b"tag"}
FILE = "100644"
PROGRAM = "100755"
LINK = "120000"
FOLDER = "40000"
GITLINK = "160000"
PERSON: Final = b"a <a@x> 1 +0000"
_ONE_MIB: Final = bytes(1 << 20)


@dataclass(frozen=True)
class PackObject:
    """A whole object of a pack."""

    kind: int
    content: bytes

    @cached_property
    def id(self) -> str:
        return hashlib.sha1(
            b"%s %d\0%s" % (KIND_NAMES[self.kind], len(self.content), self.content)
        ).hexdigest()

    def to_bytes(self) -> bytes:
        return _encode_header(self.kind, len(self.content)) + zlib.compress(self.content, 1)


@dataclass(frozen=True)
class StoredBlob:
    """A file that is stored in a pack without compression."""

    content: bytes

    def to_bytes(self) -> bytes:
        return _encode_header(BLOB, len(self.content)) + zlib.compress(self.content, 0)


@dataclass(frozen=True)
class ZeroBlob:
    """A file of `mib` MiB of zeros, which takes a thousandth of that in a pack, and no time to
    build."""

    mib: int

    @cached_property
    def id(self) -> str:
        digest = hashlib.sha1(b"blob %d\0" % (self.mib << 20))
        for _ in range(self.mib):
            digest.update(_ONE_MIB)
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """Repeat one deflated piece: zlib's format is a header, the pieces, an end, and a
        checksum."""
        stream = zlib.compressobj(1, zlib.DEFLATED, -15)
        piece = stream.compress(_ONE_MIB) + stream.flush(zlib.Z_FULL_FLUSH)
        checksum = ((self.mib << 20) % 65521) << 16 | 1  # Adler-32 of zeros
        whole = b"\x78\x01" + piece * self.mib + b"\x03\x00" + checksum.to_bytes(4, "big")
        return _encode_header(BLOB, self.mib << 20) + whole


@dataclass(frozen=True)
class PackDelta:
    """An object that instructions build from the object with the id `base`."""

    base: str
    instructions: bytes

    def to_bytes(self) -> bytes:
        head = _encode_header(REF_DELTA, len(self.instructions)) + bytes.fromhex(self.base)
        return head + zlib.compress(self.instructions, 1)


Entry = tuple[str, str | bytes, "PackObject | str"]
"""(mode, name, the object or its id) in a folder."""


def make_blob(content: bytes) -> PackObject:
    return PackObject(BLOB, content)


def make_tree(*entries: Entry, sort: bool = True) -> PackObject:
    rows = [
        (mode, _encode_name(name), entry if isinstance(entry, str) else entry.id)
        for mode, name, entry in entries
    ]
    if sort:
        rows.sort(key=lambda row: row[1] + (b"/" if row[0].endswith(FOLDER) else b""))
    return PackObject(
        TREE,
        b"".join(
            b"%s %s\0%s" % (mode.encode(), name, bytes.fromhex(id_)) for mode, name, id_ in rows
        ),
    )


def make_commit(target: PackObject) -> PackObject:
    return PackObject(
        COMMIT, b"tree %s\nauthor %s\ncommitter %s\n\nmade\n" % (target.id.encode(), PERSON, PERSON)
    )


def make_tag(target: PackObject, name: bytes = b"t") -> PackObject:
    return PackObject(
        TAG,
        b"object %s\ntype tree\ntag %s\ntagger %s\n\nmade\n" % (target.id.encode(), name, PERSON),
    )


def build_pack(
    objects: Iterable["PackObject | PackDelta | StoredBlob | ZeroBlob"],
    *,
    count: int | None = None,
) -> bytes:
    """Return a pack. `count` overrides the number of objects that it states."""
    parts = [one.to_bytes() for one in objects]
    return add_checksum(
        b"PACK"
        + (2).to_bytes(4, "big")
        + (len(parts) if count is None else count).to_bytes(4, "big"),
        parts,
    )


def add_checksum(head: bytes, parts: Sequence[bytes] = ()) -> bytes:
    """Return the header and the parts with their checksum at the end."""
    whole = head + b"".join(parts)
    return whole + hashlib.sha1(whole).digest()


def encode_copies(size: int, times: int) -> bytes:
    """Return instructions of a delta that copy a base of `size` bytes `times` times."""
    return (
        _encode_varint(size)
        + _encode_varint(size * times)
        + (b"\xf0" + size.to_bytes(3, "little")) * times
    )


def encode_copy_beyond_end(size: int) -> bytes:
    """Return instructions of a delta that copy bytes behind the end of a base of `size` bytes."""
    return _encode_varint(size) + _encode_varint(64) + b"\x91" + bytes([size]) + b"\x40"


def build_lying_index(pack_object: PackObject, alias: str, pack: bytes) -> bytes:
    """Return an index of the pack `pack`, which holds one object, that gives the object the id
    `alias`."""
    first = int(alias[:2], 16)
    fanout = b"".join((1 if byte >= first else 0).to_bytes(4, "big") for byte in range(256))
    crc = zlib.crc32(pack_object.to_bytes()).to_bytes(4, "big")
    return add_checksum(
        b"\xfftOc\0\0\0\2"
        + fanout
        + bytes.fromhex(alias)
        + crc
        + (12).to_bytes(4, "big")
        + pack[-20:]
    )


def _encode_header(kind: int, size: int) -> bytes:
    first = size & 15
    rest = size >> 4
    return bytes([(0x80 if rest else 0) | kind << 4 | first]) + (
        _encode_varint(rest) if rest else b""
    )


def _encode_varint(number: int) -> bytes:
    encoded = []
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _encode_name(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode()
