#!/usr/bin/env bash
# Trains on every host of a Cloud TPU slice; started again it goes on from the newest checkpoint.
#
#   TPU=my-slice ZONE=us-east5-a REPOSITORY=https://host/mlfuncs.git WORKDIR=/mnt/shared/imagenet64 \
#       experiments/launch/tpu_pod.sh --config=configs/consistency/imagenet64.py --config.mesh.fsdp=4
#
# WORKDIR is one folder that all hosts see (Filestore, or a bucket with hierarchical namespace mounted with
# gcsfuse: checkpoints are renamed folders). The cache of runs that others need is put beside it. JAX finds the hosts by itself.
set -euo pipefail
: "${TPU:?name of the TPU}" "${ZONE:?its zone}" "${REPOSITORY:?where to clone this project from}" "${WORKDIR:?a folder that all hosts see}"

arguments=$(printf ' %q' "$@")
on_every_host() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

on_every_host "set -e
test -d mlfuncs || git clone --quiet $(printf %q "$REPOSITORY") mlfuncs
cd mlfuncs
make setup
grep -v '^libtpu' constraints.txt | .venv/bin/pip install --quiet 'jax[tpu]' --constraint /dev/stdin"

on_every_host "cd mlfuncs && MLFUNCS_DATA=${MLFUNCS_DATA:-} .venv/bin/python -m experiments.train --workdir=$(printf %q "$WORKDIR") \
    --config.cache_dir=$(printf %q "$(dirname "$WORKDIR")/cache")$arguments"
