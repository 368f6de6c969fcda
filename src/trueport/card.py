"""The model card: the README.md of an artefact, with code that runs it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from trueport.pages import templates_of
from trueport.words import clean, component_view, listed, model_name, of_target, program_words, size_words

ORT_CLASSES = {
    "feature-extraction": "ORTModelForFeatureExtraction",
    "fill-mask": "ORTModelForMaskedLM",
    "text-classification": "ORTModelForSequenceClassification",
    "token-classification": "ORTModelForTokenClassification",
    "question-answering": "ORTModelForQuestionAnswering",
    "text-generation": "ORTModelForCausalLM",
    "text2text-generation": "ORTModelForSeq2SeqLM",
    "automatic-speech-recognition": "ORTModelForSpeechSeq2Seq",
}
"""optimum's class for each task; transformers.js knows the same tasks by name. Of sound it gives a graph no mask."""

NUMPY_DTYPES = {"float32", "float16", "float64", "int64", "int32", "bool"}
"""What NumPy can feed; bfloat16 is not among them."""


def card(manifest: Mapping[str, Any], proof: Mapping[str, Any] | None) -> str:
    """The content of README.md: what the folder is, its verdict, how to run it, its interface, its files."""
    manifest = clean(manifest)
    environment = templates_of(__file__, escaped=False)  # Markdown: escaping is per construct, by the filters below
    environment.filters |= {"code": code_span, "plain": plain, "cell": plain}
    source, components = manifest.get("source", {}), manifest.get("components", {})
    task = str(source.get("task") or manifest.get("task") or "")
    kind = str(source.get("role") or role(components))
    graphs = of_target(components, "onnx")
    return environment.get_template("README.md").render(
        front=_front_matter(source, task, components),
        name=model_name(manifest),
        source=source,
        task=task,
        role=kind,
        runtimes=listed([_RUNTIMES.get(target, target) for target in _targets(components)]),
        targets=_targets(components),
        programs=list(of_target(components, "executorch").values()),
        planned=program_words(manifest),
        verdict=_verdict(manifest, proof),
        reported=proof is not None,
        tokenizer=_has_tokenizer(manifest) and _takes_text(kind, components),
        snippet=snippet(manifest),
        ort_class=_ort_class(task, graphs),
        javascript=_runs_in_javascript(task, graphs),
        in_place=any(map(_in_place, graphs.values())),
        external=_external(manifest, graphs),
        components=[component_view(name, entry) for name, entry in components.items()],
        files=[
            (path, size_words(entry["size"]), entry.get("sha256", "not hashed"))
            for path, entry in manifest.get("files", {}).items()
        ],
        versions=manifest.get("versions", {}),
    )


_RUNTIMES = {"onnx": "ONNX Runtime", "executorch": "ExecuTorch"}


def role(components: Mapping[str, Any]) -> str:
    """``seq2seq``, ``decoder`` or ``encoder``, as the components show it."""
    if {"encoder", "decoder"} <= {name.rpartition("/")[2] for name in components}:
        return "seq2seq"
    cached = any(entry.get("state") or entry.get("kept") for entry in components.values())
    return "decoder" if cached else "encoder"


def plain(value: Any) -> str:
    """Text that Markdown shows as it is."""
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", text)


def code_span(value: Any) -> str:
    """A code span, fenced by more backticks than it holds; a pipe is escaped, as tables ask."""
    text = str(value).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall(r"`+", text)), default=0) + 1)
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _verdict(manifest: Mapping[str, Any], proof: Mapping[str, Any] | None) -> str:
    from trueport.proof.report import headline

    if proof is not None:
        return headline(proof)
    verdict = manifest.get("proof", {}).get("verdict", "unproven")
    return "Unproven: exported without a proof." if verdict == "unproven" else f"{str(verdict).capitalize()}."


def _front_matter(source: Mapping[str, Any], task: str, components: Mapping[str, Any]) -> str:
    """YAML: plain words, and what a stranger chose as a quoted string."""
    lines = ["library_name: trueport"]
    if re.fullmatch(r"[a-z0-9-]+", task):
        lines.append(f"pipeline_tag: {task}")
    if source.get("kind") == "hub":
        lines.append(f"base_model: {_quoted(str(source.get('name') or source.get('id')))}")
    lines += ["tags:", "- trueport", *(f"- {target}" for target in _targets(components))]
    return "\n".join(lines)


