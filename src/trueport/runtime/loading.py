"""From a folder on disk to a model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from trueport.artifact import MANIFEST, check_sizes, described, read_manifest
from trueport.errors import ArtifactError
from trueport.runtime.generation import DecoderModel, Seq2SeqModel
from trueport.runtime.kinds import like_original
from trueport.runtime.large_pages import large_pages
from trueport.runtime.model import TrueportModel
from trueport.runtime.protocol import Session
from trueport.targets import find_target, target_names

MEMORY = ("fast", "pages", "map")


def load(
    folder: Path,
    *,
    runtime: str | None = None,
    memory: str = "fast",
    threads: int | None = None,
    sized: bool = True,
) -> TrueportModel:
    """See ``trueport.runtime.load``; ``sized`` refuses files that are not as long as the manifest says."""
    if runtime is not None and runtime not in target_names():
        raise ArtifactError(f"There is no runtime {runtime!r}", f"Choose from {', '.join(target_names())}.")
    if memory not in MEMORY:
        raise ArtifactError(f"There is no memory mode {memory!r}", f"Choose from {', '.join(MEMORY)}.")
    if threads is not None and threads < 1:
        raise ArtifactError(
            f"No model runs on {threads} threads", "Give threads=1 or more, or leave it to the runtime."
        )
    manifest = read_manifest(folder)
    if not isinstance(manifest.get("components"), dict) or not manifest["components"]:
        raise ArtifactError(f"{folder / MANIFEST} names no components", "Export again.")
    wanted = _of_runtime(folder, manifest["components"], runtime)
    mode = "fast" if memory == "pages" else memory
    with large_pages() if memory == "pages" else nullcontext():
        sessions = {
            name.rpartition("/")[2]: _open(folder, manifest, name, mode, threads, sized=sized) for name in wanted
        }
    source = manifest.get("source") or {}
    role = source.get("role") or _role(sessions)
    kind: type[TrueportModel] = {"decoder": DecoderModel, "seq2seq": Seq2SeqModel}.get(role, TrueportModel)
    _check_names(folder, role, sessions)
    config = _config(folder)
    kind = like_original(kind, config)
    model = kind(folder, config, _generation_config(folder, config), sessions, source.get("task"))
    model.opening = {"runtime": runtime, "memory": memory, "threads": threads}
    if isinstance(model, DecoderModel):
        model.reread_past = source.get("reread_past")
    return model


def _of_runtime(folder: Path, components: Mapping[str, Any], runtime: str | None) -> dict[str, Any]:
    """The components of one target: of the first that the manifest names, unless another is asked for."""
    targets = [entry.get("target") if isinstance(entry, dict) else None for entry in components.values()]
    wanted = targets[0] if runtime is None else runtime
    if wanted not in targets:
        raise ArtifactError(
            f"{folder.name} was exported to {', '.join(sorted(set(map(str, targets))))}, not to {wanted}"
        )
    return {name: entry for (name, entry), target in zip(components.items(), targets, strict=True) if target == wanted}


def _open(
    folder: Path, manifest: Mapping[str, Any], name: str, memory: str, threads: int | None, *, sized: bool
) -> Session:
    entry = manifest["components"][name]
    target, path, interface = described(folder, name, entry)
    if sized:
        check_sizes(folder, manifest, path)
    if target not in target_names():
        raise ArtifactError(f"{folder.name} was exported to {target}, which this Trueport cannot run")
    return find_target(target).open(path, interface, entry=entry, memory=memory, threads=threads)


def _role(sessions: Mapping[str, Session]) -> str:
    """The role that the components tell, for a manifest that does not."""
    if "encoder" in sessions and "decoder" in sessions:
        return "seq2seq"
    interface = next(iter(sessions.values())).interface
    return "decoder" if (interface.state or interface.kept) and interface.has_input("input_ids") else "encoder"


GENERATED = {
    "decoder": (("model", ("input_ids",), ("logits",)),),
    "seq2seq": (("encoder", (), ("last_hidden_state",)), ("decoder", ("input_ids",), ("logits",))),
}
"""Inputs and outputs of components that ``generate`` knows by name, by role."""


def _check_names(folder: Path, role: str, sessions: Mapping[str, Session]) -> None:
    """Programs take and give tensors by place: their names are the manifest's alone."""
    for component, *wanted in GENERATED.get(role, ()):
        interface = sessions[component].interface if component in sessions else None
        tensors = () if interface is None else (interface.inputs, interface.outputs)
        for kind, names, found in zip(("input", "output"), wanted, tensors, strict=False):
            lost = set(names) - {tensor.name for tensor in found}
            if lost:
                raise ArtifactError(f"{folder / MANIFEST} names no {kind} {min(lost)} of {component}", "Export again.")


def _config(folder: Path) -> PreTrainedConfig:
    """The original's config; a bare one for a module that had none, or whose class only its own code knows."""
    path = folder / "config.json"
    if not path.is_file():
        return PreTrainedConfig()
    try:
        bare = PreTrainedConfig.from_json_file(path)
    except Exception as error:  # whatever a file by hand makes of transformers' checks
        raise _unreadable(path, error) from error
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError):
        return bare
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}", "Export again.")


def _generation_config(folder: Path, config: PreTrainedConfig) -> GenerationConfig:
    if not (folder / "generation_config.json").is_file():
        return GenerationConfig.from_model_config(config)
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise _unreadable(folder / "generation_config.json", error) from error
