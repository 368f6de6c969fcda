"""Where in a TOML file a key stands: Python's reader does not keep it, and a message without a line is half a message."""

from __future__ import annotations

import re

HEADER = re.compile(r"^\s*(\[\[?)\s*([\w.\"'-]+)\s*\]\]?\s*(#.*)?$")


class Lines:
    """The lines of one file.

    Args:
        text: of the file.
        entries: how many entries of ``[[model]]`` its reader found; where the text seems to hold another number (tables
            written in line, headers within texts), no lines are told.
    """

    def __init__(self, text: str, entries: int) -> None:
        self.lines = text.splitlines()
        found = [(number, HEADER.match(line)) for number, line in enumerate(self.lines)]
        self.headers = [(number, match[1] == "[[", match[2]) for number, match in found if match]
        self.models = [number for number, several, name in self.headers if several and name == "model"]
        self.known = len(self.models) == entries

    def of_entry(self, index: int, key: str = "") -> int | None:
        """The line, from 1 on, of an entry, or of a key in it; None where it cannot be told."""
        return self._in_table(self.models[index], key) if self.known else None

    def of_table(self, name: str, key: str = "") -> int | None:
        """The line of a table such as ``[defaults]``, or of a key in it; of the first lines when it has no name."""
        if not name:
            return self._in_table(-1, key)
        starts = [number for number, several, found in self.headers if found == name and not several]
        return self._in_table(starts[0], key) if len(starts) == 1 else None

    def _in_table(self, start: int, key: str) -> int | None:
        if key:
            end = min((number for number, _, _ in self.headers if number > start), default=len(self.lines))
            pattern = re.compile(rf"^\s*[\"']?{re.escape(key)}[\"']?\s*[.=]")
            for number in range(start + 1, end):
                if pattern.match(self.lines[number]):
                    return number + 1
        return start + 1 if start >= 0 else None
