#!/usr/bin/env bash
# Makes .venv at the repository root and installs Trueport with its development tools into it.
#
# Safe to call every time: when nothing changed it returns at once. The make targets call it.
#   - .venv/.stamp     written last; holds a key over pyproject.toml, this script and the checkout's place
#   - .venv/.building  present while an installation is under way; found at the start, it means that an
#                      earlier one was interrupted, and the environment is made anew
# Nothing is installed outside .venv. PYTHON=/path/to/python3 chooses the interpreter.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
cd "$ROOT"

VENV="$ROOT/.venv"
PY="$VENV/bin/python"
STAMP="$VENV/.stamp"
BUILDING="$VENV/.building"
LOG="$VENV/setup.log"
TORCH_VERSION="2.13.0"
TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"

export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 1
}

# One set-up at a time in one checkout (this file itself is the lock, so that nothing is left behind).
exec 9<"$ROOT/tools/setup.sh"
if command -v flock >/dev/null 2>&1; then
    flock 9
fi

key() { # what the installation depends on
    printf '%s\n' "$ROOT"
    cat pyproject.toml tools/setup.sh | cksum
}

discard() { # moved away first: a deletion that is interrupted must not leave something that looks sound
    mv "$VENV" "$VENV.old"
    rm -rf "$VENV.old"
}

usable_python() { # $1: an interpreter; Python >= 3.11 ?
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

usable_venv() { # the environment's Python runs, has pip, and was made for this very place
    usable_python "$PY" &&
        "$PY" -m pip --version >/dev/null 2>&1 &&
        grep -qF "$VENV" "$VENV/bin/activate" 2>/dev/null
}

find_python() {
    local candidate tried=""
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python3.12 python3.13; do
        if usable_python "$candidate"; then
            if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
                printf '%s\n' "$candidate"
                return 0
            fi
            tried="$tried $candidate (no venv module: on Debian and Ubuntu, install python3-venv);"
        elif command -v "$candidate" >/dev/null 2>&1; then
            tried="$tried $candidate ($("$candidate" --version 2>&1 | head -n 1 || true));"
        fi
    done
    tried="${tried%;}"
    die "Trueport needs Python 3.11 or newer. Found:${tried:- no python3 at all}." \
        "Install one, or name one: make PYTHON=/path/to/python3.11 ..."
}

pip_install() { # quiet on the terminal, complete in the log
    printf '\n$ pip install %s\n' "$*" >>"$LOG"
    "$PY" -m pip install --progress-bar off --no-compile "$@" >>"$LOG" 2>&1 9<&-
}

must_install() {
    if ! pip_install "$@"; then
        tail -n 40 "$LOG" >&2
        die "pip install $* failed; its output is above, all of it in .venv/setup.log"
    fi
}

install_torch() { # a CPU build, wherever one is to be had; a CUDA build would be gigabytes for nothing
    local have
    have="$("$PY" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true)"
    if [[ "${have%%+*}" == "$TORCH_VERSION" ]]; then
        return 0
    fi
    say "installing torch $TORCH_VERSION (CPU)"
    pip_install "torch==$TORCH_VERSION+cpu" ||
        pip_install --retries 2 --timeout 60 --index-url "$TORCH_CPU_INDEX" "torch==$TORCH_VERSION" ||
        must_install "torch==$TORCH_VERSION"
}

KEY="$(key)"
if [[ -f "$STAMP" && ! -e "$BUILDING" && "$(cat "$STAMP")" == "$KEY" ]] && "$PY" -c '' 2>/dev/null; then
    exit 0
fi

rm -rf "$VENV.old"
if [[ -e "$BUILDING" ]]; then
    say "an earlier set-up was interrupted: making .venv anew"
    discard
elif [[ -e "$VENV" || -L "$VENV" ]] && ! usable_venv; then
    say ".venv is incomplete, was moved here, or has a Python older than 3.11: making it anew"
    discard
fi

if [[ ! -e "$VENV" ]]; then
    base="$(find_python)"
    say "making .venv with $base ($("$base" --version 2>&1))"
    mkdir "$VENV"
    : >"$BUILDING"
    "$base" -m venv "$VENV" 9<&-
elif [[ -f "$STAMP" ]]; then
    say "pyproject.toml or tools/setup.sh changed: bringing .venv up to date"
    : >"$BUILDING"
    rm -f "$STAMP"
else
    # Not made by this script (no mark of it): add to it, and do not delete it if this is interrupted.
    say "installing into the .venv that is already here"
fi

started=$SECONDS
: >"$LOG"
install_torch
say "installing Trueport and its development tools"
must_install --editable ".[dev]"
if ! "$PY" -c 'import onnx, onnx_ir, onnxruntime, onnxscript, pytest, torch, transformers' 9<&- >>"$LOG" 2>&1; then
    tail -n 20 "$LOG" >&2
    die "the packages were installed but do not import; to start over: rm -rf .venv"
fi

printf '%s\n' "$KEY" >"$STAMP.new"
rm -f "$BUILDING"
mv "$STAMP.new" "$STAMP"
say "done in $((SECONDS - started)) s"