def _targets(components: Mapping[str, Any]) -> list[str]:
    found = {str(entry.get("target", "onnx")) for entry in components.values()}
    return sorted(target for target in found if re.fullmatch(r"[a-z0-9-]+", target))


def _has_tokenizer(manifest: Mapping[str, Any]) -> bool:
    return any(path in manifest.get("files", {}) for path in ("tokenizer.json", "tokenizer_config.json"))


def _ort_class(task: str, graphs: Mapping[str, Any]) -> str | None:
    """optimum's class that runs the graphs."""
    inputs = {tensor["name"] for entry in graphs.values() for tensor in entry.get("inputs", [])}
    if not graphs or "input_values" in inputs or any(map(_in_place, graphs.values())):
        return None
    return ORT_CLASSES.get(task)


def _runs_in_javascript(task: str, graphs: Mapping[str, Any]) -> bool:
    """transformers.js makes its empty cache in float32 unless the config tells otherwise."""
    floats = {tensor["dtype"] for entry in graphs.values() for tensor in entry.get("inputs", [])} - {"int64"}
    copied = not any(map(_in_place, graphs.values()))
    return _ort_class(task, graphs) is not None and copied and floats <= {"float32"}


def _in_place(entry: Mapping[str, Any]) -> bool:
    """Whether a component writes its caches in place, which other clients do not know."""
    return any(pair.get("in_place") for pair in entry.get("state", []))


def _external(manifest: Mapping[str, Any], graphs: Mapping[str, Any]) -> dict[str, bool]:
    """The graphs with a weights file of their own name, as transformers.js asks for them one by one."""
    files = manifest.get("files", {})
    names = [str(entry.get("file", "")) for entry in graphs.values()]
    return {file.rpartition("/")[2]: True for file in names if f"{file}_data" in files}


# Code for plain ONNX Runtime
NEW_TOKENS = 20
"""What the programs generate."""
SECOND = 16000
"""Samples of the silence that they listen to."""


def snippet(manifest: Mapping[str, Any]) -> str | None:
    """A program that runs the artefact from inside its folder with ONNX Runtime and NumPy; None where none can be had.

    It takes its tokens from the artefact's tokenizer, where there is one.
    """
    components = of_target(manifest.get("components", {}), "onnx")
    tensors = [
        tensor for entry in components.values() for tensor in (*entry.get("inputs", []), *entry.get("outputs", []))
    ]
    known = all(tensor["dtype"] in NUMPY_DTYPES for tensor in tensors)
    if not known or not tensors:
        return None
    tokenizer = _has_tokenizer(manifest)
    kind = role(components)
    if kind == "seq2seq":
        return _seq2seq(components, tokenizer)
    (entry, *others) = components.values()
    if others or (entry.get("state") and manifest.get("source", {}).get("role") == "custom"):
        return None
    if kind == "decoder":
        return _decoder(entry, tokenizer) if {"input_ids", "logits"} <= _names(entry) else None
    return _encoder(entry, tokenizer)


def _takes_text(kind: str, components: Mapping[str, Any]) -> bool:
    """Whether its user gives tokens: a decoder of speech or images only writes them."""
    first = [components["encoder"]] if kind == "seq2seq" and "encoder" in components else components.values()
    return any(map(_reads_text, first))


def _reads_text(entry: Mapping[str, Any]) -> bool:
    return "input_ids" in {tensor["name"] for tensor in entry.get("inputs", [])}


def _names(entry: Mapping[str, Any]) -> set[str]:
    return {tensor["name"] for tensor in (*entry["inputs"], *entry["outputs"])}


def _imports(tokenizer: bool, *standard: str) -> list[str]:
    lines = [f"import {module}" for module in standard]
    lines += [""] if standard else []
    lines += ["import numpy as np", "import onnxruntime"]
    return [*lines, *(["from transformers import AutoTokenizer"] if tokenizer else []), ""]


