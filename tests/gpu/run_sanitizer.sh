#!/usr/bin/env bash
# Runs small shapes of every kernel under NVIDIA's compute-sanitizer.
#
# usage: tests/gpu/run_sanitizer.sh [TOOL…] [-- PYTEST_ARGUMENT…]
#
#   TOOL             memcheck, racecheck, synccheck or initcheck; without any: memcheck and racecheck
#   PYTEST_ARGUMENT  narrows the tests: -- -k norm
#
# PYTHON names the Python that has torch and sgl_kernel (default: python3).
# Exit code: 0, or that of the first tool that found something.
set -euo pipefail
cd "$(dirname "$0")/../.."

tools=()
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    -h | --help)
      sed -n '2,/^set/{/^#/!d; s/^# \{0,1\}//; p}' tests/gpu/run_sanitizer.sh
      exit
      ;;
    memcheck | racecheck | synccheck | initcheck) tools+=("$1") ;;
    *)
      echo "run_sanitizer.sh: expected memcheck, racecheck, synccheck or initcheck, got $1 (see --help)" >&2
      exit 2
      ;;
  esac
  shift
done
[[ $# -eq 0 ]] || shift
[[ ${#tools[@]} -gt 0 ]] || tools=(memcheck racecheck)

if ! type compute-sanitizer > /dev/null 2>&1; then
  echo "run_sanitizer.sh: compute-sanitizer: not found; it comes with the CUDA toolkit: put its bin on PATH" >&2
  exit 3
fi

# Torch's caching allocator would hide an overrun inside its own blocks.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1

for tool in "${tools[@]}"; do
  echo "== $tool"
  options=(--error-exitcode 9)
  # Without the kernels of torch, whose names are mangled, and of cuBLAS, with which references multiply;
  # initcheck wants to see what they write.
  if [[ $tool != initcheck ]]; then
    for substring in _Z cublas xmma nvjet; do options+=(--kernel-name-exclude "kns=$substring"); done
  fi
  # Torch probes the driver with calls that fail by design; a launch of ours that fails fails its test.
  [[ $tool != memcheck ]] || options+=(--report-api-errors no)
  compute-sanitizer --tool "$tool" "${options[@]}" \
    "${PYTHON:-python3}" -m pytest tests/gpu -m sanitizer -q -p no:cacheprovider "$@"
done
