#!/usr/bin/env bash
# Try an image as its own user, without network and without a GPU: try_image.sh IMAGE
set -euo pipefail
image=$1
try() {
  echo "== $*"
  podman run --rm --network none --entrypoint "" "$image" "$@"
}

[ "$(try id -u | tail -n 1)" = 10001 ]
try python -m sgl_kernel
try sgl-kernel-rebuild --version
# The doctor finds what this machine lacks (a GPU, a driver); that it reports is what is tried here.
try sh -c 'sgl-kernel-rebuild doctor --json || [ $? -lt 100 ]' | grep -v '^==' | python3 -m json.tool > /dev/null
try python -c '
import argparse
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
options = parser.parse_args(["--model-path", "/model", "--quantization", "awq_marlin", "--dtype", "bfloat16",
    "--kv-cache-dtype", "fp8_e5m2", "--chunked-prefill-size", "2048", "--enable-torch-compile",
    "--attention-backend", "triton", "--sampling-backend", "flashinfer", "--disable-custom-all-reduce"])
print("sglang parsed", len(vars(options)), "options")'
try pip check
echo "== what the image holds"
podman image inspect --format '{{.Config.User}} {{.Config.Entrypoint}} {{.Config.Healthcheck}}' "$image"
podman image inspect --format '{{json .Config.Labels}}' "$image"
# Neither certificate nor pip.conf are in a layer, and no key anywhere.
try sh -c '! ls /run/secrets/ca /run/secrets/pip 2> /dev/null'
if podman history --no-trunc "$image" | grep -iE 'api.key *[=:] *[A-Za-z0-9]{16}|-----BEGIN'; then exit 1; fi
echo "1 passed, 0 failed"
