#!/usr/bin/env bash
# Runs unmodified SGLang on the published wheel: the tests, then the end-to-end benchmark.
#
# usage: tests/consumer/run.sh OUT_DIR [tests | bench] [-- PYTEST_ARGUMENT…]
#
#   OUT_DIR          gets consumer.json, end_to_end.json and what SGLang logged
#   tests, bench     one of the two alone
#   PYTEST_ARGUMENT  narrows the tests: -- -k graphs
#
# PYTHON names the Python (default: python3) that has torch 2.7.0, SGLang 0.5.1.post3 and pytest. The newest
# sgl_kernel of SGLK_WHEELHOUSE (default: wheelhouse) is put before them, in a folder of its own.
# Exit code: 0, or that of the first part that failed.
set -euo pipefail
cd "$(dirname "$0")/../.."

usage() { sed -n '2,/^set/{/^#/!d; s/^# \{0,1\}//; p}' tests/consumer/run.sh; }

[[ ${1:-} != -h && ${1:-} != --help ]] || { usage; exit; }
[[ $# -gt 0 && $1 != -- ]] || { usage >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
parts=(tests bench)
if [[ $# -gt 0 && $1 != -- ]]; then
  [[ $1 == tests || $1 == bench ]] || { echo "run.sh: expected tests or bench, got $1 (see --help)" >&2; exit 2; }
  parts=("$1")
  shift
fi
[[ $# -eq 0 ]] || shift

python=${PYTHON:-python3}
wheelhouse=${SGLK_WHEELHOUSE:-wheelhouse}
wheel=$(find "$wheelhouse" -maxdepth 1 -name 'sgl_kernel-0*.whl' | sort -V | tail -n 1)
[[ -n $wheel ]] || { echo "run.sh: $wheelhouse: no sgl_kernel wheel; build one with nox -s wheel" >&2; exit 3; }
package=$(mktemp -d)
trap 'rm -rf "$package"' EXIT
echo "== $(basename "$wheel")"
"$python" -m pip install --quiet --no-index --no-deps --target "$package" "$wheel"
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 # the tests need none, whatever is installed
export PYTHONPATH=$package${PYTHONPATH:+:$PYTHONPATH}
"$python" -m sgl_kernel

code=0
for part in "${parts[@]}"; do
  echo "== $part"
  if [[ $part == tests ]]; then
    "$python" -m pytest tests/consumer -v -p no:cacheprovider --consumer-out "$out" "$@" || code=$?
  else
    "$python" -m benchmarks.end_to_end "$out" || code=$((code ? code : $?))
  fi
done
exit "$code"
