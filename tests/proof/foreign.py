"""Folders that other tools write, made anew from a live model."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging


def mobius(model: PreTrainedModel, folder: Path) -> Path:
    """``mobius build`` from the saved model, and the config beside it, which mobius leaves out."""
    from mobius.__main__ import main

    source, out = folder / "source", folder / "mobius"
    with _quiet():
        model.save_pretrained(source)
        main(["build", "--config", str(source), str(out)])
    model.config.save_pretrained(out)
    return out


PADDED = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0, 1, 1]])
"""Right padding, left padding, holes: the mask of a sample."""


def exporters(model: PreTrainedModel, folder: Path, mask: torch.Tensor, *, generation: bool = True) -> Path:
    """transformers.exporters' OnnxExporter on a sample under ``mask``, (batch, length), as its guide shows."""
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    ids = torch.randint(5, 95, mask.shape, generator=torch.Generator().manual_seed(0))
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    with _quiet():
        exporter = OnnxExporter()
        export = exporter.export_for_generation if generation else exporter.export
        export(model, inputs, OnnxConfig(dynamic=True)).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def _quiet() -> Any:
    """Neither tool's progress and warnings; they are not ours to read."""
    verbosity, level = transformers_logging.get_verbosity(), logging.root.manager.disable
    transformers_logging.set_verbosity_error()
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        logging.disable(level)
