#!/usr/bin/env bash
# Make, where no image can be pulled, what stands in for the base images:
#   localhost/sglk-base       Debian 12, bootstrapped
#   localhost/sglk-manylinux  that with g++ and the folders of a manylinux image
# Needs root, podman, runc and debootstrap (apt-get install podman buildah runc debootstrap).
# CONTAINERS_CONF is set by the caller to containers.conf beside this file: host network, runc.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

if ! podman image exists localhost/sglk-base; then
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
  # The mirror of this machine, for a Debian of the same release.
  sources=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2> /dev/null || true)
  mirror=$(sed -n 's/^\(URIs:\|deb\)\( \[[^]]*\]\)* *\(http[^ ]*\).*/\3/; T; p; q' <<< "$sources")
  debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$mirror"
  tar -C "$root" --numeric-owner -c . | podman import - localhost/sglk-base
fi
podman build --file "$here/Dockerfile.stand-in" --tag localhost/sglk-manylinux "$@" "$here"
