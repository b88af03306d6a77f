#!/usr/bin/env bash
# Train the ensemble: ./train.sh DIR... [options of `satmap train`]
# DIR holds images and labels, at any depth. The weights are written to weights/ or $WEIGHTS_DIR.
set -euo pipefail
home=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=container/weights_dir.sh
. "$home/container/weights_dir.sh"
choose_weights_dir "$home" train
satmap=$home/.venv/bin/satmap
[ -x "$satmap" ] || satmap=satmap
exec "$satmap" train "$@"
