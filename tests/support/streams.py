"""Streams of btrfs send, made by hand or taken from real ones and changed."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from crc32c import crc32c

from buttervolume.hosts.stream import MAGIC, Attribute, Command

HEADER = struct.Struct("<IHI")
STREAM_HEADER_SIZE = 17


@dataclass(frozen=True)
class Cut:
    """A command as it is in a stream."""

    command: int
    body: bytes

    def pack(self) -> bytes:
        return packed(self.command, self.body)


def checksum(data: bytes) -> int:
    """CRC32C as send.c computes it: begun with 0, not inverted at the end."""
    return crc32c(data, 0xFFFFFFFF) ^ 0xFFFFFFFF


def header(version: int = 1) -> bytes:
    return MAGIC + struct.pack("<I", version)


def packed(command: int, body: bytes = b"") -> bytes:
    """A command with its length and CRC."""
    crc = checksum(HEADER.pack(len(body), command, 0) + body)
    return HEADER.pack(len(body), command, crc) + body


def attribute(kind: int, value: bytes | int | UUID) -> bytes:
    if isinstance(value, UUID):
        value = value.bytes
    if isinstance(value, int):
        value = struct.pack("<Q", value)
    return struct.pack("<HH", kind, len(value)) + value


def command(kind: Command, **attributes: bytes | int | UUID) -> bytes:
    """A command by the names of its attributes; `data` as in version 2."""
    body = b""
    for name, value in attributes.items():
        if name == "data":
            assert isinstance(value, bytes)
            body += struct.pack("<H", Attribute.DATA) + value
        else:
            body += attribute(Attribute[name.upper()], value)
    return packed(kind, body)


def commands_of(stream: bytes) -> Iterator[Cut]:
    """The commands of a stream that is whole."""
    at = STREAM_HEADER_SIZE
    while at < len(stream):
        length, kind, _ = HEADER.unpack_from(stream, at)
        at += HEADER.size
        yield Cut(kind, stream[at : at + length])
        at += length


def version_of(stream: bytes) -> int:
    version: int = struct.unpack_from("<I", stream, len(MAGIC))[0]
    return version


def assembled(version: int, commands: list[Cut]) -> bytes:
    return header(version) + b"".join(cut.pack() for cut in commands)
