#!/usr/bin/env bash
# Build the wheel, unless there is one, and the SGLang image for the RTX 5090.
# Options are those of `sgl-kernel-rebuild image build`: --tag, --base, --torch, --max-jobs, --ca, --dry-run …
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_cli.sh
. "$(dirname "$0")/_cli.sh"

case " $* " in *" --help "* | *" -h "* | *" --dry-run "*) ;; *)
  if ! compgen -G 'wheelhouse/sgl_kernel-*.whl' > /dev/null; then
    [ -x .venv/bin/nox ] || { python3 -m venv .venv && .venv/bin/pip install --quiet nox; }
    .venv/bin/nox -s wheel
  fi ;;
esac
cli image build "$@"
