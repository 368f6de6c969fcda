"""All that a finished component depends on, as one digest: where anything of it differs, nothing is taken over."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.artifact import sha256
from trueport.weights.linked import is_fake

if TYPE_CHECKING:
    from trueport.roles import Component
    from trueport.source import Source
    from trueport.weights.linked import Checkpoint

OWN = ("transformers", "torch")
"""Packages whose modules a model may be made of; code from anywhere else may do what no digest sees."""
CODE = (
    "trueport", "torch", "transformers", "safetensors", "tokenizers", "numpy", "sympy", "onnx", "onnx_ir", "onnxscript",
    "onnxruntime", "libcst", "executorch", "torchao", "flatbuffers",
)  # fmt: skip
"""Packages that have a part in how a component comes out."""
READ = 64 * 1024 * 1024
"""Bytes of the largest file beside the weights whose content is hashed; of a larger one size and time count."""
ELSEWHERE = ("meter", "notes", "shelf", "proof_memory", "calibration", "weights")
"""Options that say how an export goes on, not what its graphs are; of a calibration the prompts themselves count. Where
hard links cannot be made, the graphs are there for the copy."""
SETTINGS = ("PYTHONHASHSEED", "TORCH", "PYTORCH", "TRANSFORMERS_", "ONNX", "ORT_", "EXECUTORCH", "FLATC")
"""How environment variables begin that change what these packages do."""


def key_of(source: Source, options: Mapping[str, Any], hashes: Mapping[Path, str] | None = None) -> str | None:
    """The digest of all that the components of an export have in common; None where nothing may be kept.

    That is so for a live module, for a checkpoint that has to be loaded whole, and for models with code of their own: a
    file's digest does not tell what it imports.

    Args:
        source: what is exported.
        options: of the export.
        hashes: sha256 of the checkpoint's files, where they were asked for.
    """
    checkpoint = getattr(source, "checkpoint", None)
    if checkpoint is None or any(_package(kind) not in OWN for kind in _classes(source.model)):
        return None
    try:
        return _digest(_facts(source, checkpoint, options, hashes))
    except (OSError, TypeError, ValueError):  # a file that cannot be read, or a config that JSON cannot hold
        return None


def _facts(
    source: Source, checkpoint: Checkpoint, options: Mapping[str, Any], hashes: Mapping[Path, str] | None
) -> dict[str, Any]:
    return {
        "python": [platform.python_version(), platform.machine(), *sorted(_settings())],
        "code": list(_code(CODE)),
        "model": [_name(type(source.model)), source.role, source.task, source.dtype, list(source.untrained)],
        "config": source.model.config.to_dict(),
        "options": {name: value for name, value in options.items() if name not in ELSEWHERE},
        "files": sorted(_folder({file.path.parent for file in checkpoint.files})),
        "checkpoint": [[str(f.path), os.path.realpath(f.path), f.size, f.mtime_ns] for f in checkpoint.files],
        "tensors": {name: str(tensor.leaf) for name, tensor in checkpoint.tensors.items()},
        "hashes": sorted((hashes or {}).values()),
    }


def component_key(key: str, target: str, component: Component) -> str:
    """The digest of one component of an export for one target."""
    return _digest({
        "export": key,
        "target": target,
        "name": [component.name, component.stem, component.bounded, _name(type(component.module))],
        "interface": component.interface.to_json(),
        "sizes": dict(component.sizes),
        "loaded": not is_fake(component.module),
    })  # fmt: skip


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _classes(model: Any) -> Iterator[type]:
    for kind in {type(module) for module in model.modules()}:
        yield from (base for base in kind.__mro__ if base is not object)


def _package(kind: type) -> str:
    name = kind.__module__.partition(".")[0]
    return "torch" if name in ("builtins", "typing", "abc") else name


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _settings() -> Iterator[str]:
    return (f"{name}={value}" for name, value in os.environ.items() if name.startswith(SETTINGS))


def _code(packages: Iterable[str]) -> Iterator[str]:
    """Place, size and time of every source and every library: versions do not tell a package that was edited in place."""
    for package in packages:
        spec = find_spec(package)
        for top in [] if spec is None else spec.submodule_search_locations or []:
            for folder, inner, names in os.walk(top):
                inner[:] = sorted(name for name in inner if name != "__pycache__")
                for name in sorted(names):
                    if name.endswith((".py", ".so", ".pyd", ".dylib", ".fbs")):
                        stat = os.stat(os.path.join(folder, name))
                        yield f"{folder}/{name} {stat.st_size} {stat.st_mtime_ns}"


def _folder(folders: Iterable[Path]) -> Iterator[str]:
    """Every file beside the weights: configs, and whatever else is read from there."""
    for folder in folders:
        for path in folder.iterdir():
            if path.is_file() and path.suffix != ".safetensors":
                stat = path.stat()
                yield f"{path} {sha256(path) if stat.st_size <= READ else (stat.st_size, stat.st_mtime_ns)}"
