"""A checkpoint's files, checked before anything is built from them: config.json and safetensors, from disk or hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trueport.errors import SourceError
from trueport.words import clean, count_words, is_unicode, listed

if TYPE_CHECKING:
    from torch import nn

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
OTHER_FORMATS = (".gguf", ".h5", ".msgpack", ".onnx")
NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt")
"""Pickles that a trainer leaves beside a checkpoint; they are never read."""
MAX_HEADER = 32_000_000
"""Bytes: room for 200,000 tensors in one file. The library reads 100 MB, which as JSON of brackets alone take 2.5 GB."""
PIECE = 1 << 22
"""Bytes of two files that are held against each other at a time."""
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
HUB_SECONDS = 4.0
"""How long the hub may take to answer at all."""
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")
CONVERT = (
    "If you trust its origin, load it with from_pretrained and save it with save_pretrained, which writes safetensors."
)
AGAIN = "Download it again."


def refuse(problem: str, remedy: str = "", cause: BaseException | None = None) -> NoReturn:
    """Raise a SourceError of one printable line: names in it come from strangers' files."""
    raise SourceError(clean(problem), clean(remedy)) from cause


def one_line(error: BaseException) -> str:
    """What an error says, on one line of bounded length, without a full stop."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError | TypeError | AttributeError):  # alone, "'added_tokens'" says nothing
        text = f"{type(error).__name__} {text}"
    return (text if len(text) <= 240 else f"{text[:240]}...").rstrip(". ")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        refuse(f"{path} cannot be read: {error.strerror or error}", cause=error)
    except (ValueError, RecursionError) as error:
        refuse(f"{path} is not JSON: {one_line(error)}", AGAIN, error)
    if not isinstance(content, dict):
        refuse(f"{path} holds {type(content).__name__} where a JSON object was expected", AGAIN)
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, with a ``model_type``."""
    path = folder / "config.json"
    if not is_unicode(str(folder)):
        refuse(f"The name {folder} is not UTF-8", "Rename it: tokenizers and safetensors open nothing there.")
    if not path.is_file():
        refuse(f"{folder} has no config.json", "Give a folder that save_pretrained wrote, or a hub id.")
    if (folder / "adapter_config.json").is_file():
        refuse(f"{folder} holds a PEFT adapter", "Merge it into its base model (merge_and_unload) and save that.")
    content = read_json(path)
    kind = content.get("model_type")
    if not isinstance(kind, str) or not kind:
        refuse(f"{path} names no model_type", "Save the model again with transformers, which writes it.")
    return content


