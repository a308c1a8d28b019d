#!/bin/sh
# pip install with what the build was given as secrets: a certificate authority, a pip.conf of a mirror.
# They are mounted for this command alone and are in no layer.
set -eu
if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
if [ -f /run/secrets/pip ]; then export PIP_CONFIG_FILE=/run/secrets/pip; fi
exec pip install --no-cache-dir --disable-pip-version-check --no-compile "$@"
