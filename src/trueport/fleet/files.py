"""Files below one folder or URL: what of fsspec a fleet uses, and what goes wrong there in one kind of error."""

from __future__ import annotations

import errno
import ftplib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trueport.errors import StorageError, TrueportError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PAUSE = 20.0
"""Seconds without a word after which a connection may be gone: FTP servers end them, and fsspec takes what they say then
for a file that is not there."""
PASSWORD = re.compile(r"(?<=://)([^/:@]*):[^/]*@")


class Files:
    """The files of one place, by their paths in it.

    Args:
        url: a folder, or what fsspec takes.
        options: what its file system is opened with.

    Attributes:
        told: the URL without the password that it may hold.
        kinds: fsspec's names of this kind of place.
        renames: whether a folder can be moved into place whole.

    Raises:
        StorageError: there is no such kind of place, or its package is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/") if "://" in url else str(Path(url).absolute())
        if "://" in url and "://" not in self.url:  # s3://$BUCKET without a bucket: else a folder "s3:" here
            raise StorageError(f"{url} names no place behind its ://", "Give the whole URL of a folder.")
        self.told = PASSWORD.sub(r"\1@", self.url)
        self.options = dict(options or {})
        self._system, self.root = self._open()
        self._asked = time.monotonic()
        protocols = self._system.protocol
        self.kinds = {protocols} if isinstance(protocols, str) else set(protocols)
        self.renames = "file" in self.kinds

    @property
    def system(self) -> Any:
        """fsspec's file system, with a connection that is not older than ``PAUSE`` seconds without a word."""
        if time.monotonic() - self._asked > PAUSE:
            self._system, _ = self._open()
        self._asked = time.monotonic()
        return self._system

    def _open(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            system, root = url_to_fs(self.url, **self.options)
        except (ImportError, ValueError) as error:
            reason = " ".join(str(error).split())
            remedy = "Install what its kind of place needs."
            raise StorageError(f"{self.told} cannot be opened: {reason}", remedy) from error
        except Exception as error:
            raise _explained(error, self.told) from error
        return system, str(root).rstrip("/")

    def where(self, name: str) -> str:
        """An artefact's address, as it is told and written down: without a password."""
        return f"{self.told}/{name}"

    def at(self, *parts: str) -> str:
        """A file's or folder's path, as the file system takes it."""
        return "/".join((self.root, *parts))

    def json(self, name: str, path: str) -> Any:
        """What a JSON file holds; None where there is none, or something else."""
        try:
            return json.loads(self.system.cat_file(self.at(name, path)))
        except FileNotFoundError as error:
            _check_answer(error)
        except (NotADirectoryError, ValueError):
            pass
        return None

    def sizes(self, name: str) -> dict[str, int | None]:
        """Every file of a folder with its size, by its relative path."""
        from fsspec import AbstractFileSystem

        place = self.at(name)
        walks = type(self.system).find is AbstractFileSystem.find  # and leaves out what it could not read
        try:
            found = self.system.find(place, detail=True, **({"on_error": "raise"} if walks else {}))
        except FileNotFoundError as error:
            _check_answer(error)
            return {}
        return {path[len(place) + 1 :]: entry.get("size") for path, entry in found.items() if path != place}

    def write(self, path: str, content: Any) -> None:
        """Write a JSON file."""
        self.write_bytes(path, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write a file, and the folder that it lies in."""
        self.parent(path)
        self.system.pipe_file(self.at(path), content)

    def parent(self, path: str) -> None:
        """Make the folder that a file will lie in."""
        self.system.makedirs(self.at(path).rpartition("/")[0], exist_ok=True)

    def move(self, source: str, target: str) -> None:
        """Bring a file to another place of the same store, where none is; a copy may stay."""
        from fsspec import AbstractFileSystem

        self.parent(target)
        if type(self.system).mv is not AbstractFileSystem.mv:  # its own: a renaming, where the other one copies
            with suppress(NotImplementedError):
                self.system.mv(self.at(source), self.at(target))
                return
        self.system.cp_file(self.at(source), self.at(target))

    def remove(self, folder: str) -> None:
        """Remove a folder with all that is in it, if there is one."""
        self.system.invalidate_cache()
        with suppress(FileNotFoundError):
            self.system.rm(self.at(folder), recursive=True)

    @contextmanager
    def telling(self, name: str) -> Iterator[None]:
        """Every kind of place raises its own errors: inside, they become StorageErrors that name this folder."""
        try:
            yield
        except StorageError:
            raise
        except TrueportError as error:
            if no_space(error):
                raise StorageError(error.problem, error.remedy) from error
            raise
        except Exception as error:
            self._asked = float("-inf")  # whatever comes next asks over a connection of its own
            raise _explained(error, self.where(name)) from error


def _check_answer(error: BaseException | None) -> None:
    """Raise OSError where a file that is said not to be there may well be.

    fsspec's FTP says so of every answer that is none, also of those that ask to come again.
    """
    while error is not None:
        if isinstance(error, ftplib.error_temp):
            raise OSError(str(error))
        error = error.__cause__ or error.__context__


def no_space(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return True
        error = error.__cause__ or error.__context__
    return False


def _explained(error: Exception, where: str) -> StorageError:
    if no_space(error):
        return StorageError(f"No space left for {where}", "Free space, or choose another place, and run again.")
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    if isinstance(error, EOFError):
        reason = "the connection was cut"
    if isinstance(error, TypeError):  # an option that is missing, or that nobody knows
        return StorageError(f"{where} cannot be opened: {reason}", "Correct [storage] in the plan.")
    return StorageError(f"{where} cannot be reached: {reason}", "See that it can be written, and run again.")
