"""docs/executorch.md says what is: the committed text, its interfaces and its C++."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import Exported
from tests.targets.executorch.conftest import BATCH, LENGTH, program
from trueport.artifact import read_manifest

__all__ = ["program"]
ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("executorch-page")]  # three models are captured
executorch = pytest.importorskip("executorch")
MODULE = """
#pragma once
#include <string>
#include <vector>
#include <executorch/runtime/core/evalue.h>
#include <executorch/runtime/core/result.h>
namespace executorch::extension {
class Module {
 public:
  explicit Module(const std::string& path);
  runtime::Result<std::vector<runtime::EValue>> execute(const std::string&, const std::vector<runtime::EValue>&);
};
}  // namespace executorch::extension
"""
"""What the programs use of extension/module/module.h, the one header that ExecuTorch's wheel leaves out."""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("executorch_page", ROOT / "tools" / "executorch_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def views(tool: ModuleType) -> dict[str, dict[str, object]]:
    return {name: tool.view(name) for name in tool.MODELS}


def test_the_page_is_as_committed(tool: ModuleType, views: dict[str, dict[str, object]]) -> None:
    assert tool.page(views) == tool.DOCS.read_text(encoding="utf-8"), "run python tools/executorch_page.py --update"


def test_an_input_that_the_programs_do_not_know_is_refused(tool: ModuleType) -> None:
    with pytest.raises(KeyError, match="position_ids"):
        tool._inputs(tool.interfaces("llama-tales")[0]["forward"], {"input_ids": "a", "attention_mask": "b"})


# Only the syntax of the page's C++ needs a compiler; its text and shapes are held to the interface by the tests above.
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", ["llama-tales", "t5-dates", "bert-sentiment"])
def test_the_programs_are_right_cpp(
    name: str, tool: ModuleType, views: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    header = tmp_path / "executorch" / "extension" / "module" / "module.h"
    header.parent.mkdir(parents=True)
    header.write_text(MODULE)
    source = tmp_path / f"{name}.cpp"
    source.write_text(f"{tool._common()}\n{views[name]['program']}\n")
    include = Path(next(iter(executorch.__path__))) / "include"
    portable = include / "executorch" / "runtime" / "core" / "portable_type" / "c10"
    folders = [f"-I{folder}" for folder in (tmp_path, include, portable)]
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Werror", "-DC10_USING_CUSTOM_GENERATED_MACROS"]
    done = subprocess.run([*command, *folders, str(source)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["llama-tales", "t5-dates"])
def test_the_interfaces_are_those_of_an_export(name: str, tool: ModuleType, program: Exported) -> None:
    found, _ = tool.interfaces(name, {"max_batch": BATCH, "max_length": LENGTH})
    entries = read_manifest(program(name))["components"].values()
    assert [entry["method"] for entry in entries] == list(found)
    for entry, interface in zip(entries, found.values(), strict=True):
        said = interface.to_json()
        assert said == {key: entry[key] for key in said}