def _session(name: str, entry: Mapping[str, Any]) -> str:
    return f"{name} = onnxruntime.InferenceSession({_quoted(entry['file'])})"


def _tokens(tokenizer: bool, ending: Iterable[int] = ()) -> list[str]:
    """``ids`` and ``mask``, (1, length) int64; a tokenizer puts the ending there itself."""
    if tokenizer:
        lines = [
            'tokenizer = AutoTokenizer.from_pretrained(".")',
            'ids = tokenizer(["A text of your own."], return_tensors="np")["input_ids"].astype(np.int64)',
        ]
    else:
        ids = ", ".join(map(str, (5, 6, 7, 8, *ending)))
        lines = [f"ids = np.array([[{ids}]])  # from your tokenizer"]
    return [*lines, "mask = np.ones_like(ids)"]


def _feeds(
    entry: Mapping[str, Any], ready: Mapping[str, str], indent: str = "", length: str = "ids.shape[1]"
) -> list[str]:
    """``feeds = {...}`` for every input that is no state: from ``ready``, or zeros of the right type and shape."""
    state = {pair["input"] for pair in entry.get("state", [])}
    lines = [f"{indent}feeds = {{"]
    for tensor in entry["inputs"]:
        if tensor["name"] not in state:
            value = ready.get(tensor["name"]) or _zeros(tensor, length)
            lines.append(f"{indent}    {_quoted(tensor['name'])}: {value},")
    return lines


def _zeros(tensor: Mapping[str, Any], length: str) -> str:
    """An expression for zeros: one row, ``length`` along every other dimension that has a name."""
    axes = [
        str(size) if isinstance(size, int) else length if index else "1" for index, size in enumerate(tensor["shape"])
    ]
    return f"np.zeros([{', '.join(axes)}], np.{_numpy(tensor['dtype'])})"


def _quoted(text: str) -> str:
    """A Python string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _numpy(dtype: str) -> str:
    return "bool_" if dtype == "bool" else dtype


def _encoder(entry: Mapping[str, Any], tokenizer: bool) -> str:
    text = _reads_text(entry)
    lines = [*_imports(tokenizer and text), _session("session", entry)]
    lines += _tokens(tokenizer, entry.get("ending", ())) if text else []
    ready = {"input_ids": "ids", "attention_mask": "mask", "position_ids": "mask.cumsum(-1) - 1"} if text else {}
    for sound in (tensor for tensor in entry["inputs"] if tensor["name"] == "input_values"):
        lines += ["# Silence below: your own samples and their mask come from transformers' AutoFeatureExtractor."]
        lines += [f"samples = {_zeros(sound, str(SECOND))}"]
        ready = {"input_values": "samples", "attention_mask": "np.ones(samples.shape, np.int64)"}
    return "\n".join(
        [
            *lines,
            *_feeds(entry, ready, length="ids.shape[1]" if text else "4"),
            "}",
            "outputs = session.run(None, feeds)",
            "for value, array in zip(session.get_outputs(), outputs):",
            "    print(value.name, array.shape)",
        ]
    )


def _decoder(entry: Mapping[str, Any], tokenizer: bool) -> str:
    ready = {"input_ids": "step", "attention_mask": "mask", "position_ids": "mask.cumsum(-1)[:, -step.shape[1] :] - 1"}
    return "\n".join(
        [
            *_imports(tokenizer),
            _session("session", entry),
            *_tokens(tokenizer),
            *_past("session", entry),
            "",
            "step = ids  # the whole prompt first, then one token at a time",
            f"for _ in range({NEW_TOKENS}):",
            *_feeds(entry, ready, "    "),
            "        **past,",
            "    }",
            "    outputs = dict(zip(names, session.run(names, feeds)))",
            "    past = {name: outputs[state[name]] for name in past}",
            '    step = outputs["logits"][:, -1:].argmax(-1)',
            "    ids = np.concatenate([ids, step], axis=1)",
            "    mask = np.concatenate([mask, np.ones_like(step)], axis=1)",
            f"print({'tokenizer.decode(ids[0], skip_special_tokens=True)' if tokenizer else 'ids'})",
        ]
    )


def _past(session: str, entry: Mapping[str, Any]) -> list[str]:
    """``state`` (which output feeds which input), ``names`` of the outputs, and ``past``, the empty state."""
    state = {pair["input"] for pair in entry["state"]}
    dtype = next(tensor["dtype"] for tensor in entry["inputs"] if tensor["name"] in state)
    words, length = "one row, and a cache of length 0", "int(i == 0)"
    if _in_place(entry):
        words, length = (
            f"one row, and room for the prompt and {NEW_TOKENS} more",
            f"1 if i == 0 else ids.shape[1] + {NEW_TOKENS}",
        )
    return [
        f"names = [value.name for value in {session}.get_outputs()]",
        *_state(entry["state"]),
        f"past = {{  # {words}",
        f"    value.name: np.zeros([n if isinstance(n, int) else {length} for i, n in enumerate(value.shape)], "
        f"np.{_numpy(dtype)})",
        f"    for value in {session}.get_inputs()",
        "    if value.name in state",
        "}",
    ]


def _state(pairs: Iterable[Mapping[str, str]]) -> list[str]:
    """``state`` by its prefixes where all names agree on them, as Trueport's own do; else pair by pair."""
    pairs = list(pairs)
    prefixes = {(pair["input"].partition(".")[0], pair["output"].partition(".")[0]) for pair in pairs}
    past, present = min(prefixes)
    if all("." in p["input"] and p["output"] == present + p["input"].removeprefix(past) for p in pairs):
        key = f"{_quoted(past)} + name[{len(present)}:]"
        return [f"state = {{{key}: name for name in names if name.startswith({_quoted(present + '.')})}}"]
    return ["state = {", *(f"    {_quoted(p['input'])}: {_quoted(p['output'])}," for p in pairs), "}"]


