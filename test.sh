#!/usr/bin/env bash
# Predict all images: ./test.sh DIR... OUT.csv [options of `satmap predict`]
# Uses the weights in weights/ or $WEIGHTS_DIR. OUT.csv is the submission.
set -euo pipefail
home=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=container/weights_dir.sh
. "$home/container/weights_dir.sh"
choose_weights_dir "$home" predict
satmap=$home/.venv/bin/satmap
[ -x "$satmap" ] || satmap=satmap
exec "$satmap" predict "$@"
