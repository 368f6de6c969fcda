"""The folder: refused places, whole or not at all, and a manifest that vouches for every file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from trueport.artifact import MANIFEST, changed_files, check_place, list_files, read_manifest, staged, sweep, write_json
from trueport.errors import ArtifactError


def ours(folder: Path, text: str = "old") -> Path:
    folder.mkdir()
    fill(folder, text)
    return folder


def fill(folder: Path, text: str) -> None:
    (folder / "model.onnx").write_text(text)
    write_json(folder / MANIFEST, {"schema_version": 1, "files": list_files(folder)})


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if ".trueport-" in path.name]


def test_a_new_place_appears_whole(tmp_path: Path) -> None:
    with staged(tmp_path / "deep" / "out") as staging:
        (staging / "a").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "a").read_text() == "x"
    assert leftovers(tmp_path / "deep") == []


@pytest.mark.parametrize("out", ["..", ".", "../../out", "../../there/out"])
def test_a_place_may_be_named_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    """``cd out/onnx; trueport optimize ..`` failed at the end, and a killed one left its staging folder in ``out``."""
    place = ours(tmp_path / "out")
    (place / "onnx").mkdir()
    (tmp_path / "there").symlink_to(tmp_path)
    monkeypatch.chdir(place if out == "." else place / "onnx")
    with staged(Path(out)) as staging:
        assert staging.parent == tmp_path.resolve()
        (staging / "model.onnx").write_text("new")
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in place.iterdir()] == ["model.onnx"] and leftovers(tmp_path) == []


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    out = ours(tmp_path / "out")
    with pytest.raises(RuntimeError), staged(out) as staging:
        (staging / "a").write_text("x")
        raise RuntimeError
    assert (out / "model.onnx").read_text() == "old"
    assert leftovers(tmp_path) == []


def test_replacement_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    out = ours(tmp_path / "out")
    with staged(out) as staging:
        (staging / "b").write_text("new")
    assert sorted(path.name for path in out.iterdir()) == ["b"]
    assert leftovers(tmp_path) == []


WRITER = """
import sys, time
from pathlib import Path
from trueport.artifact import staged
with staged(Path(sys.argv[1])) as staging:
    (staging / "half").write_text("x" * 1000)
    print("staged", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["out", "o [1]*"])
def test_sigkill_leaves_the_old_folder_and_the_next_export_sweeps(tmp_path: Path, name: str) -> None:
    out = ours(tmp_path / name)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "staged\n"
        process.kill()
    assert (out / "model.onnx").read_text() == "old"
    assert len(leftovers(tmp_path)) == 1
    with staged(out) as staging:
        (staging / "b").write_text("new")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("early", [True, False])
def test_ctrl_c_while_it_is_tidied_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    """A second Ctrl-C leaves nothing behind either, and one that comes too late is none."""
    out = ours(tmp_path / "out")

    def removing(place: Path, remove: Any = shutil.rmtree, **options: Any) -> None:
        if place.exists():
            signal.raise_signal(signal.SIGINT)
        remove(place, **options)

    before, interrupted = signal.signal(signal.SIGINT, signal.default_int_handler), False
    try:
        with staged(out) as staging:
            (staging / "model.onnx").write_text("new")
            monkeypatch.setattr(shutil, "rmtree", removing)
            if early:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        interrupted = True
    finally:
        signal.signal(signal.SIGINT, before)
        monkeypatch.undo()
    assert interrupted == early
    assert leftovers(tmp_path) == [] and (out / "model.onnx").read_text() == ("old" if early else "new")


SWAPPER = """
import sys
from pathlib import Path
from trueport.artifact import MANIFEST, staged, write_json
for turn in range(10_000):
    with staged(Path(sys.argv[1])) as staging:
        (staging / "first").write_text(str(turn))
        (staging / "second").write_text(str(turn))
        write_json(staging / MANIFEST, {"schema_version": 1, "files": {"first": {}, "second": {}}})
    print(turn, flush=True)
"""


