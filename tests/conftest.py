"""Exports that tests share: each model is exported once for all workers of a run."""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from filelock import FileLock

import trueport
from tests import zoo
from tests.proof import foreign
from trueport.resident import resident
from trueport.resume.shelf import PLACE

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "models"

Exported = Callable[[str], Path]
Once = Callable[[str, Callable[[Path], object]], Path]
Exporters = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Two workers share two cores; torch's own logs would fill every report."""
    torch.set_num_threads(1)
    logging.getLogger("torch").setLevel(logging.ERROR)


@pytest.fixture(autouse=True, scope="session")
def _patient_threads() -> Iterator[None]:
    """ONNX Runtime's threads give their core to the other worker while they wait: they spin otherwise."""
    made, entry = onnxruntime.InferenceSession.__init__, "session.intra_op.allow_spinning"

    def patient(self: Any, model: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
        options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        options.add_session_config_entry(entry, "0")
        made(self, model, options, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime.InferenceSession, "__init__", patient)
        yield


GROWTH = 2**29
"""Bytes by which a worker grows before its garbage is looked for."""


@pytest.fixture(autouse=True, scope="session")
def _rare_collections() -> None:
    """A full collection looks at all that torch and the tests brought along: they come as the worker grows, not by count."""
    gc.set_threshold(*gc.get_threshold()[:2], 10_000)


@pytest.fixture(autouse=True)
def _collected(collected: list[int]) -> Iterator[None]:
    yield
    if collected and resident()[0] > collected[0] + GROWTH:
        gc.collect()
        collected[0] = resident()[0]


@pytest.fixture(scope="session")
def collected() -> list[int]:
    """Bytes that the worker had in memory when its garbage was last looked for; empty where the system does not tell."""
    return [resident()[0]] if Path("/proc/self/statm").exists() else []


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What interrupted commands keep is kept here, not at the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLACE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of this run see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def once(shared_folder: Path) -> Once:
    """The folder of a name, written by the first test of any worker that asks for it; do not change it."""

    def get(name: str, write: Callable[[Path], object]) -> Path:
        out = shared_folder / name
        with FileLock(f"{out}.lock"):
            if not out.exists():
                write(out)
        return out

    return get


@pytest.fixture(scope="session")
def exported(once: Once) -> Exported:
    """The folder of a zoo model or of an example, proven, exported on first use; do not change it."""

    def get(name: str) -> Path:
        if (EXAMPLES / name).is_dir():
            return once(name, lambda out: trueport.export(EXAMPLES / name, out))
        return once(name, lambda out: trueport.export(zoo.build(name), out, tokenizer=None))

    return get


@pytest.fixture(scope="session")
def exporters(once: Once) -> Exporters:
    """What transformers.exporters makes of a zoo model, on a sample with padding or without; do not change it."""

    def get(name: str, *, padded: bool = True, generation: bool = True) -> Path:
        mask = foreign.PADDED if padded else torch.ones_like(foreign.PADDED)
        return once(
            f"exporters-{name}-{padded}-{generation}",
            lambda out: foreign.exporters(zoo.build(name), out, mask, generation=generation),
        )

    return get


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Exported:
    """A copy of an exported folder that the test may change."""

    def get(name: str) -> Path:
        return Path(shutil.copytree(exported(name), tmp_path / name))

    return get
