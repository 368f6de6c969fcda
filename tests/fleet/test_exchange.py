"""Where nothing can be renamed: the old artefact is whole until the new one is, and a cut exchange is finished."""

from __future__ import annotations

import ftplib
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.test_storage import _folder, _names
from trueport.errors import StorageError
from trueport.fleet.exchange import UNFINISHED, WORKSHOP
from trueport.fleet.storage import Store

RUN = "r1"


@pytest.fixture(params=["memory", "quota"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    found = Store(f"{request.param}://{tmp_path}/{uuid.uuid4().hex}", {"skip_instance_cache": True})
    found.publish(_folder(tmp_path / "old", old="1", config="3"), "one", "k", run=RUN)
    return found


def _content(store: Store, name: str) -> dict[str, bytes]:
    return {path: store.system.cat_file(store.at(name, path)) for path in _names(store, name)}


def _cut(patch: pytest.MonkeyPatch, store: Store, steps: int, error: BaseException) -> None:
    """After so many steps that change the store, every further one fails."""
    count = 0

    def counted(real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count > steps:
                raise error
            return real(*args, **options)

        return call

    for name in ("put_file", "pipe_file", "rm_file", "cp_file", "rm"):
        patch.setattr(type(store.system), name, counted(getattr(type(store.system), name)))


@pytest.mark.parametrize("how", ["killed", "gone"])
def test_a_replacement_that_is_cut_at_any_step_loses_neither(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Killed, or the store is gone: either the old one is there as it was, or the new one, at the latest when finished."""

    class Killed(BaseException):
        pass

    error = Killed() if how == "killed" else OSError(5, "the connection is gone")
    old, untouched, finished = _content(store, "one"), 0, 0
    for steps in range(40):
        new = _folder(tmp_path / f"new{steps}", config="3", new="22")
        ended = False
        with monkeypatch.context() as patch:
            _cut(patch, store, steps, error)
            try:
                store.publish(new, "one", "l", force=True, run=RUN)
                ended = True
            except (Killed, StorageError):
                pass
        if _content(store, "one") == old:
            untouched += 1
        store.end(RUN)  # as the next run does first
        there = store.committed("one", "l")
        assert there is not None or _content(store, "one") == old, steps
        assert not store.system.exists(store.at(WORKSHOP)), steps
        assert UNFINISHED not in _names(store, "one"), steps
        if there is not None:
            assert _names(store, "one") == {"config", "new", "trueport.json"}
            finished += 1
            if ended:
                break
            store.publish(_folder(tmp_path / f"back{steps}", old="1", config="3"), "one", "k", force=True, run=RUN)
            old = _content(store, "one")
    else:
        raise AssertionError("more steps than there can be")
    assert untouched >= 4 and finished >= 4  # the files and the manifest of the new one; the exchange


def test_a_store_that_stays_broken_keeps_the_new_one_until_it_is_not(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep of a run removes nothing that a cut exchange still needs."""
    with monkeypatch.context() as patch:
        patch.setattr(store, "move", _refuse)
        with pytest.raises(StorageError, match="the connection is gone"):
            store.publish(_folder(tmp_path / "new", new="22"), "one", "l", force=True, run=RUN)
        assert store.end(RUN) is False
        assert store.committed("one", "l") is None and store.committed("one", "k") is None
    assert store.end(RUN) is True
    assert store.committed("one", "l") is not None and _names(store, "one") == {"new", "trueport.json"}


def test_a_mark_that_points_elsewhere_is_not_followed(store: Store) -> None:
    """Who can write a mark could else have any place copied over an artefact, and removed."""
    store.write_text("elsewhere/trueport.json", '{"files": {}}')
    for place in ("elsewhere", f"{WORKSHOP}/../elsewhere", f"{WORKSHOP}/{RUN}/two.1", 7):
        store.write(f"one/{UNFINISHED}", {"key": "l", "files": [], "staged": place})
        store.finish("one")
        assert store.committed("one", "k") is not None
    assert store.read("elsewhere", "trueport.json") == {"files": {}}


def _refuse(*args: Any, **options: Any) -> None:
    raise OSError(5, "the connection is gone")


@pytest.mark.parametrize("store", ["quota"], indirect=True)
def test_a_server_that_is_busy_is_no_empty_place(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's FTP takes a 425 for a file that is not there: the old artefact would be overwritten, without a --force."""

    def busy(self: Any, path: str, *args: Any, **options: Any) -> Any:
        try:
            raise ftplib.error_temp("425 Can't open data connection.")
        except ftplib.Error as error:
            raise FileNotFoundError(path) from error

    old = _content(store, "one")
    with monkeypatch.context() as patch:
        patch.setattr(type(store.system), "cat_file", busy)
        patch.setattr(type(store.system), "ls", busy)
        for ask in (
            lambda: store.publish(_folder(tmp_path / "new", new="22"), "one", "l", run=RUN),
            lambda: store.committed("one", "k"),
            lambda: store.check("one", "l", force=True),
        ):
            with pytest.raises(StorageError, match="425 Can't open data"):
                ask()
        with pytest.raises(OSError, match="425 Can't open data"):
            store.sizes("one")
    assert _content(store, "one") == old


@pytest.mark.parametrize("store", ["quota"], indirect=True)
def test_behind_an_error_a_new_connection_is_opened(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """FTP's is dead once it was cut: the report of a run whose worker could go on would be lost to it."""

    def cut(*args: Any, **options: Any) -> None:
        raise EOFError

    monkeypatch.setattr(type(store.system), "cachable", False)
    monkeypatch.setattr(store.system, "pipe_file", cut)
    with pytest.raises(StorageError, match="cannot be reached: the connection was cut"):
        store.write_text("report", "words")
    store.write_text("report", "words")
