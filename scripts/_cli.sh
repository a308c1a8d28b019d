# shellcheck shell=bash
# Sourced by the scripts beside it: goes to the checkout's root and defines `cli`, the factory's command line,
# installed on first use into .venv from this tree. An installed sgl-kernel-rebuild is taken as it is.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

cli() {
  if command -v sgl-kernel-rebuild > /dev/null; then
    exec sgl-kernel-rebuild "$@"
  fi
  if [ ! -x .venv/bin/sgl-kernel-rebuild ]; then
    echo "installing sgl-kernel-rebuild into .venv" >&2
    python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check 'python/sgl_kernel_rebuild[deploy]'
  fi
  exec .venv/bin/sgl-kernel-rebuild "$@"
}
