#!/usr/bin/env bash
# Predicts all images: ./test.sh DIR... OUT.csv [satmap predict's options]
# Uses the weights under weights/ or $WEIGHTS_DIR; OUT.csv is the submission.
set -euo pipefail
home=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
export WEIGHTS_DIR=${WEIGHTS_DIR:-$home/weights}
satmap=$home/.venv/bin/satmap
[ -x "$satmap" ] || satmap=satmap
exec "$satmap" predict "$@"