def test_a_folder_that_is_replaced_over_and_over_is_whole_whenever_the_writer_dies(tmp_path: Path) -> None:
    for delay in (0.0, 0.003, 0.011, 0.017, 0.023):
        out = tmp_path / f"out{delay}"
        with subprocess.Popen([sys.executable, "-c", SWAPPER, str(out)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "0\n"
            time.sleep(delay)
            process.kill()
        assert (out / "first").read_text() == (out / "second").read_text()


def test_a_full_disk_is_one_line_and_nothing_is_left(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the write, as a full disk does."""
    script = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom trueport.artifact import staged\n"
        "from trueport.errors import ArtifactError\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    with staged(Path(sys.argv[1])) as s: (s / 'big').write_bytes(b'x' * 5000)\n"
        "except ArtifactError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], capture_output=True, text=True)
    assert "No space left" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    link = tmp_path / "link"
    link.symlink_to(foreign)
    for place in (file, foreign, link):
        for force in (False, True):
            with pytest.raises(ArtifactError):
                check_place(place, force=force)
    with pytest.raises(ArtifactError, match="--force"):
        check_place(ours(tmp_path / "out"), force=False)
    check_place(tmp_path / "out", force=True)
    check_place(tmp_path / "nothing", force=False)
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty", force=False)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError), staged(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")


def test_changed_files_are_named(tmp_path: Path) -> None:
    out = ours(tmp_path / "out")
    manifest = read_manifest(out)
    assert changed_files(out, manifest) == []
    (out / "model.onnx").write_text("new")
    assert "sha256 differs" in changed_files(out, manifest)[0]
    (out / "model.onnx").unlink()
    assert changed_files(out, manifest) == ["model.onnx is missing"]
    manifest["files"]["../../etc/passwd"] = {"sha256": "", "size": 0}
    assert any("outside the folder" in words for words in changed_files(out, manifest))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema_version": 99}', "\udcff"])
def test_a_broken_manifest_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_bytes(os.fsencode(content))
    with pytest.raises(ArtifactError) as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


def test_json_is_the_same_bytes_for_the_same_content(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "ä": [0.1]})
    write_json(tmp_path / "b", {"b": 1, "ä": [0.1]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text()) == {"b": 1, "ä": [0.1]}


def test_force_spares_what_the_manifest_does_not_name(tmp_path: Path) -> None:
    out = ours(tmp_path / "out")
    (out / "notes.txt").write_text("precious")
    with pytest.raises(ArtifactError, match=r"notes\.txt"):
        check_place(out, force=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / MANIFEST).write_text("{}")
    (empty / "thesis.tex").write_text("precious")
    with pytest.raises(ArtifactError, match="did not write"):
        check_place(empty, force=True)


def test_an_export_that_appeared_meanwhile_is_kept_without_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ArtifactError, match="--force"), staged(out, replace=False) as staging:
        (staging / "a").write_text("mine")
        ours(out, "theirs")
    assert (out / "model.onnx").read_text() == "theirs"
    assert leftovers(tmp_path) == []


def test_a_file_that_no_manifest_names_is_reported(tmp_path: Path) -> None:
    out = ours(tmp_path / "out")
    (out / "special_tokens_map.json").write_text("{}")
    assert changed_files(out, read_manifest(out)) == ["special_tokens_map.json is not in the manifest"]


def test_threads_that_export_to_one_place_have_folders_of_their_own(tmp_path: Path) -> None:
    """The second one took the first one's for what a process that is gone had left, and both wrote into one."""
    with staged(tmp_path / "out") as first:
        fill(first, "first")
        with staged(tmp_path / "out") as second:
            fill(second, "second")
            assert (first / "model.onnx").read_text() == "first"
        assert (tmp_path / "out" / "model.onnx").read_text() == "second"
    assert (tmp_path / "out" / "model.onnx").read_text() == "first"
    assert leftovers(tmp_path) == []


def test_the_folder_of_a_process_that_another_container_runs_is_spared(tmp_path: Path) -> None:
    """Its number says nothing here: it may be this process's own."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "staged\n"
            (theirs,) = tmp_path.iterdir()
            same = theirs.rename(theirs.with_name(f".out.trueport-{os.getpid()}"))
            with staged(tmp_path / "out") as staging:
                (staging / "graph").write_text("ours")
            assert (same / "half").exists()
        finally:
            process.kill()
    sweep(tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_what_was_put_into_the_place_meanwhile_is_no_loss(tmp_path: Path) -> None:
    out = ours(tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"did not write \(thesis.tex\)"), staged(out) as staging:
        (staging / "model.onnx").write_text("new")
        (out / "thesis.tex").write_text("mine")
    assert (out / "thesis.tex").read_text() == "mine" and (out / "model.onnx").read_text() == "old"
    assert leftovers(tmp_path) == []


def test_names_that_are_not_utf8_are_told_before_anything_is_done(tmp_path: Path) -> None:
    """No runtime opens what lies under them."""
    out = ours(tmp_path / "o\udcff")
    with pytest.raises(ArtifactError, match="not UTF-8"):
        check_place(tmp_path / "new\udcff" / "out", force=False)
    with pytest.raises(ArtifactError, match="not UTF-8"):
        read_manifest(out)


def test_a_read_only_folder_that_is_replaced_leaves_nothing() -> None:
    """Root removes what is read-only anyhow, so it asks as somebody else, and not below pytest's own folder."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        if root:
            os.chown(place, 65534, -1)
            os.seteuid(65534)
        try:
            out = ours(Path(place) / "out")
            out.chmod(0o555)
            with staged(out) as staging:
                (staging / "b").write_text("new")
            assert leftovers(Path(place)) == [] and (out / "b").is_file()
        finally:
            if root:
                os.seteuid(0)


def test_a_mount_point_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container's volume is: nothing can be moved into its place."""
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda place: Path(place) == out)
    with pytest.raises(ArtifactError, match=r"mount point.*Give a folder in it"):
        check_place(out, force=True)


@pytest.mark.parametrize(
    "name", ["n" * 250, "ü" * 120, "n" * 300, "/".join(["n" * 200] * 25)], ids=["250", "ü", "300", "path"]
)
def test_names_that_are_too_long_are_told_before_any_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=r"too long.*Choose a shorter one"):
        check_place(tmp_path / name, force=False)


def test_the_longest_name_that_is_taken_works(tmp_path: Path) -> None:
    check_place(tmp_path / ("n" * 220), force=False)
    with staged(tmp_path / ("n" * 220)) as staging:
        (staging / "a").write_text("x")


def test_a_place_below_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(ArtifactError, match=r"is not a folder.*Choose another place"),
        staged(tmp_path / "file" / "out"),
    ):
        pytest.fail("the block must not run")


def test_force_spares_a_link_to_a_folder(tmp_path: Path) -> None:
    out = ours(tmp_path / "out")
    (out / "logs").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="logs"):
        check_place(out, force=True)
