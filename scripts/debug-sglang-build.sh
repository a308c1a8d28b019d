#!/usr/bin/env bash
# Find what is wrong with this machine, an image (--image sglang:rtx5090-source) or a deployment (its name).
# Options are those of `sgl-kernel-rebuild debug`: --image, --host, --bundle report.tar.gz, --json, --dry-run.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_cli.sh
. "$(dirname "$0")/_cli.sh"

cli debug "$@"
