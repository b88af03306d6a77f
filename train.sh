#!/usr/bin/env bash
# Trains the ensemble: ./train.sh DIR... [satmap train's options]
# DIR is an area's directory or a root of many. Ends with weights under weights/ or $WEIGHTS_DIR.
set -euo pipefail
home=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=container/weights_dir.sh
. "$home/container/weights_dir.sh"
choose_weights_dir "$home" train
satmap=$home/.venv/bin/satmap
[ -x "$satmap" ] || satmap=satmap
exec "$satmap" train "$@"
