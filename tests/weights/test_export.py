"""Exports that point at a checkpoint's own bytes, and checkpoints that cannot be used as they are."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

import trueport
import trueport.capture
from tests import zoo
from trueport.artifact import sha256
from trueport.errors import ArtifactError, SourceError, TrueportError
from trueport.targets.onnx.session import OnnxSession
from trueport.targets.onnx.values import from_torch
from trueport.weights import lazy, linked
from trueport.words import weights_words

CHECKPOINT = "checkpoint/model.safetensors"
Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """A zoo model as a checkpoint on disk."""

    def get(name: str, *, dtype: torch.dtype = torch.float32, change: Any = None, **options: Any) -> Path:
        model = zoo.build(name)
        if change is not None:
            change(model)
        folder = tmp_path / "checkpoint"
        model.to(dtype).save_pretrained(folder, **options)
        return folder

    return get


def exported(source: Path, mode: str = "copy", *, proof: bool = False, **options: Any) -> trueport.Artifact:
    return trueport.export(
        source, source.parent / "out", weights=mode, tokenizer=None, proof=proof, force=True, **options
    )


def external(path: Path) -> dict[str, dict[str, str]]:
    """The external data of a graph's initializers, by name."""
    model = onnx.load(path, load_external_data=False)
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of weights that are read from now on."""
    reads: list[int] = []
    read = lazy.Span.read

    def counting(span: lazy.Span) -> torch.Tensor:
        reads.append(span.nbytes)
        return read(span)

    monkeypatch.setattr(lazy.Span, "read", counting)
    return reads


@pytest.mark.slow
def test_shards_come_along_as_they_are(saved: Saved) -> None:
    source = saved("llama", max_shard_size="30KB")
    shards = sorted(source.glob("*.safetensors"))
    assert len(shards) > 1
    artifact = exported(source, proof=True)
    names = ["model.onnx_data", *(f"model.onnx_data_{index}" for index in range(1, len(shards)))]
    assert artifact.verdict == "proven"
    assert artifact.manifest["weights"] == {
        "linked": False,
        "files": {f"onnx/{name}": shard.name for name, shard in zip(names, shards, strict=True)},
        "written": 0,
    }
    for name, shard in zip(names, shards, strict=True):
        assert artifact.manifest["files"][f"onnx/{name}"]["sha256"] == sha256(shard)
    found = external(artifact.folder / "onnx" / "model.onnx")
    assert {entry["location"] for entry in found.values()} == set(names)
    assert "layers.0.self_attn.q_proj.weight" in str(sorted(found))
    assert trueport.verify(artifact.folder, clauses=["inert"]).proven
    for memory in ("map", "fast"):
        model = trueport.load(artifact.folder, memory=memory)
        original = zoo.build("llama")
        ids = torch.tensor([[5, 6, 7, 8]])
        options = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(model.generate(ids, **options), original.generate(ids, **options))


@pytest.mark.slow
def test_encoder_and_decoder_use_one_file_and_a_link_has_no_bytes(saved: Saved) -> None:
    source = saved("t5")
    artifact = exported(source, "link", proof=True)
    folder = artifact.folder / "onnx"
    data = folder / "decoder_model_merged.onnx_data"
    assert data.stat().st_ino == (source / "model.safetensors").stat().st_ino
    assert sorted(path.name for path in folder.iterdir()) == [
        "decoder_model_merged.onnx", "decoder_model_merged.onnx_data", "encoder_model.onnx",
    ]  # fmt: skip
    for stem in ("encoder_model", "decoder_model_merged"):
        assert {entry["location"] for entry in external(folder / f"{stem}.onnx").values()} == {data.name}
    # Tied: the shared embedding is one range for both graphs.
    encoder, decoder = (external(folder / f"{stem}.onnx") for stem in ("encoder_model", "decoder_model_merged"))
    embedding = next(entry["offset"] for name, entry in encoder.items() if "embed" in name or "shared" in name)
    assert [entry["offset"] for entry in decoder.values()].count(embedding) == 1
    # The link's other name is the checkpoint: a change there is one here, and verify says so.
    content = bytearray(data.read_bytes())
    content[-3] ^= 255
    with (source / "model.safetensors").open("r+b") as stream:
        stream.write(content)
    found = trueport.verify(artifact.folder, clauses=["inert"]).clauses[0]
    assert found.status == "fail" and "sha256 differs" in found.reason
    data.unlink()
    with pytest.raises(TrueportError):
        trueport.verify(artifact.folder, clauses=["inert"])


@pytest.mark.slow
def test_a_narrow_checkpoint_under_float32_is_widened_in_the_graph(saved: Saved) -> None:
    source = saved("llama", dtype=torch.bfloat16)
    artifact = exported(source, proof=True)
    assert artifact.verdict == "proven"
    assert artifact.manifest["weights"]["written"] == 0
    assert artifact.manifest["source"]["dtype"] == "float32"
    model = onnx.load(artifact.folder / "onnx" / "model.onnx", load_external_data=False)
    reads = [node for node in model.graph.node if external_names(artifact).intersection(node.input)]
    assert {name for node in reads for name in node.input} >= external_names(artifact)
    (table,) = [node for node in reads if node.op_type == "Gather"]  # of which the rows are widened
    assert all(node.op_type == "Cast" for node in reads if node is not table)
    assert [node.op_type for node in model.graph.node if table.output[0] in node.input] == ["Cast"]


def external_names(artifact: trueport.Artifact) -> set[str]:
    return set(external(artifact.folder / "onnx" / "model.onnx"))


@pytest.mark.slow
def test_a_wide_checkpoint_under_a_narrow_dtype_is_rounded_and_written(saved: Saved) -> None:
    artifact = exported(saved("llama"), proof=True, dtype="float16")
    assert artifact.verdict == "proven"
    assert artifact.manifest["weights"]["files"] == {}
    assert 0 < artifact.manifest["weights"]["written"] < (artifact.folder.parent / CHECKPOINT).stat().st_size


@pytest.mark.slow
def test_experts_that_transformers_fuses_are_written_as_narrow_as_they_were(saved: Saved) -> None:
    source = saved("mixtral", dtype=torch.bfloat16)
    assert any("w1" in name for name in load_file(source / "model.safetensors"))
    artifact = exported(source, proof=True)
    assert artifact.verdict == "proven"
    assert artifact.manifest["weights"]["files"] == {}  # experts are most of it: the file itself stays behind
    fused = sum(p.numel() * 2 for name, p in zoo.build("mixtral").named_parameters() if "experts" in name)
    assert fused <= artifact.manifest["weights"]["written"] < 1.5 * fused


@pytest.mark.slow
def test_mapped_weights_are_not_copied_by_a_run(saved: Saved) -> None:
    """No Transpose of a weight is left to run: its output would lie in memory."""
    import onnxruntime

    from trueport.targets.onnx.session import session_options

    artifact = exported(saved("llama"))
    options = session_options("map", 1)
    options.optimized_model_filepath = str(artifact.folder.parent / "run.onnx")
    path = artifact.folder / "onnx" / "model.onnx"
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(options.optimized_model_filepath, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    assert not [node.name for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in weights]


@pytest.mark.slow
@pytest.mark.parametrize(("stored", "dtype"), [(torch.bfloat16, None), (torch.float32, "bfloat16")])
def test_mapped_weights_are_widened_one_after_the_other(saved: Saved, stored: torch.dtype, dtype: str | None) -> None:
    """In the order in which ONNX Runtime computes them, each weight is read and gone before the next is cast."""
    artifact = exported(saved("llama", dtype=stored), dtype=dtype)
    held, most = 0, 0
    made = list(_made_of_constants(artifact.folder / "onnx" / "model.onnx", artifact.folder.parent))
    assert len(made) > 15
    largest = max(size for _, _, size in made)
    for now in range(max(last for _, last, _ in made) + 1):
        held += sum(size for first, _, size in made if first == now)
        most = max(most, held)
        held -= sum(size for _, last, size in made if last == now)
    assert held == 0 and largest <= most < 2 * largest


def _made_of_constants(path: Path, place: Path) -> Iterator[tuple[int, int, int]]:
    """Of each value that a mapped run computes of constants alone: when it is made, last read, and its bytes."""
    import onnxruntime

    from trueport.targets.onnx.session import session_options

    options = session_options("map", 1)
    options.optimized_model_filepath = str(place / "run.onnx")
    options.enable_profiling, options.profile_file_prefix = True, str(place / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ids = torch.tensor([[5, 6, 7]])
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": ids - 5}
    empty = OnnxSession(path).empty_state(1).values
    session.run_with_ort_values(None, {name: from_torch(value) for name, value in feeds.items()} | empty)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = {e["name"].removesuffix("_kernel_time"): e["args"] for e in events if e["name"].endswith("_kernel_time")}
    order = {name: now for now, name in enumerate(ran)}
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if constants.issuperset(node.input):
            constants.update(node.output)
            last = max(order[user.name] for user in graph.node if node.output[0] in user.input)
            yield order[node.name], last, int(ran[node.name]["output_size"])


@pytest.mark.slow
def test_nothing_is_read_but_what_is_small(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved("llama")
    monkeypatch.setattr("trueport.source.DIGESTED", 0)
    reads = counted(monkeypatch)
    artifact = exported(source, "link")
    assert max(reads, default=0) < 256
    assert "weights_sha256" not in artifact.manifest["source"]


@pytest.mark.slow
def test_the_graph_is_that_of_a_model_in_memory(saved: Saved, tmp_path: Path) -> None:
    """Same nodes, attributes, names and wiring, whichever way was taken."""
    source = saved("llama")
    trueport.export(zoo.build("llama"), tmp_path / "live", tokenizer=None, proof=False)
    exported(source, "copy")
    live, link = (ir.load(tmp_path / name / "onnx" / "model.onnx").graph for name in ("live", "out"))

    def wiring(graph: ir.Graph) -> list[Any]:
        return [
            (
                node.op_type,
                [str(v and v.name) for v in node.inputs],
                [v.name for v in node.outputs],
                str(node.attributes),
            )
            for node in graph
        ]

    assert wiring(live) == wiring(link)
    assert set(live.initializers) == set(link.initializers)
    for name, value in live.initializers.items():
        other = link.initializers[name].const_value
        assert value.const_value is not None and other is not None
        assert value.const_value.tobytes() == other.tobytes(), name


@pytest.mark.slow
def test_two_exports_are_the_same_bytes_linked_or_copied(saved: Saved) -> None:
    source = saved("distilbert")
    manifests = [exported(source, mode).manifest for mode in ("copy", "copy", "link")]
    assert manifests[0] == manifests[1]
    assert manifests[0]["files"].keys() == manifests[2]["files"].keys()
    for name, entry in manifests[0]["files"].items():
        if name.startswith("onnx/"):
            assert entry == manifests[2]["files"][name]


@pytest.mark.slow
def test_a_small_single_graph_stays_one_file(saved: Saved) -> None:
    artifact = exported(saved("distilbert"), "auto")
    assert [path.name for path in (artifact.folder / "onnx").iterdir()] == ["model.onnx"]
    assert "weights" not in artifact.manifest


def test_a_checkpoint_that_cannot_be_linked_is_loaded(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise linked.UnlinkableError("of another kind")

    monkeypatch.setattr("trueport.source.load_linked", refuse)
    artifact = exported(saved("distilbert"))
    assert artifact.manifest["weights"] == {"loaded": "of another kind"}
    assert artifact.manifest["source"]["weights_sha256"]


@pytest.mark.slow
def test_a_model_that_cannot_be_traced_without_its_weights_is_traced_with_them(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Longformer, which reads values; its files come along all the same."""
    capture = trueport.capture.capture
    tried: list[bool] = []

    def asking(component: Any) -> Any:
        tried.append(linked.is_fake(component.module))
        if tried[-1]:
            raise RuntimeError("a value is needed")
        return capture(component)

    monkeypatch.setattr("trueport.capture.capture", asking)
    artifact = exported(saved("distilbert"))
    assert tried == [True, False]
    assert artifact.manifest["weights"]["files"] == {"onnx/model.onnx_data": "model.safetensors"}