def _seq2seq(components: Mapping[str, Any], tokenizer: bool) -> str | None:
    encoder, decoder = components["encoder"], components["decoder"]
    if not {"input_ids", "encoder_hidden_states", "logits"} <= _names(decoder) or not decoder.get("state"):
        return None
    text = any(tensor["name"] == "input_ids" for tensor in encoder["inputs"])
    length = "ids.shape[1]" if text else "4"
    mask = "mask" if text else "np.ones(states.shape[:2], np.int64)"
    ready = {"input_ids": "step", "encoder_hidden_states": "states", "encoder_attention_mask": mask}
    return "\n".join(
        [
            *_imports(tokenizer, "json", "pathlib"),
            _session("encoder", encoder),
            _session("decoder", decoder),
            *(_tokens(tokenizer) if text else _features(encoder, tokenizer)),
            *_feeds(encoder, {"input_ids": "ids", "attention_mask": "mask"} if text else {}, length=length),
            "}",
            f"states = encoder.run([{_quoted(encoder['outputs'][0]['name'])}], feeds)[0]",
            *_past("decoder", decoder),
            "",
            'config = json.loads(pathlib.Path("generation_config.json").read_text())',
            'step = np.array([[config.get("decoder_start_token_id") or 0]])',
            "target = step",
            "for _ in range(20):",
            *_feeds(decoder, ready, "    "),
            "        **past,",
            "    }",
            "    outputs = dict(zip(names, decoder.run(names, feeds)))",
            "    past = {name: outputs[state[name]] for name in past}",
            '    step = outputs["logits"][:, -1:].argmax(-1)',
            "    target = np.concatenate([target, step], axis=1)",
            '    if np.isin(step[0, 0], config.get("eos_token_id") or -1):',
            "        break",
            f"print({'tokenizer.decode(target[0], skip_special_tokens=True)' if tokenizer else 'target'})",
        ]
    )


def _features(encoder: Mapping[str, Any], tokenizer: bool) -> list[str]:
    """Speech or an image: zeros in the code, and the tokenizer only decodes."""
    image = "pixel_values" in _names(encoder)
    zeros, maker = ("A black image", "AutoImageProcessor") if image else ("Silence", "AutoFeatureExtractor")
    lines = [f"# {zeros} below: your own {'pixels' if image else 'features'} come from transformers' {maker}."]
    return [*lines, *(['tokenizer = AutoTokenizer.from_pretrained(".")'] if tokenizer else [])]
