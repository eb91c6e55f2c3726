#!/usr/bin/env bash
# Tests and measures what needs a GPU, in one go of less than nine minutes, on a bare machine without a network.
#
#   bash benchmarks/gpu.sh
#
# Wants Python 3.12, torch 2.11, triton 3.6, a C compiler and a GPU; without one the kernels run under Triton's
# interpreter and the benchmarks on small sizes. Each part has its own limit, and one that fails does not keep the
# others from running; they are named at the end, and the exit status is how many they were.
#
# CAPSNET_DATA  the folder of MNIST's files; without it the bundled digits stand in for the time to an accuracy
# OUT           where the JSON goes: routing/cuda.json and so on, and parts.json, how each part ended. If it is not set
#               that is build/, but what a GPU measured goes to results/
# PYTHON        python3 if it is not set
# WHEELS        a folder of wheels with what the machine lacks: all of these, where it has torch alone. With
#               for="--only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64"
#               they come, where there is a network, from
#               pip download --dest wheels $for --no-deps lightning-fabric lightning-utilities
#               pip download --dest wheels $for einops filelock fsspec huggingface-hub matplotlib pooch pydantic pytest pytest-xdist rich \
#                   safetensors scikit-learn tensorboard tyro
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
to=()
if [ -n "${OUT:-}" ]; then
  mkdir -p "$OUT" && to=(--folder "$(cd "$OUT" && pwd)") || exit
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH="$PWD:$site" PYTHONUNBUFFERED=1
parts=() failed=()

part() { # name, seconds at most, command
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  printf '\n== %s\n' "$name"
  timeout --kill-after=10 "$limit" "$@"
  status=$?
  parts+=("{\"part\": \"$name\", \"seconds\": $((SECONDS - start)), \"limit\": $limit, \"status\": $status}")
  [ "$status" -eq 0 ] || failed+=("$name ($([ "$status" -eq 124 ] && echo "over $limit s" || echo "status $status"))")
}

if [ -n "${WHEELS:-}" ]; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl || exit
fi
# The package lies on the path uninstalled; what asks for its version finds it here.
"$PYTHON" - "$site" <<'PROGRAM' || exit
import sys, tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
about = Path(sys.argv[1], f"capsnet-{project['version']}.dist-info")
about.mkdir()
(about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: capsnet\nVersion: {project['version']}\n")
PROGRAM
device=$("$PYTHON" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")') || exit
# Versions that are not those of constraints.txt may warn of what the tests' own would not.
test=("$PYTHON" -m pytest -q -W default -p no:cacheprovider)

if [ "$device" = cuda ]; then
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  "$PYTHON" -c 'import xdist' 2>/dev/null && test+=(-n 8)
  part kernels 120 "${test[@]}" tests/ops/test_kernels.py
  part paths 60 "${test[@]}" tests/ops -k triton
  part steps 40 "${test[@]}" tests/test_steps.py
  part routing 110 "$PYTHON" benchmarks/routing.py "${to[@]}"
  part training 90 "$PYTHON" benchmarks/training.py "${to[@]}"
  [ -n "${CAPSNET_DATA:-}" ] || to+=(--quick)
  part epoch_to_accuracy 100 "$PYTHON" benchmarks/epoch_to_accuracy.py "${to[@]}"
else
  echo "there is no GPU: the kernels run under Triton's interpreter, the benchmarks on small sizes"
  part kernels 120 "${test[@]}" tests/ops/test_kernels.py -k "split or empty or layout"
  part steps 120 "${test[@]}" tests/test_steps.py
  for name in routing training epoch_to_accuracy; do
    part "$name" 120 "$PYTHON" "benchmarks/$name.py" --quick "${to[@]}"
  done
fi

mkdir -p "${OUT:=build}"
(IFS=,; printf '{"device": "%s", "parts": [%s]}\n' "$device" "${parts[*]}") >"$OUT/parts.json"
printf '\n%s parts in %s s; ' "${#parts[@]}" "$SECONDS"
[ "${#failed[@]}" -eq 0 ] && echo "all went well" || (IFS=,; echo "failed: ${failed[*]}")
exit "${#failed[@]}"
