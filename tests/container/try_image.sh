#!/usr/bin/env bash
# Try an image as its own user, without network and without a GPU: try_image.sh IMAGE
set -euo pipefail
image=$1
try() {
  local command="$*"
  echo "== ${command%%$'\n'*}" >&2
  # Neither systemd nor a server is there for health checks; a warning of torch is not ours.
  podman run --rm --network none --no-healthcheck --env PYTHONWARNINGS=ignore --entrypoint "" "$image" "$@"
}

[ "$(try id -u)" = 10001 ]
try python -m sgl_kernel
try sgl-kernel-rebuild --help
try pip check

# The doctor's one error is true: torchao 0.9.0, which SGLang pins, does without its extension on this torch.
doctor=$(try sgl-kernel-rebuild doctor --json || [ $? = 14 ])
python3 -c '
import json, sys
found = json.load(sys.stdin)["findings"]
for item in found:
    print(item["severity"], item["id"], "-", item["title"])
errors = {item["id"] for item in found if item["severity"] == "error"}
sys.exit(f"errors: {errors}" if errors - {"extension-abi:torchao"} else 0)' <<< "$doctor"

# SGLang reads every option of every profile.
for profile in deploy/profiles/*.toml; do
  try python -c '
import argparse, sys
from sgl_kernel_rebuild.deploy.profile import parse_profile, tomllib
from sglang.srt.server_args import ServerArgs
profile = parse_profile(tomllib.loads(sys.argv[1]), "profile")
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
options = parser.parse_args(profile.arguments(model_path="/model", host="0.0.0.0", port=8000))
for name, value in profile.server.items():
    got = getattr(options, name.replace("-", "_"))
    assert got == value, (name, value, got)
    print(f"--{name} {got}")
print("SGLang parsed", len(vars(options)), "options")' "$(cat "$profile")"
done

echo "== what the image holds"
podman image inspect --format 'user {{.Config.User}}, starts {{.Config.Entrypoint}} {{.Config.Cmd}}' "$image"
podman image inspect --format 'health {{.Config.Healthcheck}}' "$image"
podman image inspect --format '{{range $name, $value := .Config.Labels}}{{$name}} {{$value}}{{"\n"}}{{end}}' "$image"
podman image inspect --format '{{.Size}} bytes' "$image"
# Neither certificate nor pip.conf are in a layer, and no key anywhere.
try sh -c '! ls /run/secrets/ca /run/secrets/pip 2> /dev/null'
if podman history --no-trunc "$image" | grep -iE 'api.key *[=:] *[A-Za-z0-9]{16}|-----BEGIN'; then exit 1; fi
echo "1 passed, 0 failed"
