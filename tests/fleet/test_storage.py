"""A store: there whole, or not there; in a file system, in memory, and where nothing can be renamed."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests import samples
from trueport.artifact import list_files, write_json
from trueport.errors import StorageError, TrueportError
from trueport.fleet import files, storage
from trueport.fleet.exchange import UNFINISHED
from trueport.fleet.storage import Store


@pytest.fixture(params=["file", "plain", "memory", "quota"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    folder = tmp_path / "store"
    urls = {"file": f"file://{folder}", "plain": str(folder), "quota": f"quota://{folder}"}
    return Store(urls.get(request.param, f"memory://{uuid.uuid4().hex}"))


def _folder(place: Path, **files: str) -> Path:
    """A finished export with these files."""
    place.mkdir()
    for name, text in (files or {"config.json": "{}", "model.onnx": "graph"}).items():
        (place / name).write_text(text)
    write_json(place / "trueport.json", samples.decoder() | {"files": list_files(place)})
    return place


def _names(store: Store, name: str) -> set[str]:
    return set(store.sizes(name))


def test_what_is_published_is_there_for_its_key(store: Store, tmp_path: Path) -> None:
    assert store.committed("one", "k") is None
    size = store.publish(_folder(tmp_path / "a"), "one", "k")
    manifest = store.committed("one", "k")
    assert manifest is not None and manifest["fleet"] == {"name": "one", "key": "k"} and size == 7
    assert _names(store, "one") == {"config.json", "model.onnx", "trueport.json"}
    assert store.committed("one", "other") is None and store.committed("two", "k") is None
    assert store.read("one", "config.json") == {} and store.read("one", "nothing.json") is None


def test_another_export_is_replaced_only_with_force(store: Store, tmp_path: Path) -> None:
    store.publish(_folder(tmp_path / "a", old="1"), "one", "k")
    with pytest.raises(TrueportError, match="earlier export"):
        store.publish(_folder(tmp_path / "b", new="2"), "one", "l")
    assert store.committed("one", "k") is not None
    store.publish(_folder(tmp_path / "c", new="2"), "one", "l", force=True)
    assert store.committed("one", "k") is None and store.committed("one", "l") is not None
    assert _names(store, "one") == {"new", "trueport.json"}


def test_the_same_export_takes_the_place_of_its_damaged_self(store: Store, tmp_path: Path) -> None:
    store.publish(_folder(tmp_path / "a"), "one", "k")
    store.system.rm_file(store.at("one", "model.onnx"))
    assert store.committed("one", "k") is None
    store.publish(_folder(tmp_path / "b"), "one", "k")
    assert store.committed("one", "k") is not None


def test_strangers_stay(store: Store, tmp_path: Path) -> None:
    store.write_text("one/thesis.tex", "x")
    with pytest.raises(TrueportError, match="did not write"):
        store.publish(_folder(tmp_path / "a"), "one", "k", force=True)
    assert _names(store, "one") == {"thesis.tex"}


def test_a_file_that_is_cut_short_is_not_whole(store: Store, tmp_path: Path) -> None:
    store.publish(_folder(tmp_path / "a"), "one", "k")
    store.system.pipe_file(store.at("one", "model.onnx"), b"gra")
    assert store.committed("one", "k") is None


@pytest.mark.parametrize("url", ["memory", "quota"])
@pytest.mark.parametrize("earlier", [False, True])
def test_an_upload_that_was_killed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, earlier: bool
) -> None:
    """At every step: the place never vouches for what is not there whole, and the next attempt takes it over."""

    class Killed(BaseException):
        pass

    for steps in range(20):
        store = Store(f"{url}://{tmp_path}/{uuid.uuid4().hex}")
        if earlier:
            store.publish(_folder(tmp_path / f"{url}{steps}e", old="1", config="3"), "one", "k")
        count = 0

        def counted(real, limit=steps):  # type: ignore[no-untyped-def]
            def call(*args, **options):  # type: ignore[no-untyped-def]
                nonlocal count
                if count == limit:
                    raise Killed
                count += 1
                return real(*args, **options)

            return call

        finished = False
        with monkeypatch.context() as patch:
            for name in ("put_file", "pipe_file", "rm_file"):
                patch.setattr(store.system, name, counted(getattr(store.system, name)))
            try:
                store.publish(_folder(tmp_path / f"{url}{steps}a", config="3", new="22"), "one", "l", force=True)
                finished = True
            except Killed:
                pass
        store.finish("one")
        there = store.committed("one", "l")
        if there is None:
            store.publish(_folder(tmp_path / f"{url}{steps}b", config="3", new="22"), "one", "l", force=earlier)
        store.end("alone")
        assert store.committed("one", "l") is not None
        assert _names(store, "one") == {"config", "new", "trueport.json"}
        assert UNFINISHED not in _names(store, "one")
        if finished:
            return
    raise AssertionError("more steps than there can be")


def test_a_connection_that_was_silent_is_opened_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's FTP takes what a server says as it ends a silent connection for a file that is not there."""
    store.write_text("one/trueport.json", "{}")
    opened = store._system
    monkeypatch.setattr(files, "PAUSE", -1.0)
    monkeypatch.setattr(type(opened), "cachable", False)
    assert store.read("one", "trueport.json") == {} and store._system is not opened


@pytest.mark.parametrize("url", ["s3://", "s3:///", "memory://", "file://", "://", "reference:///"])
def test_a_url_without_a_place_is_no_folder_here(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``s3://$BUCKET`` is where the variable is not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=r"names no place behind its ://"):
        Store(url)
    assert not list(tmp_path.iterdir())


def test_an_option_that_nobody_knows_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"'server'.*Correct \[storage\] in the plan"):
        Store(f"quota://{tmp_path}", {"auto_mkdir": True, "server": 1})


def test_a_password_is_told_to_nobody(tmp_path: Path) -> None:
    for url, told in (
        ("memory://ada:secret@host/exports", "memory://ada@host/exports/one"),
        ("memory://ada:sec@ret@host", "memory://ada@host/one"),
        ("memory://host/e:f@g", "memory://host/e:f@g/one"),
        (str(tmp_path / "a:b@c"), str(tmp_path / "a:b@c" / "one")),
    ):
        assert Store(url).where("one") == told


def test_a_bucket_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BUCKETS", {"memory"})
    name = uuid.uuid4().hex
    store = Store(f"memory://{name}/exports")
    with pytest.raises(StorageError, match=f"there is no bucket {name}"):
        store.begin("run")
    assert not store.system.exists(name)
    store.system.mkdir(f"/{name}")
    store.begin("run")
    assert store.sees("run")


def test_a_mark_is_seen_until_the_run_ends(store: Store) -> None:
    assert not store.sees("r")
    store.begin("r")
    assert store.sees("r") and not store.sees("s")
    store.end("r")
    assert not store.sees("r")


def test_a_time_of_modification_becomes_a_hash_on_its_way(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a")
    stat = (folder / "model.onnx").stat()
    manifest = samples.decoder() | {"files": {"model.onnx": {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}}}
    (folder / "config.json").unlink()
    write_json(folder / "trueport.json", manifest)
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.publish(folder, "one", "k")
    found = store.committed("one", "k")
    assert found is not None and set(found["files"]["model.onnx"]) == {"sha256", "size"}
