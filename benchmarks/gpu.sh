#!/usr/bin/env bash
# Runs the tests and benchmarks that need a GPU, in three groups of less than nine minutes each, without a network.
#
#   bash benchmarks/gpu.sh kernels     tests of the Triton kernels, of routing by them and of recorded training steps
#   bash benchmarks/gpu.sh speed       benchmarks of routing, training and the time to an accuracy
#   bash benchmarks/gpu.sh accuracy    long trainings with seeds 0, 1 and 2; a second call resumes those that were stopped
#
# Without an argument it runs all three groups. It needs Python 3.12, torch 2.11, triton 3.6, a C compiler and a GPU.
# Without a GPU the kernels run under Triton's interpreter, and everything else with small sizes. Each part has a time
# limit. If a part fails, the others still run; the script ends with the names of the failed parts, and its exit status
# is their number.
#
# CAPSNET_DATA  folder of MNIST's files; without it networks are trained on the bundled digits
# OUT           folder of all output: routing/cuda.json and other results, runs/ with weights and checkpoints,
#               mnist-fast-0.json and other results of trainings, parts-kernels.json and other lists of parts with their
#               exit statuses. Default: build/, and results/ for the JSON that a GPU measured
# EPOCHS        of each long training; default: 60, or 3 without a GPU
# PYTHON        default: python3
# WHEELS        folder of wheels of the packages that the machine lacks; the script names these packages. On a machine
#               with a network,
#               for="--only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64"
#               pip download --dest wheels $for --no-deps --requirement benchmarks/gpu-wheels.txt
#               downloads them all; those that the machine has can be left out (scipy, scikit-learn, matplotlib and
#               grpcio are the largest)
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
groups=("$@")
[ $# -gt 0 ] || groups=(kernels speed accuracy)
for group in "${groups[@]}"; do
  case "$group" in kernels | speed | accuracy) ;; *) echo "$group is none of kernels, speed, accuracy" >&2; exit 2 ;; esac
done
to=()
if [ -n "${OUT:-}" ]; then
  mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) && to=(--folder "$OUT") || exit
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH="$PWD:$site" PYTHONUNBUFFERED=1
parts=() failed=() count=0

part() { # name, seconds at most, command
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  printf '\n== %s\n' "$name"
  timeout --kill-after=10 "$limit" "$@"
  status=$?
  parts+=("{\"part\": \"$name\", \"seconds\": $((SECONDS - start)), \"limit\": $limit, \"status\": $status}")
  count=$((count + 1))
  [ "$status" -eq 0 ] || failed+=("$name ($([ "$status" -eq 124 ] && echo "over $limit s" || echo "status $status"))")
}

if [ -n "${WHEELS:-}" ]; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl || exit
fi
# The package is on the path but not installed; code that asks for its version finds it here.
"$PYTHON" - "$site" <<'PROGRAM' || exit
import re, sys, tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
lacking = []
for needed in (*project["dependencies"], "pytest"):
    name = re.match(r"[\w.-]+", needed)[0]
    try:
        version(name)
    except PackageNotFoundError:
        lacking.append(name)
if lacking:
    sys.exit(f"this Python lacks {', '.join(lacking)}: give a folder of wheels in WHEELS")
about = Path(sys.argv[1], f"capsnet-{project['version']}.dist-info")
about.mkdir()
(about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: capsnet\nVersion: {project['version']}\n")
PROGRAM
device=$("$PYTHON" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")') || exit
# Versions other than those of constraints.txt may give more warnings.
test=("$PYTHON" -m pytest -q -W default -p no:cacheprovider)

kernels() {
  if [ "$device" = cuda ]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    "$PYTHON" -c 'import xdist' 2>/dev/null && test+=(-n 8)
    part kernels 250 "${test[@]}" tests/ops/test_triton.py
    part backends 130 "${test[@]}" tests/ops --ignore-glob "*/test_triton*.py" -k triton
    part steps 110 "${test[@]}" tests/test_steps.py
  else
    part kernels 120 "${test[@]}" tests/ops/test_triton.py -k "split or empty or layout"
    part steps 120 "${test[@]}" tests/test_steps.py
  fi
}

speed() {
  local quick=(--quick)
  [ "$device" = cuda ] && quick=()
  part routing 270 "$PYTHON" benchmarks/routing.py "${quick[@]}" "${to[@]}"
  part training 120 "$PYTHON" benchmarks/training.py "${quick[@]}" "${to[@]}"
  [ -n "${CAPSNET_DATA:-}" ] || quick=(--quick)
  part epoch_to_accuracy 100 "$PYTHON" benchmarks/epoch_to_accuracy.py "${quick[@]}" "${to[@]}"
}

accuracy() {
  local data=mnist recipe=fast seeds=(0 1 2) folder=${OUT:-results} runs=${OUT:-build}/runs epochs=${EPOCHS:-60}
  [ -n "${CAPSNET_DATA:-}" ] || { data=digits recipe=digits; }
  [ "$device" = cuda ] || { data=digits recipe=digits seeds=(0) folder=${OUT:-build} epochs=${EPOCHS:-3}; }
  mkdir -p "$runs" "$folder"
  for seed in "${seeds[@]}"; do
    local name=$data-$recipe-$seed
    local options=(--recipe "$recipe" --epochs "$epochs" --seed "$seed")
    [ ! -e "$runs/$name/recipe.json" ] || options=(--resume)
    [ -e "$runs/$name/results.json" ] ||
      part "$name" 165 "$PYTHON" -c 'from capsnet.cli import main; main()' train "$data" --run "$runs/$name" "${options[@]}"
    [ ! -e "$runs/$name/results.json" ] || cp "$runs/$name/results.json" "$folder/$name.json"
  done
}

[ "$device" = cuda ] || echo "there is no GPU: the kernels run under Triton's interpreter, everything else with small sizes"
mkdir -p "${OUT:-build}"
for group in "${groups[@]}"; do
  parts=()
  "$group"
  (IFS=,; printf '{"device": "%s", "parts": [%s]}\n' "$device" "${parts[*]}") >"${OUT:-build}/parts-$group.json"
done
printf '\n%s parts in %s s; ' "$count" "$SECONDS"
[ "${#failed[@]}" -eq 0 ] && echo "all went well" || (IFS=,; echo "failed: ${failed[*]}")
exit "${#failed[@]}"