def left_over(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name != "checkpoint"]


@pytest.mark.parametrize(
    "phase", ["weights", *(pytest.param(phase, marks=pytest.mark.slow) for phase in ("capture model", "hash"))]
)
def test_ctrl_c_leaves_nothing(saved: Saved, phase: str) -> None:
    source = saved("distilbert")

    def interrupt(started: str) -> None:
        if started == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exported(source, progress=interrupt)
    assert left_over(source.parent) == []


@pytest.mark.slow
def test_ctrl_c_within_a_file_leaves_nothing(saved: Saved) -> None:
    source = saved("distilbert")

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exported(source, bytes_done=interrupt)
    assert left_over(source.parent) == []
    assert load_file(source / "model.safetensors")


@pytest.mark.slow
def test_the_command_is_interrupted(saved: Saved, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = saved("distilbert"), tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TRUEPORT_CACHE", str(cache))
    code = (
        # A shell's background jobs ignore SIGINT, and so would this one.
        "import signal, sys, trueport.pipeline as p\nexport = p.export\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def told(tell):\n"
        "    return lambda phase: (print(phase, flush=True), tell(phase))\n"
        "p.export = lambda *a, **k: export(*a, **k | {'progress': told(k['progress'])})\n"
        "from trueport.cli import main\nmain()"
    )
    command = [sys.executable, "-c", code, "export", str(source), str(source.parent / "out"), "--no-tokenizer"]
    with subprocess.Popen(
        [*command, "--weights", "copy"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.strip() == "weights":
                break
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert said == "trueport: Interrupted; nothing was written. Finished, and kept for the same command: model.\n"
    assert [path.suffix for path in cache.iterdir()] == [".component"]
    assert left_over(source.parent) == []


def test_bytes_are_told(saved: Saved) -> None:
    source = saved("distilbert")
    told: dict[str, list[tuple[int, int]]] = {}
    exported(
        source,
        progress=lambda phase: told.setdefault(phase, []),
        bytes_done=lambda done, total: list(told.values())[-1].append((done, total)),
    )
    size = (source / "model.safetensors").stat().st_size
    for phase in ("weights", "hash"):
        steps = told[phase]
        assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1] >= size
        assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("dtype", "words"), [("float32", "hard links"), ("bfloat16", "nothing is linked, the weights were written")]
)
def test_a_link_that_was_asked_for_and_not_made_is_told(saved: Saved, dtype: str, words: str) -> None:
    artifact = exported(saved("distilbert"), "link", dtype=dtype)
    (line,) = weights_words(artifact.manifest, "link")
    assert words in line
    assert weights_words(exported(saved("distilbert"), "copy").manifest, "copy") == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "short"])
