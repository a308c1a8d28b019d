#!/usr/bin/env bash
# Runs every kernel under NVIDIA's compute-sanitizer. Arguments go to it; without any: --tool memcheck.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Torch's caching allocator would hide an overrun inside its own blocks.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1

# Torch probes the driver with calls that fail by design; a launch of ours that fails fails its test.
exec compute-sanitizer "${@:---tool=memcheck}" --report-api-errors no --error-exitcode 9 \
  "${PYTHON:-python3}" -m pytest tests/gpu -m sanitizer -q
