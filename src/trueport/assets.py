"""What lies beside the graphs so that clients can run them: config, generation config, tokenizer, processor."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.checkpoint import one_line, refuse

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

ORIGIN_KEYS = ("_name_or_path", "name_or_path", "_commit_hash")
LOADING_KEYS = (
    "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "spm_file", "is_local", "local_files_only"
)  # fmt: skip
"""Keys under which transformers writes where a model or a tokenizer came from, and how it was loaded."""
BACKEND = "TokenizersBackend"
WITHOUT = "Give --no-tokenizer (tokenizer=None) to export without one."


@dataclass(frozen=True)
class Written:
    """What prepares images, and what reads the tokens that are written about them: checkpoints have both, or a processor."""

    image_processor: Any
    tokenizer: Any

    def save_pretrained(self, folder: Path) -> None:
        """Write the files of both."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_tokenizer(folder: Path, model: PreTrainedModel, where: str, *, trust_remote_code: bool) -> Any:
    """The folder's tokenizer; of a speech model its processor, which holds one; of others what prepares images or sound.

    A model that writes about images has both.
    """
    if model.main_input_name == "input_values" or (
        model.main_input_name == "input_features" and not model.can_generate()
    ):
        return _load_feature_extractor(folder, where, trust_remote_code=trust_remote_code)
    if model.main_input_name == "pixel_values":
        images = _load_image_processor(folder, where, trust_remote_code=trust_remote_code)
        if not model.can_generate():
            return images
        return Written(images, _load_text_tokenizer(folder, where, trust_remote_code=trust_remote_code))
    if model.main_input_name == "input_features":
        return _load_processor(folder, where, trust_remote_code=trust_remote_code)
    return _load_text_tokenizer(folder, where, trust_remote_code=trust_remote_code)


def _load_text_tokenizer(folder: Path, where: str, *, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    _need(
        folder, ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "source.spm", "tekken"), "tokenizer", where
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        refuse(f"The tokenizer in {where} cannot be read: {one_line(error)}", f"Replace its files. {WITHOUT}", error)
    files = {file for file in getattr(tokenizer, "vocab_files_names", {}).values() if isinstance(file, str)}
    # transformers builds an empty vocabulary where the file is missing; a tokenizer of bytes or characters has no file.
    if files and not any((folder / file).is_file() for file in {*files, "tokenizer.json", "tekken.json"}):
        refuse(f"The tokenizer in {where} has no vocabulary ({' or '.join(sorted(files))})", WITHOUT)
    return tokenizer


def _load_image_processor(folder: Path, where: str, *, trust_remote_code: bool) -> Any:
    from transformers import AutoImageProcessor

    _need(folder, ("preprocessor_config", "processor_config"), "image processor", where)
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        refuse(f"The processor in {where} cannot be read: {one_line(error)}", f"Replace its files. {WITHOUT}", error)


def _load_feature_extractor(folder: Path, where: str, *, trust_remote_code: bool) -> Any:
    """Of a model of sound, within a processor where the folder has a tokenizer for what the model writes down."""
    from transformers import AutoFeatureExtractor

    _need(folder, ("preprocessor_config", "processor_config"), "feature extractor", where)
    if any(path.name.startswith(("tokenizer", "vocab")) for path in folder.iterdir()):
        return _load_processor(folder, where, trust_remote_code=trust_remote_code)
    try:
        return AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        problem = f"The feature extractor in {where} cannot be read: {one_line(error)}"
        refuse(problem, f"Replace its files. {WITHOUT}", error)


def _load_processor(folder: Path, where: str, *, trust_remote_code: bool) -> Any:
    from transformers import AutoProcessor

    _need(folder, ("preprocessor_config", "processor_config"), "feature extractor", where)
    _load_text_tokenizer(folder, where, trust_remote_code=trust_remote_code)
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        refuse(f"The processor in {where} cannot be read: {one_line(error)}", f"Replace its files. {WITHOUT}", error)
    if getattr(processor, "feature_extractor", None) is None:
        refuse(f"{where} has a {type(processor).__name__} without a feature extractor", WITHOUT)
    return processor


def _need(folder: Path, stems: tuple[str, ...], noun: str, where: str) -> None:
    if not any(path.name.startswith(stems) for path in folder.iterdir() if path.is_file()):
        refuse(f"There is no {noun} in {where}", WITHOUT)


def read_generation_config(folder: Path) -> GenerationConfig:
    """How the model in a folder generates; where no file of its own says it, config.json may, as in older checkpoints."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return GenerationConfig.from_pretrained(
        folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
    )


def save_config(model: PreTrainedModel, dtype: str, folder: Path) -> None:
    """config.json and, for a model that generates, generation_config.json, without this machine's paths."""
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    for name in ("transformers_weights", "auto_map"):  # the files that they name do not come along
        if name in vars(config):
            delattr(config, name)
    # save_pretrained refuses configs that predate generation_config.json; the bytes are the same.
    config.to_json_file(folder / "config.json")
    _strip(folder / "config.json")
    generation = getattr(model, "generation_config", None)
    if model.can_generate() and generation is not None:
        generation.to_json_file(folder / "generation_config.json", keys_to_pop=["compile_config"])
        _strip(folder / "generation_config.json")


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Whatever the tokenizer or processor writes, without this machine's paths."""
    before = {path.name for path in folder.iterdir()}
    try:
        tokenizer.save_pretrained(folder)
        extractor = getattr(tokenizer, "feature_extractor", None)
        if extractor is not None:
            # transformers 5 folds it into processor_config.json; transformers.js and optimum read its own file.
            extractor.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        refuse(f"The {type(tokenizer).__name__} cannot be saved: {one_line(error)}", WITHOUT, error)
    for path in sorted(folder.glob("*config.json")):
        if path.name not in before:
            _strip(path, ORIGIN_KEYS + LOADING_KEYS)


def _strip(path: Path, keys: tuple[str, ...] = ORIGIN_KEYS) -> None:
    """Take the keys that hold this machine's paths out of a JSON file; one without them stays as it is."""
    content = json.loads(path.read_text(encoding="utf-8"))
    stripped = _stripped(content, keys)
    if stripped != content:
        path.write_text(json.dumps(stripped, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _stripped(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        # The newer name of one and the same class, which optimum's transformers 4 and transformers.js do not know.
        renamed = {"tokenizer_class": "PreTrainedTokenizerFast"} if value.get("tokenizer_class") == BACKEND else {}
        return {key: _stripped(entry, keys) for key, entry in (value | renamed).items() if key not in keys}
    if isinstance(value, list):
        return [_stripped(entry, keys) for entry in value]
    return value