def check_weights(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The folder's safetensors files, each found to be whole.

    Raises:
        SourceError: there are none, only pickles, a shard is missing, or a file is damaged.
    """
    named = config.get("transformers_weights")
    single = folder / (named if isinstance(named, str) and "/" not in named and "\\" not in named else SINGLE)
    if any(re.fullmatch(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors", path.name) for path in folder.iterdir()):
        refuse(f"{folder} holds a distributed checkpoint", "Load and save it in one process, with save_pretrained.")
    if single.is_file() and not single.name.endswith(".json"):
        check_safetensors(single)
        return [single]
    index = single if single.name.endswith(".index.json") else folder / INDEX
    if index.is_file():
        return _check_shards(index)
    check_names((path.name for path in folder.iterdir()), folder)
    refuse(f"{folder} has no {SINGLE}", "Save the model with save_pretrained, which writes it.")


def check_names(names: Iterable[str], where: object) -> None:
    """Refuse a list of files, of a folder or on the hub, whose weights are there but not as safetensors.

    Raises:
        SourceError: naming the way to safetensors.
    """
    found = sorted(names)
    if SINGLE in found or INDEX in found:
        return
    pickles = [name for name in found if name.endswith(PICKLES) and "/" not in name and name not in NOT_WEIGHTS]
    if pickles:
        refuse(f"{where} has its weights only as pickle ({pickles[0]}), which can run code when it is loaded", CONVERT)
    others = [name for name in found if name.endswith(OTHER_FORMATS) and "/" not in name]
    if others:
        refuse(f"{where} has its weights only as {others[0]}", f"Give the checkpoint that holds {SINGLE}.")
    strays = [name for name in found if name.endswith(".safetensors") and "/" not in name]
    if strays:
        refuse(f"{where} has {strays[0]} but no {SINGLE} or {INDEX}", "Save the model again with save_pretrained.")


def _check_shards(index: Path) -> list[Path]:
    """Every shard that the index names, whole, and with the weights that the index says it has."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        refuse(f"{index} has no weight_map from weights to files", AGAIN)
    shards = sorted(set(places.values()))
    for shard in shards:
        # An index is a stranger's text: a path in it could name any file of this machine.
        if not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            refuse(f"{index} names {shard!r}, which is not a safetensors file beside it", AGAIN)
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        refuse(
            f"{index.parent} lacks {count_words(len(missing), 'shard')} of {len(shards)}: {listed(missing[:3])}", AGAIN
        )
    paths = [index.parent / shard for shard in shards]
    held = {path.name: read_safetensors(path) for path in paths}
    for weight, shard in places.items():
        if weight not in held[shard][0]:
            refuse(f"{index.parent / shard} lacks {weight}, which {index.name} says it holds", AGAIN)
    _refuse_rivals(index.parent, held)
    return paths


def _refuse_rivals(folder: Path, held: Mapping[str, tuple[Mapping[str, Stored], int]]) -> None:
    """Refuse a weight that two shards hold with other values: some ask the index which counts, others take the last."""
    first: dict[str, str] = {}
    for shard, (tensors, _) in held.items():
        for name in tensors:
            other = first.setdefault(name, shard)
            if other != shard and not _is_equal(
                *((folder / file, held[file][0][name], held[file][1]) for file in (other, shard))
            ):
                problem = f"{folder / other} and {shard} both hold {name}, with other values"
                refuse(problem, "Save the model again with save_pretrained.")


def _is_equal(one: tuple[Path, Stored, int], other: tuple[Path, Stored, int]) -> bool:
    """Whether two places in files, of which the tensors begin so many bytes on, hold the same tensor."""
    if (one[1].dtype, one[1].shape) != (other[1].dtype, other[1].shape):
        return False
    left = one[1].end - one[1].begin
    with one[0].open("rb") as file, other[0].open("rb") as second:
        for stream, (_, stored, start) in ((file, one), (second, other)):
            stream.seek(start + stored.begin)
        while left:
            count = min(left, PIECE)
            if file.read(count) != second.read(count):
                return False
            left -= count
    return True


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file; ``begin`` and ``end`` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def check_safetensors(path: Path) -> set[str]:
    """The names of the tensors in a file that is found to be whole and well formed."""
    return set(read_safetensors(path)[0])


def read_safetensors(path: Path) -> tuple[dict[str, Stored], int]:
    """The tensors in a file that is found to be whole and well formed, and the bytes before the first of them."""
    size, text = _read_header(path)
    tensors, length = _parse_header(path, text), len(text)
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end, item[0])):
        if entry.begin != end:
            kind = "overlaps the tensor before it" if entry.begin < end else "leaves a hole before it"
            refuse(f"{path} is corrupt: {name} {kind}", AGAIN)
        end = entry.end
    promised = 8 + length + end
    if promised > size:
        refuse(f"{path} is truncated: its header promises {promised:,} bytes, the file has {size:,}", AGAIN)
    if promised < size:
        refuse(f"{path} is corrupt: {size - promised:,} bytes follow its last tensor", AGAIN)
    return tensors, 8 + length