@pytest.mark.parametrize(("weights", "when"), [("link", "weights"), ("auto", "lower model"), ("auto", "assets")])
def test_a_checkpoint_that_goes_while_it_is_exported(saved: Saved, weights: str, how: str, when: str) -> None:
    """What a library says of a file that is gone, or short, is told as what it is, wherever it is met."""
    source = saved("distilbert")
    path = source / "model.safetensors"
    told = []

    def change(phase: str) -> None:
        told.append(phase)
        if phase == when and path.exists():
            path.unlink() if how == "gone" else os.truncate(path, 3000)

    with pytest.raises(SourceError, match="safetensors changed while it was exported"):
        trueport.export(source, source.parent / "out", tokenizer=None, proof=False, weights=weights, progress=change)
    assert when in told and not (source.parent / "out").exists()


@pytest.mark.parametrize("paranoid", [False, True])
def test_a_checkpoint_that_changes_while_it_is_exported(saved: Saved, paranoid: bool) -> None:
    """By its time of modification; where that was put back, by hash."""
    source = saved("distilbert")
    path = source / "model.safetensors"

    def change(phase: str) -> None:
        if phase == "weights":
            stat = path.stat()
            with path.open("r+b") as stream:
                stream.seek(-4, os.SEEK_END)
                stream.write(b"\1\2\3\4")
            if paranoid:
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    with pytest.raises(SourceError, match="changed while it was exported"):
        exported(source, progress=change, paranoid=paranoid)
    assert left_over(source.parent) == []


