"""What a ``.pte`` says of itself in its first bytes, read before the runtime does, which may abort on a broken one."""

from __future__ import annotations

import struct
from pathlib import Path

from trueport.errors import ArtifactError

IDENTIFIER = b"ET12"
"""The flatbuffer's file identifier, at byte 4: ExecuTorch 1.4's (schema/program.fbs)."""
MAGIC = b"eh00"
"""The extended header's, at byte 8 (schema/extended_header.cpp)."""
LAYOUT = struct.Struct("<4sIQQ")
"""Magic, header length, program size, and where the segments begin."""


def check_file(path: Path) -> None:
    """Refuse what is no program of a version that this ExecuTorch reads, or not the whole of one.

    Raises:
        ArtifactError: one line says which.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(64)
    identifier = head[4:8]
    if identifier[:2] != b"ET":
        raise ArtifactError(f"{path.name} is no ExecuTorch program", "Export again.")
    if identifier != IDENTIFIER:
        raise ArtifactError(
            f"{path.name} was written in ExecuTorch's format {identifier.decode('ascii', 'replace')}; "
            f"the installed one reads {IDENTIFIER.decode()}",
            "Export again with the ExecuTorch that runs it.",
        )
    if len(head) < 8 + LAYOUT.size:
        raise ArtifactError(f"{path.name} is cut short or broken", "Export again.")
    if head[8:12] != MAGIC:
        return  # a program without weights and delegates has no such header; the runtime's own check covers all of it
    _, length, program, segments = LAYOUT.unpack_from(head, 8)
    end = program
    if length >= 32 and segments:
        (segment_bytes,) = struct.unpack_from("<Q", head, 32)
        end = max(end, segments + segment_bytes)
    if size < end:
        raise ArtifactError(f"{path.name} is cut short: {size} bytes of {end}", "Export again.")
