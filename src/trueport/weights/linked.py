"""A checkpoint's model without its weights: shapes to trace, and for each parameter where its values lie."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from trueport.artifact import sha256
from trueport.assets import read_generation_config
from trueport.checkpoint import read_safetensors, refuse
from trueport.errors import TrueportError
from trueport.progress import Meter
from trueport.weights.lazy import TORCH_DTYPES, LazyTensor, Span, leaf
from trueport.weights.patterns import late_patterns

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ORIGIN = "_trueport_origin"
"""Attribute of a parameter without memory: the LazyTensor that tells its values."""


class UnlinkableError(TrueportError):
    """This checkpoint has to be loaded whole."""


@dataclass(frozen=True)
class Identity:
    """What a file was when it was first looked at."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Identity:
        """Of a file as it is now; symbolic links, as the hub's cache has them, are followed."""
        stat = path.stat()
        return cls(Path(os.path.abspath(path)), stat.st_size, stat.st_mtime_ns)

    @property
    def changed(self) -> bool:
        """Whether the file is another one by now."""
        try:
            return Identity.of(self.path) != self
        except OSError:
            return True


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint and the tensors in them."""

    files: tuple[Identity, ...]
    tensors: dict[str, LazyTensor]

    def hashes(self, meter: Meter | None = None) -> dict[Path, str]:
        """sha256 of every file."""
        meter = meter or Meter()
        meter.start("hash the checkpoint", sum(file.size for file in self.files))
        return {file.path: sha256(file.path, meter.add) for file in self.files}

    @contextmanager
    def unchanged(self, hashes: Mapping[Path, str] | None = None, meter: Meter | None = None) -> Iterator[None]:
        """Within, something reads the files: at its end they are still what they were, also where it ends in an error.

        Args:
            hashes: as ``hashes`` gave them, to be held against the files at a good end.
            meter: told of that.

        Raises:
            SourceError: a file changed; whatever else went wrong may have come of it.
        """
        try:
            yield
        except Exception:
            self.check()
            raise
        self.check(hashes, meter)

    def check(self, hashes: Mapping[Path, str] | None = None, meter: Meter | None = None) -> None:
        """Refuse to go on with files that are no longer what they were, by size and time, or by hash too.

        Raises:
            SourceError: it names the file.
        """
        changed = [file.path for file in self.files if file.changed]
        if not changed and hashes:
            now = self.hashes(meter)
            changed = [path for path, digest in now.items() if digest != hashes[path]]
        if changed:
            refuse(f"{changed[0]} changed while it was exported", "Export again when nothing writes to it.")


def open_checkpoint(paths: Sequence[Path]) -> Checkpoint:
    """Every tensor of the files, none of them read.

    Raises:
        SourceError: a file is damaged.
        UnlinkableError: a tensor has a dtype that no graph can point at.
    """
    files, tensors = [], {}
    for path in paths:
        files.append(identity := Identity.of(path))
        entries, start = read_safetensors(path)
        for name, entry in entries.items():
            if entry.dtype not in TORCH_DTYPES:
                raise UnlinkableError(f"{path} holds {name} as {entry.dtype}")
            dtype, size = TORCH_DTYPES[entry.dtype], entry.end - entry.begin
            tensors[name] = leaf(Span(identity.path, start + entry.begin, size, dtype, entry.shape, name))
    return Checkpoint(tuple(files), tensors)


def load_linked(
    kind: type[PreTrainedModel], folder: Path, checkpoint: Checkpoint, config: Any, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model as transformers loads it, its parameters without memory, and transformers' loading info.

    What no checkpoint holds, such as rotary frequencies, is computed as ever; buffers are read.
    """
    if getattr(type(config), "extra_files", ()):
        raise UnlinkableError(f"A {kind.__name__} reads files besides its checkpoint")
    with late_patterns():
        model, info = cast("Any", kind).from_pretrained(
            None, config=config, dtype=dtype, state_dict=dict(checkpoint.tensors), local_files_only=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    if model.can_generate():
        model.generation_config = read_generation_config(folder)
    model.config.name_or_path = str(folder)
    _without_memory(model)
    return model, info


def _without_memory(model: Any) -> None:
    """Put fake tensors in the place of lazy ones, one for each, so that what is tied stays tied."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if isinstance(parameter, LazyTensor):
                if id(parameter) not in made:
                    made[id(parameter)] = _fake_parameter(mode, parameter)
                    setattr(made[id(parameter)], ORIGIN, parameter)
                module._parameters[name] = made[id(parameter)]
        buffers: dict[str, Any] = dict(module._buffers)
        for name, buffer in buffers.items():
            if isinstance(buffer, LazyTensor):
                module._buffers[name] = buffer.evaluate()


def _fake_parameter(mode: FakeTensorMode, like: torch.Tensor) -> FakeTensor:
    """What ``nn.Parameter`` makes of a fake tensor, without two operations under the mode: there are hundreds."""
    meta = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")
    fake = FakeTensor(mode, meta, torch.device("cpu"))
    fake._is_param = True
    return fake


def origin_of(tensor: Any) -> LazyTensor | None:
    """Where the values of a parameter lie; None for one in memory."""
    found = getattr(tensor, ORIGIN, None)
    return found if isinstance(found, LazyTensor) else None


def origins_of(module: nn.Module) -> dict[str, LazyTensor]:
    """Where the values of the module's parameters lie, by name, those of tied ones under every name."""
    named = module.named_parameters(remove_duplicate=False)
    return {name: origin for name, tensor in named if (origin := origin_of(tensor)) is not None}


def mark_origins(model: nn.Module, linked: nn.Module) -> None:
    """Tell the parameters of ``model`` where the values of the same ones of ``linked`` lie."""
    own = dict(model.named_parameters(remove_duplicate=False))
    for name, origin in origins_of(linked).items():
        setattr(own[name], ORIGIN, origin)


def is_fake(model: nn.Module) -> bool:
    """Whether parameters of the model have no memory."""
    return any(isinstance(parameter, FakeTensor) for parameter in model.parameters())


@contextmanager
def fake_mode_of(model: nn.Module) -> Iterator[None]:
    """Within, a model whose parameters have no memory runs, on shapes alone; any other runs as ever.

    It takes the way that the export takes: kernels for eager mode ask for more than shapes.
    """
    from trueport.rewrite.watch import exporting

    fake = next((p for p in model.parameters() if isinstance(p, FakeTensor)), None)
    if fake is None:
        yield
        return
    with exporting(), fake.fake_mode:
        yield
