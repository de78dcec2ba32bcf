#!/usr/bin/env bash
# Build the images: infra/images/build.sh [train] [serve] [follow] [push] [mlflow]; all of them if none is named.
#
#   BASE_IMAGE  image to build on (python:3.11-slim); pin it by digest for a release
#   TORCH       cpu or cuda (cpu)
#   TAG         tag of the images (the project's version)
#   DOCKER      the client (docker)
#   PYTHON      Python 3.11 with pip, which gathers the wheels (python3.11)
set -euo pipefail
cd "$(dirname "$0")/../.."

BASE_IMAGE=${BASE_IMAGE:-python:3.11-slim}
TORCH=${TORCH:-cpu}
TAG=${TAG:-0.1.0}
DOCKER=${DOCKER:-docker}
PYTHON=${PYTHON:-python3.11}
export DOCKER_BUILDKIT=1

# The local version is named, so that an index that holds both builds cannot give the other one.
case $TORCH in
  cpu) torch='torch==2.13.0+cpu' ;;
  cuda) torch='torch==2.13.0,!=2.13.0+cpu' ;;
  *) echo "TORCH=$TORCH: write cpu or cuda" >&2; exit 2 ;;
esac

# requirements EXTRAS: what pyproject.toml asks for.
requirements() {
  "$PYTHON" - "$1" <<'END'
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(project["dependencies"], *(project["optional-dependencies"][extra] for extra in sys.argv[1].split(",")))
END
}

# gather FOLDER EXTRAS [REQUIREMENT...]: the wheels of some extras at the versions of constraints.txt. The host's pip
# fetches them, with whatever index and credentials it is set up for.
gather() {
  local folder=build/wheels/$1 extras=$2 wanted
  shift 2
  wanted=$({ cat constraints.txt; requirements "$extras"; echo "$@"; } | sha256sum)
  [ "$(cat "$folder/.gathered" 2>/dev/null)" = "$wanted" ] && return
  echo "gathering wheels into $folder"
  rm -rf "$folder"
  mkdir -p "$folder"
  "$PYTHON" -m pip wheel --quiet --quiet --disable-pip-version-check -c constraints.txt -w "$folder" ".[$extras]" "$@"
  rm "$folder"/tandem_ctr-*.whl # the source itself is copied: it changes more often than what it needs
  echo "$wanted" >"$folder/.gathered"
}

build() {
  local target=$1 name=$2
  "$DOCKER" build --quiet --file infra/images/Dockerfile --target "$target" --tag "$name:$TAG" \
    --build-arg "BASE_IMAGE=$BASE_IMAGE" --build-arg "TORCH=$TORCH" \
    --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)" . >/dev/null
  echo "$name:$TAG $("$DOCKER" image inspect --format '{{.Size}}' "$name:$TAG" | awk '{printf "%.2f GB", $1 / 1e9}')"
}

[ $# -gt 0 ] || set -- train serve follow push mlflow
for image in "$@"; do
  case $image in
    train)
      gather "train-$TORCH" pipelines,features,validate,train,registry,serve "$torch"
      build train tandem-train-python
      ;;
    serve)
      gather serve serve
      build serve tandem-serve
      ;;
    follow)
      gather follow follow
      build follow tandem-follow
      ;;
    push)
      gather push push
      build push tandem-push
      ;;
    mlflow)
      gather mlflow mlflow-server
      build mlflow tandem-mlflow
      ;;
    *) echo "$image: no such image; write train, serve, follow, push or mlflow" >&2; exit 2 ;;
  esac
done
