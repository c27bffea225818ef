#!/usr/bin/env bash
# Makes .venv with the exact versions of constraints.txt. A second run finds the work done and needs no network.
#   PYTHON=python3.11      the interpreter, 3.10 to 3.12; without it the first suitable one of the PATH
#   TORCH=FILE.whl         a PyTorch wheel of your own, for example a CPU build
#   TORCH_INDEX=URL        a package index of your own to take PyTorch from
set -euo pipefail
cd "$(dirname "$0")"

readonly VENV=.venv
readonly STAMP="$VENV/.installed"
readonly OWN_TORCH="$VENV/.own-torch" # says where PyTorch came from when it is not PyPI's

main() {
    if is_installed; then return; fi
    make_venv
    if [ -n "${TORCH:-}${TORCH_INDEX:-}" ]; then install_own_torch; fi
    announce_download
    # setuptools first: building without isolation lets a later run work offline.
    pip_install "setuptools>=77"
    pip_install --no-build-isolation --editable ".[dev]"
    rm -rf "$VENV/tmp"
    wanted_stamp >"$STAMP"
}

is_installed() {
    [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(wanted_stamp)" ] || return 1
    refuse_other_python
    [ -z "${TORCH:-}${TORCH_INDEX:-}" ] || [ "$(cat "$OWN_TORCH" 2>/dev/null)" = "${TORCH:-}${TORCH_INDEX:-}" ]
}

# The folder is part of it: an editable install of a folder that was moved points to the old place.
wanted_stamp() { { pwd; cat pyproject.toml constraints.txt; } | cksum; }

make_venv() {
    if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        refuse_other_python
        return
    fi
    local python
    python="$(find_python)"
    echo "Making $VENV with $("$python" --version) ($python)."
    if ! "$python" -m venv --clear "$VENV"; then
        rm -rf "$VENV"
        fail "$python cannot make virtual environments (it lacks venv or ensurepip)." \
            "On Debian and Ubuntu install the package python3-venv, or choose another: PYTHON=/path/to/python3"
    fi
}

find_python() {
    local candidate found=""
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
        found="$found $candidate is $("$candidate" --version 2>/dev/null || echo missing);"
    done
    fail "FrameScribe needs Python 3.10, 3.11 or 3.12. Found:$found" \
        "Choose the interpreter, for example: make demo PYTHON=/usr/bin/python3.11"
}

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

refuse_other_python() {
    if [ -z "${PYTHON:-}" ]; then return; fi
    local asked present
    asked="$(find_python)"
    asked="$("$asked" --version)"
    present="$("$VENV/bin/python" --version)"
    if [ "$asked" != "$present" ]; then
        fail "$VENV holds $present, but PYTHON asks for $asked." "Delete $VENV to make it anew: rm -rf $VENV"
    fi
}

install_own_torch() {
    if [ -n "${TORCH:-}" ]; then
        [ -f "$TORCH" ] || fail "TORCH=$TORCH is not a file." "It takes the path of a PyTorch wheel for this Python."
        pip_install --no-deps --force-reinstall "$TORCH"
    else
        pip_install --no-deps --force-reinstall --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)" ||
            pip_install --no-deps --force-reinstall --index-url "$TORCH_INDEX" torch
    fi
    echo "${TORCH:-}${TORCH_INDEX:-}" >"$OWN_TORCH"
}

announce_download() {
    if [ "$(uname -s)" != Linux ] || "$VENV/bin/python" -c 'import torch' 2>/dev/null; then return; fi
    cat <<'TEXT'
Next: PyTorch from PyPI, which on Linux is the CUDA build: about 2.8 GB to download, 5 GB installed (once).
Without a GPU, stop here (Ctrl-C) and give a CPU build: TORCH=/path/to/torch.whl or TORCH_INDEX=URL (make help).
TEXT
}

pip_install() {
    mkdir -p "$VENV/tmp"
    write_constraints >"$VENV/tmp/constraints.txt"
    # Nothing outside this folder: neither pip's temporary files nor, unless one is given, its cache.
    local cache=(--no-cache-dir)
    if [ -n "${PIP_CACHE_DIR:-}" ]; then cache=(--cache-dir "$PIP_CACHE_DIR"); fi
    TMPDIR="$PWD/$VENV/tmp" "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
        "${cache[@]}" --constraint "$VENV/tmp/constraints.txt" "$@" |
        { grep --line-buffered -v '^Requirement already satisfied' || true; }
}

# A PyTorch of the user's may be of another release: then ours does not bind it.
write_constraints() {
    if [ -n "${TORCH:-}${TORCH_INDEX:-}" ] || [ -f "$OWN_TORCH" ]; then
        grep -v -E '^(torch|triton|cuda-|nvidia-)' constraints.txt
    else
        cat constraints.txt
    fi
}

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

main
