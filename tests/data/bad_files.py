"""Makes files that are none, and images that claim more than they hold."""

import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(side: int, *more: bytes) -> bytes:
    """A PNG of black squares with ``side`` pixels, most of whose rows are missing."""
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    rows = zlib.compress(bytes(10_000_000), 9)
    chunks = (chunk(b"IHDR", header), *more, chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _webp(side: int) -> bytes:
    size = struct.pack("<I", side - 1)[:3] * 2
    frame = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + struct.pack("<I", (side - 1) | (side - 1) << 14) + b"\0"
    content = b"WEBP" + b"VP8X" + struct.pack("<II", 10, 0) + size + frame
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _tiff(side: int) -> bytes:
    entries = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, side), (279, 100)]
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(100)


BOMBS = {
    "30,000 x 30,000 PNG": png(30_000),
    "13,000 x 13,000 PNG": png(13_000),
    "PNG with 200 MB of text": png(8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 9))),
    "WebP": _webp(13_000),
    "GIF": (
        b"GIF89a"
        + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0)
        + struct.pack("<cHHHHBB", b",", 0, 0, 60_000, 60_000, 0, 8)
        + b"\x01\x00\x00;"
    ),
    "TIFF": _tiff(30_000),
    "JPEG": b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xdc\xff\xdc\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01" + bytes(100),
    "BMP": b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + struct.pack("<IiiHH", 40, 90_000, 90_000, 1, 24) + bytes(900),
    "PPM": b"P6 40000 40000 255\n" + bytes(900),
}
"""Images of few bytes that would fill the memory."""


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # whose name may have 107 bytes


NO_FILES: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": _socket,
    "a folder": lambda path: path.mkdir(),
}
"""What makes something else than a regular file, by what it is called in messages."""
