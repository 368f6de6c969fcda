"""A store without renames, and with an end: ``quota:///folder``, of which ``folder/.quota`` gives the bytes."""

from __future__ import annotations

import errno
import ftplib
import os
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem


class QuotaFileSystem(LocalFileSystem):
    """Files on disk, as an object store would show them."""

    protocol = ("quota",)

    def __init__(self, *, auto_mkdir: bool = False) -> None:
        super().__init__(auto_mkdir=auto_mkdir)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(path).removeprefix("quota://").rstrip("/")

    def put_file(self, lpath: str, rpath: str, *args: Any, **options: Any) -> None:
        self._reserve(rpath, os.path.getsize(lpath))
        super().put_file(lpath, rpath, *args, **options)

    def pipe_file(self, path: str, value: bytes, *args: Any, **options: Any) -> None:
        self._reserve(path, len(value))
        super().pipe_file(path, value, *args, **options)

    def rm_file(self, path: str) -> None:
        if not os.path.exists(path):
            raise ftplib.error_perm("550 No such file or directory.")  # what fsspec's FTP says, which is no OSError
        super().rm_file(path)

    def mv(self, *args: Any, **options: Any) -> None:
        raise NotImplementedError("there is no renaming here")

    mv_file = mv

    def _reserve(self, path: str, size: int) -> None:
        for folder in Path(path).parents:
            if (folder / ".quota").is_file():
                used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                if used + size > int((folder / ".quota").read_text()):
                    raise OSError(errno.ENOSPC, "No space left on device")
