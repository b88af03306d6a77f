# shellcheck shell=bash
# Sets WEIGHTS_DIR for train.sh and test.sh, which source this file, unless the caller has set it.
#
# The default is weights/. Files in a container are lost with it (`docker run --rm`). So if weights/
# is not a volume, but the scratch directory ($SATMAP_SCRATCH, set in the image) is one, trainings
# write their weights there, and predictions use the weights there.

choose_weights_dir() { # HOME train|predict
    local own=$1/weights scratch=${SATMAP_SCRATCH:-} kept
    if [ -n "${WEIGHTS_DIR:-}" ]; then
        export WEIGHTS_DIR
        return
    fi
    export WEIGHTS_DIR=$own
    if [ -z "$scratch" ] || mountpoint --quiet "$own" || ! mountpoint --quiet "$scratch"; then
        return
    fi
    kept=$scratch/satmap-weights
    if [ "$2" = train ] && [ -w "$scratch" ]; then
        echo "satmap: no volume is mounted as $own, so the weights go to $kept" >&2
        export WEIGHTS_DIR=$kept
    elif [ "$2" = predict ] && compgen -G "$kept/*.safetensors" >/dev/null; then
        echo "satmap: no volume is mounted as $own; using the weights in $kept" >&2
        export WEIGHTS_DIR=$kept
    fi
}
