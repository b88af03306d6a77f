# shellcheck shell=bash
# For train.sh and test.sh, which source this: sets WEIGHTS_DIR, unless the caller has.
#
# It is weights/. But what is written into a container is gone with it (`docker run --rm`): where
# weights/ is no volume and the scratch volume ($SATMAP_SCRATCH, which the image sets) is one,
# trainings write there, and predictions take what a training left there.

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
