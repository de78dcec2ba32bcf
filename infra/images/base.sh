#!/usr/bin/env bash
# Make a stand-in for a Python base image out of Debian's own packages, where no image can be pulled:
# infra/images/base.sh NAME. Needs root, debootstrap, and the Docker engine (client: DOCKER).
set -euo pipefail
name=$1
DOCKER=${DOCKER:-docker}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates bookworm "$root" >/dev/null
rm -rf "$root"/usr/lib/python3.11/EXTERNALLY-MANAGED "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
ln -sf python3 "$root/usr/bin/python"
tar -C "$root" -c . | "$DOCKER" import --change 'CMD ["python3"]' --change 'ENV LANG=C.UTF-8' - "$name"
