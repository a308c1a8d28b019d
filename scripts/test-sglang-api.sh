#!/usr/bin/env bash
# Test the deployed server's API and speed; exits with 11 where a check fails.
# Options are those of `sgl-kernel-rebuild test-api`: --url, --key-file, --concurrency, --output, --plot, --json.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_cli.sh
. "$(dirname "$0")/_cli.sh"

cli test-api "$@"
