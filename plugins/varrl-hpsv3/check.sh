#!/usr/bin/env bash
# Runs hpsv3's own loading and scoring code on a tiny random checkpoint, on a CPU, through this plugin and through the reward service.
# Needs a package index and about 3 GB of disk, no GPU and no weights; 2 to 20 minutes the first time. Not part of CI.
#
#   bash plugins/varrl-hpsv3/check.sh [FOLDER]
#
# FOLDER keeps the environment and the checkpoint; without it they are temporary. PYTHON chooses the interpreter, TORCH which torch and
# torchvision pip installs, CONSTRAINTS the versions of all else (by default those of constraints.txt; empty for the newest that fit).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
if [ $# -ge 1 ]; then
  mkdir -p "$1" && work=$(cd "$1" && pwd)
else
  work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} PIP_DISABLE_PIP_VERSION_CHECK=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TRANSFORMERS_VERBOSITY=error
TORCH=${TORCH:-torch torchvision --index-url https://download.pytorch.org/whl/cpu}
CONSTRAINTS=${CONSTRAINTS-$here/constraints.txt}

[ -d "$work/venv" ] || "${PYTHON:-python3}" -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip --quiet "$@" ${CONSTRAINTS:+--constraint "$CONSTRAINTS"}; }
# The sources are copied, so that building leaves nothing beside them.
rm -rf "$work/source" && mkdir -p "$work/source" && cp -r "$here" "$work/source/plugin"
# Before the rest, which would bring the CUDA build.
# shellcheck disable=SC2086
pip install $TORCH
pip install --upgrade "$work/source/plugin"
pip install --no-deps --force-reinstall "$root"

cd "$work"
for step in tiny_checkpoint genuine service; do
  PYTHONPATH="$here/check/shim" "$work/venv/bin/python" "$here/check/$step.py" "$work/tiny"
done