@pytest.mark.slow
def test_a_shard_that_vanishes_while_it_is_exported(saved: Saved) -> None:
    source = saved("distilbert")

    def remove(phase: str) -> None:
        if phase == "weights":
            (source / "model.safetensors").unlink()

    with pytest.raises(TrueportError):
        exported(source, progress=remove)
    assert left_over(source.parent) == []


def _spoil_missing(source: Path) -> None:
    sorted(source.glob("*.safetensors"))[-1].unlink()


def _spoil_short(source: Path) -> None:
    path = sorted(source.glob("*.safetensors"))[-1]
    os.truncate(path, path.stat().st_size - 8)


def _spoil_shape(source: Path) -> None:
    path = sorted(source.glob("*.safetensors"))[0]
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    save_file(tensors | {name: tensors[name][:-1].clone()}, path, metadata={"format": "pt"})


def _edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def _spoil_overlap(source: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        equal = [key for key, entry in header.items() if key != "__metadata__" and entry["shape"] == [32]]
        header[equal[0]]["data_offsets"] = header[equal[1]]["data_offsets"]

    _edited(sorted(source.glob("*.safetensors"))[-1], change)


def _spoil_range(source: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        last = max((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"][1])
        entry = header[last]
        entry["shape"][0] += 1
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        entry["data_offsets"][1] += size // (entry["shape"][0] - 1)

    _edited(sorted(source.glob("*.safetensors"))[-1], change)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_spoil_missing, "lacks 1 shard"),
        (_spoil_short, "truncated"),
        (_spoil_shape, r"has shape \[\d+, 32\], where its config.json wants"),
        (_spoil_overlap, "overlaps|hole"),
        (_spoil_range, "truncated"),
    ],
)
def test_spoilt_shards(saved: Saved, spoil: Callable[[Path], None], says: str) -> None:
    source = saved("llama", max_shard_size="30KB")
    spoil(source)
    with pytest.raises(SourceError, match=says) as caught:
        exported(source)
    assert "\n" not in str(caught.value)
    assert left_over(source.parent) == []


def test_a_file_system_without_hard_links_is_told_at_once(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not taken for a model that cannot be traced without its weights."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    source, phases = saved("distilbert"), list[str]()
    with pytest.raises(ArtifactError, match=r"different file systems.*--weights copy"):
        exported(source, "link", progress=phases.append)
    assert phases.count("capture model") == 1
    assert left_over(source.parent) == []


def test_a_way_that_does_not_exist(saved: Saved) -> None:
    with pytest.raises(TrueportError, match=r"no way 'symlink' for the weights\. Give one of auto, link, copy"):
        exported(saved("distilbert"), "symlink")


@pytest.mark.slow
def test_a_link_is_told(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from trueport.cli import app

    source = saved("distilbert")
    options = ["--weights", "link", "--no-proof", "--no-tokenizer"]
    done = CliRunner().invoke(app, ["export", str(source), str(source.parent / "out"), *options])
    assert done.exit_code == 0, done.output
    assert "onnx/model.onnx_data: hard links" in done.output
    assert "onnx-ir refuse files with several links" in " ".join(done.output.split())