def _read_header(path: Path) -> tuple[int, bytes]:
    """The file's size and the JSON before its tensors."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
            length = int.from_bytes(start[:8], "little")
            if size < 8:
                refuse(f"{path} is truncated: it has {count_words(size, 'byte')}, too few for a header", AGAIN)
            if start.startswith(b"version "):
                refuse(f"{path} is a Git LFS pointer, not the weights", "Run: git lfs pull.")
            if MAX_HEADER < length <= size - 8 and start[8:] == b"{":
                refuse(
                    f"{path} has a header of {length:,} bytes, and Trueport reads {MAX_HEADER:,} at most",
                    "Download it again; if it is right, save the model with max_shard_size, which makes several files.",
                )
            if length > MAX_HEADER or (length > size - 8 and start[8:] != b"{"):
                refuse(f"{path} is not a safetensors file: its header would have {length:,} bytes", AGAIN)
            if length > size - 8:
                refuse(f"{path} is truncated: its header has {length:,} bytes, the whole file {size:,}", AGAIN)
            file.seek(8)
            return size, file.read(length)
    except OSError as error:
        refuse(f"{path} cannot be read: {error.strerror or error}", cause=error)


def _parse_header(path: Path, text: bytes) -> dict[str, Stored]:
    """Every tensor by name."""
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        refuse(f"{path} is corrupt: its header is not JSON ({one_line(error)})", AGAIN, error)
    if not isinstance(header, dict):
        refuse(f"{path} is corrupt: its header is not a JSON object", AGAIN)
    return {name: _span(path, name, entry) for name, entry in header.items() if name != "__metadata__"}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different; readers disagree about which of two equal keys counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _span(path: Path, name: str, entry: Any) -> Stored:
    """One tensor, whose bytes fit its dtype and shape."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        refuse(f"{path} is corrupt: {name} lacks a dtype, a shape or its two offsets", AGAIN)
    begin, end = offsets
    bits = BITS.get(dtype)  # a dtype that is newer than this table is for the library to judge
    if begin > end or (bits is not None and prod(shape) * bits != 8 * (end - begin)):
        refuse(f"{path} is corrupt: the offsets of {name} do not fit its {dtype} of shape {shape}", AGAIN)
    return Stored(dtype, tuple(shape), begin, end)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(entry) is int and entry >= 0 for entry in value)


def weights_digest(model: nn.Module, origin_of: Callable[[Any], Any] = lambda tensor: None) -> str:
    """SHA-256 of every parameter and persistent buffer with its name, whatever files they came from.

    ``origin_of`` tells what evaluates a parameter without memory.
    """
    import torch

    digest, seen = hashlib.sha256(), {}
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        origin = origin_of(tensor)
        place = (tensor.data_ptr() if origin is None else origin, tensor.dtype, tuple(tensor.shape), tensor.stride())
        if place not in seen or not tensor.numel():  # a tied weight is read once
            own = hashlib.sha256()
            for piece in [tensor.detach()] if origin is None else origin.pieces():
                own.update(memoryview(piece.contiguous().reshape(-1).view(torch.uint8).numpy()))
                del piece  # before the next one is read
            seen[place] = own.hexdigest()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {seen[place]}\n".encode())
    return digest.hexdigest()


def fetch(name: str, revision: str | None, *, python: bool) -> tuple[Path, str]:
    """The folder of the local cache that holds a hub model's files, and the commit they are from.

    Args:
        name: ``org/name`` or ``name``.
        revision: branch, tag or commit; the main branch when None.
        python: whether to fetch Python files too.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)
    except GatedRepoError as error:
        refuse(
            f"{name} is gated on the hub", f"Ask for access at https://hf.co/{name}, then run: hf auth login.", error
        )
    except RevisionNotFoundError as error:
        refuse(f"{name} has no revision {revision} on the hub", f"See https://hf.co/{name}/tree/main.", error)
    except RepositoryNotFoundError as error:
        refuse(f"{name} is neither a folder here nor a model on the hub", "Check it, or run: hf auth login.", error)
    except Exception as error:  # offline: the cache may hold it; every other trouble of the network looks alike to us
        return _cached(name, revision, error)
    check_names((file.rfilename for file in info.siblings or ()), name)
    try:
        folder = snapshot_download(
            name,
            revision=info.sha,
            allow_patterns=[*HUB_FILES, *(["*.py"] if python else [])],
            # Other formats and other copies of the same weights lie in subfolders.
            ignore_patterns=["*/*", "consolidated*"],
        )
    except Exception as error:
        refuse(f"{name} could not be downloaded: {one_line(error)}", "Try again.", error)
    return Path(folder), info.sha or Path(folder).name


def _cached(name: str, revision: str | None, cause: BaseException) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:
        refuse(
            f"{name} is neither a folder here nor reachable on the hub ({one_line(cause)})",
            "Check the name, the current folder and the connection.",
            cause,
        )
    return folder, folder.name
