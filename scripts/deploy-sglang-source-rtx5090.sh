#!/usr/bin/env bash
# Serve Qwen3-32B-AWQ on an RTX 5090: deploy-sglang-source-rtx5090.sh [up] [options]
# Or: down, logs [--follow], status, plan. Options are those of `sgl-kernel-rebuild deploy`.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_cli.sh
. "$(dirname "$0")/_cli.sh"

verb=up
case "${1:-}" in up | down | logs | status | plan) verb=$1 && shift ;; esac
case "$verb" in
  up | plan) cli deploy "$verb" "${SGLANG_PROFILE:-qwen3-32b-awq-rtx5090}" "$@" ;;
  *) cli deploy "$verb" "$@" ;;
esac
