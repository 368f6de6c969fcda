"""The jobs that a model can have, by optimum's names, and which of them a checkpoint can be built for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trueport.checkpoint import refuse

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Way:
    """How a job is done: the role it needs, and transformers' name for the classes that do it so."""

    role: str
    auto: str
    mapping: str


@dataclass(frozen=True)
class Task:
    """A job that a model can have, and the ways to do it: speech is written down by a decoder, or frame by frame (CTC)."""

    ways: tuple[Way, ...]

    @property
    def roles(self) -> frozenset[str]:
        """Those that can do it."""
        return frozenset(way.role for way in self.ways)


def _task(*way: str) -> Task:
    return Task((Way(*way),))


TASKS = {
    "text2text-generation": _task("seq2seq", "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    "automatic-speech-recognition": Task(
        (
            Way("seq2seq", "AutoModelForSpeechSeq2Seq", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES"),
            Way("encoder", "AutoModelForCTC", "MODEL_FOR_CTC_MAPPING_NAMES"),
        )
    ),
    "image-to-text": _task("seq2seq", "AutoModelForImageTextToText", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"),
    "text-generation": _task("decoder", "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    "fill-mask": _task("encoder", "AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    "text-classification": _task(
        "encoder", "AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
    ),
    "token-classification": _task(
        "encoder", "AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES"
    ),
    "question-answering": _task(
        "encoder", "AutoModelForQuestionAnswering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES"
    ),
    "image-classification": _task(
        "encoder", "AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"
    ),
    "object-detection": _task("encoder", "AutoModelForObjectDetection", "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES"),
    "semantic-segmentation": _task(
        "encoder", "AutoModelForSemanticSegmentation", "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES"
    ),
    "depth-estimation": _task("encoder", "AutoModelForDepthEstimation", "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES"),
    "audio-classification": _task(
        "encoder", "AutoModelForAudioClassification", "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES"
    ),
    "audio-frame-classification": _task(
        "encoder", "AutoModelForAudioFrameClassification", "MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES"
    ),
    "audio-xvector": _task("encoder", "AutoModelForAudioXVector", "MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES"),
    "feature-extraction": _task("encoder", "AutoModel", "MODEL_MAPPING_NAMES"),
}
"""Most telling first: BART's one generating class is listed under fill-mask as well."""
DEFAULTS = ("text2text-generation", "automatic-speech-recognition", "text-generation", "feature-extraction")
"""What a checkpoint is taken to be for whose config names no class that transformers has."""


def known_task(task: str | None) -> str | None:
    """The task without optimum's ``-with-past``: a cache is no task of its own here."""
    if task is None:
        return None
    known = task.removesuffix("-with-past")
    if known not in TASKS:
        refuse(f"There is no task {task} here", f"The tasks are: {', '.join(sorted(TASKS))}.")
    return known


def can(offers: Iterable[str]) -> str:
    """The remedy that lists the tasks on offer."""
    return f"It can do: {', '.join(sorted(offers))} (--task)." if offers else ""


def _classes(task: str) -> dict[str, list[str]]:
    """The names of transformers' classes that do a task, by model type."""
    from transformers.models.auto import modeling_auto

    found: dict[str, list[str]] = {}
    for way in TASKS[task].ways:
        for kind, names in getattr(modeling_auto, way.mapping).items():
            found.setdefault(kind, []).extend([names] if isinstance(names, str) else names)
    return found


def class_named(name: str) -> type[PreTrainedModel] | None:
    """transformers' model class of that name; config files name classes that it does not have, and things besides."""
    import transformers

    try:
        found = getattr(transformers, name, None)
    except Exception:  # a class whose optional dependency is missing fails at its import
        return None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def offers_of(config: PreTrainedConfig) -> dict[str, str]:
    """The class for every task that a model of this config can be built for."""
    offers = {}
    for task in TASKS:
        names = _classes(task).get(config.model_type, [])
        name = next((name for name in names if class_named(name) is not None), None)
        if name is not None:
            offers[task] = name
    if getattr(config, "is_encoder_decoder", False):
        # Half of such a model is no causal or masked language model; its features are those of its encoder.
        for task in ("text-generation", "fill-mask"):
            offers.pop(task, None)
        encoder = offers.pop("feature-extraction", "").removesuffix("Model") + "EncoderModel"
        if class_named(encoder) is not None:
            offers["feature-extraction"] = encoder
    elif "fill-mask" in offers and getattr(config, "is_decoder", None) is False:
        offers.pop("text-generation", None)  # BERT's causal class would read the future
    return offers


def task_of(kind: type) -> str | None:
    """The task of a class or of the nearest class that it inherits from."""
    tasks = {name: task for task in reversed(TASKS) for names in _classes(task).values() for name in names}
    for base in kind.__mro__:
        if base.__name__ in tasks:
            return tasks[base.__name__]
        if base.__name__.endswith("EncoderModel"):
            return "feature-extraction"
    return None


def is_bare_seq2seq(kind: Any) -> bool:
    """Whether a class is an encoder-decoder without a head: T5Model, BartModel."""
    from trueport.roles.component import signature

    return "decoder_input_ids" in signature(kind) and task_of(kind) == "feature-extraction"


def gives_features(kind: Any) -> bool:
    """Whether a class that transformers lists for no task reads inputs and has nothing to be trained on: no labels.

    CLIPTextModelWithProjection and SiglipTextModel do; a pretraining head takes labels.
    """
    from trueport.roles.component import signature

    names = signature(kind)
    trained = {"start_positions", "return_loss", "mask_time_indices", *(name for name in names if "label" in name)}
    return not kind.can_generate() and "decoder_input_ids" not in names and not trained & names


def task_by_role(model: PreTrainedModel) -> str:
    """The task of a class that transformers does not list."""
    from trueport.roles import role_of

    if role_of(model) == "seq2seq":
        written = {"input_features": "automatic-speech-recognition", "pixel_values": "image-to-text"}
        return written.get(model.main_input_name, "text2text-generation")
    return "text-generation" if role_of(model) == "decoder" else "feature-extraction"
