#!/usr/bin/env bash
# Makes the environments of the peers that run apart from Trueport's, for benchmarks.context, .large and .bound: optimum-onnx,
# onnxruntime-genai and mobius-onnx below .peers. TRUEPORT_PEERS names another folder.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
PLACE="${TRUEPORT_PEERS:-$ROOT/.peers}"
TORCH_VERSION="$(sed -n 's/^TORCH_VERSION="\(.*\)"$/\1/p' "$ROOT/tools/setup.sh")"
export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

environment() { # $1: its name; the rest: what is installed into it
    local name="$1" folder="$PLACE/$1"
    shift
    if [[ -f "$folder/.stamp" && "$(cat "$folder/.stamp")" == "$*" ]]; then
        return 0
    fi
    printf 'peers: making %s\n' "$name"
    rm -rf "$folder"
    "$ROOT/.venv/bin/python" -m venv "$folder"
    "$folder/bin/pip" install --quiet "torch==$TORCH_VERSION+cpu" 2>/dev/null ||
        "$folder/bin/pip" install --quiet "torch==$TORCH_VERSION"
    "$folder/bin/pip" install --quiet "$@"
    printf '%s\n' "$*" >"$folder/.stamp"
}

environment optimum-onnx "optimum-onnx==0.1.0" "transformers<4.58" "onnxruntime==1.31.1"
environment onnxruntime-genai "onnxruntime-genai==0.18.0" "onnxruntime==1.31.1" onnx onnx-ir tqdm "transformers>=5.23,<6"
environment mobius-onnx "mobius-onnx==0.1.0" "transformers>=5.23,<6"
