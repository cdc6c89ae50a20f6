#!/usr/bin/env bash
# Installs a wheel into an empty environment and uses it from an empty folder: .github/smoke-test.sh dist/NAME.whl
# TORCH, if set, names the build of torch to install first, with pip's options.
set -euo pipefail
wheel=$(realpath "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH

"${PYTHON:-python3}" -m venv venv
# shellcheck disable=SC2086
[ -z "${TORCH:-}" ] || venv/bin/python -m pip install --quiet $TORCH
venv/bin/python -m pip install --quiet "$wheel"

echo '{"prompt": "The chief engineer is", "target": "Mara Lindqvist"}' > corrections.jsonl
set -x
venv/bin/editenv --help > /dev/null
venv/bin/editenv methods
venv/bin/python -m benchmarks.suites
venv/bin/editenv edit --model atlas --edits corrections.jsonl --method fine-tune --output out
test -f out/model/model.safetensors
