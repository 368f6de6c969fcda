"""Which class a checkpoint's config means, for which task, and what is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trueport.checkpoint import one_line, refuse
from trueport.tasks import DEFAULTS, TASKS, can, class_named, gives_features, is_bare_seq2seq, offers_of, task_of
from trueport.words import listed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def check_code(content: Mapping[str, Any], where: str, trust: bool) -> None:
    """Refuse what only Python files from the checkpoint can build, and what this transformers does not know."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind, references = content["model_type"], _references(content)
    known = kind in CONFIG_MAPPING
    architecture = architecture_of(content)
    if references and not trust and not (known and (architecture is None or class_named(architecture) is not None)):
        files = listed(sorted({f"{ref.rpartition('.')[0].replace('--', ': ')}.py" for ref in references.values()}))
        refuse(
            f"{where} is a model of type {kind}, which only its own Python code can build ({files})",
            "Read it, then give --trust-remote-code (trust_remote_code=True) to run it.",
        )
    if not known and not references:
        refuse(
            f"{where} is a model of type {kind}, which transformers {transformers.__version__} does not know",
            "Check model_type in its config.json, or install a newer transformers; it brings no code of its own that "
            "--trust-remote-code could run.",
        )


def _references(content: Mapping[str, Any]) -> dict[str, str]:
    """The Python classes that a config's auto_map names, by auto class: ``modeling_x.XModel``."""
    found = content.get("auto_map")
    return {key: ref for key, ref in found.items() if isinstance(ref, str)} if isinstance(found, dict) else {}


def architecture_of(content: Mapping[str, Any]) -> str | None:
    """The class that a config.json names."""
    names = content.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def load_config(folder: Path, content: Mapping[str, Any], where: str, trust: bool) -> PreTrainedConfig:
    """The folder's config, as transformers reads it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
    except Exception as error:
        problem = f"{where}/config.json is no valid config of type {content['model_type']}: {one_line(error)}"
        refuse(problem, "Correct it, or download it again.", error)


def choose(
    folder: Path, where: str, content: Mapping[str, Any], config: PreTrainedConfig, task: str | None, trust: bool
) -> tuple[type[PreTrainedModel], str]:
    """The class to build and the task it does."""
    import transformers

    architecture, references = architecture_of(content), _references(content) if trust else {}
    remote = {name: references[way.auto] for name, job in TASKS.items() for way in job.ways if way.auto in references}
    offers = remote or offers_of(config)
    named = None if remote or architecture is None else class_named(architecture)
    if named is not None and is_bare_seq2seq(named):
        named = None
    does = task_of(named) if named is not None else None
    if named is not None and does is None and gives_features(named):
        does = "feature-extraction"
        offers = offers | {does: named.__name__}
    if remote:
        does = next((name for name, ref in remote.items() if ref.rpartition(".")[2] == architecture), None)
    if task is None and named is not None and does is None:
        refuse(f"{where} holds a {architecture}, which does none of Trueport's tasks", can(offers))
    task = task or does or next((name for name in DEFAULTS if name in offers), None)
    if task not in offers:
        refuse(f"{where}: a {type(config).__name__} model cannot do {task or 'any task of Trueport'}", can(offers))
    if remote:
        return _remote_class(folder, where, remote[task]), task
    if named is not None and does == task and isinstance(config, named.config_class or ()):
        return named, task
    return getattr(transformers, offers[task]), task


def _remote_class(folder: Path, where: str, reference: str) -> type[PreTrainedModel]:
    from transformers import PreTrainedModel
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    try:
        kind = get_class_from_dynamic_module(reference, folder)
    except Exception as error:
        refuse(f"{where}: {reference} cannot be imported: {one_line(error)}", cause=error)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        refuse(f"{where}: {reference} is no PreTrainedModel")
    return kind


def check_inputs(kind: type[PreTrainedModel], where: str) -> None:
    """Refuse what reads neither text, nor images or sound alone, nor, to write text, speech or images."""
    from trueport.roles.component import signature

    names = signature(cast("Any", kind))
    other: str | None = next(
        (name for name in ("pixel_values", "input_values", "pixel_values_videos") if name in names), None
    )
    writes = "decoder_input_ids" in names
    alone = "input_ids" not in names and (not writes or kind.main_input_name == "pixel_values")
    if kind.main_input_name in ("pixel_values", "input_values", "input_features") and alone:
        other = None
    elif kind.main_input_name not in ("input_ids", "input_features"):
        other = kind.main_input_name
    if kind.main_input_name == "input_features" and not alone and not {"decoder_input_ids", "input_features"} <= names:
        other = "input_features"
    if kind.__name__.endswith("ForMultipleChoice"):
        other = "input_ids of three dimensions"
    if other is not None:
        refuse(
            f"{where}: a {kind.__name__} reads {other}",
            "This version exports models of text, of images, of sound, and of speech or images to text.",
        )
