"""The command line: one command for each public function, with its names and options."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueport import __version__
from trueport.commands import register
from trueport.commands.terminal import kept_words, moved_words, progress, show, write_report
from trueport.errors import Interruption, TrueportError
from trueport.interrupts import terminated

if TYPE_CHECKING:
    from trueport.proof.result import Proof

app = typer.Typer(
    name="trueport",
    help="Carry transformer models to ONNX Runtime and ExecuTorch, with a proof.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

TERMINATED = 143
"""Exit code after SIGTERM, as the shell reports it."""
NO_MEMORY = "Out of memory. Ask for less, close other programs, or use a machine with more."
NO_ROOM = ("DefaultCPUAllocator", "Storage size calculation overflowed")
"""What torch says, which has no MemoryError."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of a disk, or of a file that the output goes to."""
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python files of the checkpoint.")]
ProofMemory = Annotated[
    str | None,
    typer.Option("--proof-memory", help="What a proof may take, such as 4GB (default 80 % of what is free)."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the proof's inputs.")]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration", help="Prompts, one in each line: half for a quantisation's scales, half for its gate."
    ),
]


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A hub id, a folder, or FILE.py:NAME.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[str, typer.Option("--to", help="The target: onnx, executorch, or onnx,executorch.")] = "onnx",
    task: Annotated[str | None, typer.Option("--task", help="What the model is for, such as text-generation.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32 (default), float16 or bfloat16.")] = None,
    opset: Annotated[int | None, typer.Option("--opset", help="ONNX opset (default 23).")] = None,
    weights: Annotated[
        str,
        typer.Option("--weights", help="The checkpoint's files: auto (clone, else copy), link (hard links) or copy."),
    ] = "auto",
    paranoid: Annotated[
        bool, typer.Option("--paranoid", help="Hash every file, and the checkpoint's before and after.")
    ] = False,
    stamp: Annotated[
        bool,
        typer.Option("--stamp/--no-stamp", help="Trace equal layers once, or each of them; the files are the same."),
    ] = True,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Go on where the same export was interrupted, or begin anew."),
    ] = True,
    backend: Annotated[
        str | None, typer.Option("--backend", help="ExecuTorch's kernels: xnnpack (default) or portable.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", min=1, help="Rows that an ExecuTorch program serves (default 8).")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=2, help="Tokens that it serves, past and new (default 512).")
    ] = None,
    max_arena: Annotated[
        int | None, typer.Option("--max-arena", min=1, help="Bytes of memory that it may plan (default 2 GiB).")
    ] = None,
    max_pte: Annotated[
        int | None,
        typer.Option(
            "--max-pte", min=0, help="Bytes of weights past which they lie in a .ptd beside it (default 2 GB)."
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize", help="int8, int8-static, int4 or auto; of an ExecuTorch program 8da8w, 8da4w or int8."
        ),
    ] = None,
    calibration: Calibration = None,
    block_size: Annotated[
        int | None,
        typer.Option("--block-size", help="The most weights that share a scale: 16 to 128; 128 is fastest."),
    ] = None,
    optimize: Annotated[
        str | None, typer.Option("--optimize", help="Fuse the graphs for an execution provider: cpu.")
    ] = None,
    caches: Annotated[
        str, typer.Option("--caches", help="With --optimize: copied (default; any client) or in-place.")
    ] = "copied",
    tokenizer: Annotated[
        bool, typer.Option("--tokenizer/--no-tokenizer", help="Whether the tokenizer goes along.")
    ] = True,
    proof: Annotated[bool, typer.Option("--proof/--no-proof", help="Whether to prove the export.")] = True,
    allow_unproven: Annotated[
        bool, typer.Option("--allow-unproven", help="Keep a folder whose proof failed, stamped so.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id.")] = None,
    seed: Seed = None,
    proof_memory: ProofMemory = None,
    debug: Debug = False,
) -> None:
    """Export MODEL to the folder OUT, and prove that what arrived is the model that left."""
    from trueport import pipeline
    from trueport.words import fusion_words, program_words, weights_words

    with progress() as tell:
        try:
            artifact = pipeline.export(
                model,
                out,
                to=to,
                task=task,
                dtype=dtype,
                opset=opset,
                weights=weights,
                paranoid=paranoid,
                stamp=stamp,
                resume=resume,
                backend=backend,
                max_batch=max_batch,
                max_length=max_length,
                max_arena=max_arena,
                max_pte=max_pte,
                quantize=quantize,
                calibration=calibration,
                block_size=block_size,
                optimize=optimize,
                caches=caches,
                tokenizer="auto" if tokenizer else None,
                proof=proof,
                allow_unproven=allow_unproven,
                force=force,
                trust_remote_code=trust_remote_code,
                revision=revision,
                seed=seed,
                proof_memory=proof_memory,
                progress=tell,
                bytes_done=tell.bytes_done,
            )
            content, failure = artifact.proof, None
        except TrueportError as error:
            if getattr(error, "proof", None) is None:
                raise
            content, failure = error.proof.to_json(), error  # type: ignore[attr-defined]
        except KeyboardInterrupt as interrupt:
            raise Interruption("Interrupted; nothing was written", kept_words(interrupt)) from interrupt
    show(content)
    if failure is not None:
        raise failure
    for line in [*weights_words(artifact.manifest, weights), *program_words(artifact.manifest)]:
        typer.echo(line)
    for line in artifact.notes:
        typer.echo(f"{line}.")
    if "optimized" in artifact.manifest:
        typer.echo("\n".join(fusion_words(artifact.manifest["optimized"])))
    if content is None:
        typer.echo(f"{out}: written, unproven (--no-proof).")
    else:
        typer.echo(f"{out}: written. The report: {out / 'report.html'}")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="The folder to judge, whoever wrote it.")],
    against: Annotated[str | None, typer.Option("--against", help="The original: as for export.")] = None,
    clauses: Annotated[
        str | None, typer.Option("--clauses", help="Clauses to ask, separated by commas; all by default.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the proof to this file too.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    seed: Seed = None,
    proof_memory: ProofMemory = None,
    calibration: Calibration = None,
    debug: Debug = False,
) -> None:
    """Judge FOLDER: with the original every clause, without it those that need none."""
    from trueport import pipeline

    _check_json_place(json_file, folder)
    chosen = [name.strip() for name in clauses.split(",")] if clauses is not None else None
    with progress() as tell:
        proof: Proof = pipeline.verify(
            folder, against=against, clauses=chosen, trust_remote_code=trust_remote_code, seed=seed,
            proof_memory=proof_memory, calibration=calibration, progress=tell,
        )  # fmt: skip
    show(proof.to_json())
    if json_file is not None:
        write_report(json_file, proof.to_json())
    if not proof.proven:
        raise typer.Exit(1)


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="A folder that `trueport export` wrote.")],
    text: Annotated[str, typer.Argument(help="The prompt, or a seq2seq model's source.")],
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="At most so many new tokens.")
    ] = None,
    num_beams: Annotated[
        int, typer.Option("--num-beams", min=1, max=256, help="Beams; more than 1 cannot be streamed.")
    ] = 1,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of taking the likeliest token.")] = False,
    temperature: Annotated[float | None, typer.Option("--temperature", min=1e-3, help="Of the sampling.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Of the sampling.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Of the sampling.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=-(2**63), max=2**64 - 1, help="Of the sampling.")] = 0,
    memory: Annotated[str, typer.Option("--memory", help="fast (default), pages or map.")] = "fast",
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="onnx or executorch, where the folder holds both.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Stream what the exported model says to TEXT."""
    from trueport.runtime.text import stream

    options: dict[str, Any] = {"num_beams": num_beams, "do_sample": sample}
    for name, value in (
        ("max_new_tokens", max_new_tokens),
        ("temperature", temperature),
        ("top_k", top_k),
        ("top_p", top_p),
    ):
        if value is not None:
            options[name] = value
    stream(folder, text, options, seed=seed, memory=memory, runtime=runtime)


register(app)


def _check_json_place(json_file: Path | None, folder: Path) -> None:
    """Refuse before any work a place that cannot be written, or that belongs to the folder under judgement."""
    if json_file is None:
        return
    if json_file.is_dir() or not json_file.absolute().parent.is_dir():
        raise TrueportError(f"{json_file} cannot be written", "Give a file in a folder that exists.")
    if json_file.resolve().is_relative_to(folder.resolve()):
        raise TrueportError(f"{json_file} lies in the folder that is judged", "Give another place.")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"trueport {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; every error becomes one line on stderr and an exit code."""
    with terminated() as came:
        try:
            _run("--debug" in sys.argv)
        except SystemExit as ended:
            if came() and ended.code == Interruption.exit_code:
                sys.exit(TERMINATED)
            raise


def _run(debug: bool) -> None:
    try:
        code = app(standalone_mode=False)
        if code == Interruption.exit_code:
            raise KeyboardInterrupt
        if moved := moved_words():
            typer.echo(moved)
        sys.exit(code if isinstance(code, int) else 0)
    except TrueportError as error:
        _fail(f"{error} {kept_words(error)}", error.exit_code, debug)
    except (typer.Abort, KeyboardInterrupt):
        _fail("Interrupted; nothing was written.", Interruption.exit_code, debug)
    except BrokenPipeError:
        # Nobody reads on: as the shell reports a program that SIGPIPE ended. Exit code 1 would mean "not proven".
        _write_no_more()
        sys.exit(141)
    except MemoryError as error:
        _fail(f"{NO_MEMORY} {kept_words(error)}", 2, debug)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            _write_no_more()
            where = f" for {error.filename}" if error.filename else ""
            _fail(f"No space left{where}. Free space, or write to another disk.", 2, debug)
        if any(words in str(error) for words in NO_ROOM):
            _fail(f"{NO_MEMORY} {kept_words(error)}", 2, debug)
        # typer brings its own click: what the user mistyped is known by this method, not by a public class.
        if hasattr(error, "format_message"):
            context = getattr(error, "ctx", None)
            message = error.format_message().rstrip(".?")
            _fail(f"{message}. See `{context.command_path if context else 'trueport'} --help`.", 2, debug)
        reason = " ".join(str(error).split())[:300]
        _fail(f"{type(error).__name__}: {reason}. This is a fault of Trueport's; --debug shows where.", 2, debug)


def _write_no_more() -> None:
    """What stdout still holds is dropped: Python would try again as it ends."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    from trueport.words import clean  # what a stranger's file calls its nodes may be escapes

    print(f"trueport: {clean(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)
