#!/usr/bin/env bash
# Checks the image like the organisers: builds it and runs train.sh and test.sh in it, on a
# synthetic city and, if available, on real chips. `make check-container` calls this.
#
# It needs docker (without an engine or a registry also root and debootstrap), 25 GB under $TMPDIR,
# and network access for the build only. It removes everything it made, even if it fails.
#
# Trainings are as short as possible, see container/check.yaml. On a busy machine set
# OMP_NUM_THREADS=1, because threads that wait for each other are slower there than one thread.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
# shellcheck source=container/engine.sh
. container/engine.sh
# shellcheck source=container/base_image.sh
. container/base_image.sh

readonly REAL=../shared/data/roads_epfl/AOI_90_Suburb_Train
readonly LABEL=satmap-check=$$
readonly IMAGE=satmap-check:$$
# User ids that do not exist in the image or on the machine.
readonly SCRATCH_OWNER=4242 WEIGHTS_OWNER=4343
readonly NEEDED_GB=25
readonly RECIPE=/satmap/container/check.yaml
# A submission without roads scores 0. After such a short training scores are low and differ a
# little between machines.
readonly CITY_LEAST_APLS=0.1 REAL_LEAST_APLS=0.02

work=$(mktemp -d "${TMPDIR:-/tmp}/satmap-check-XXXXXXXX")
table=()
passed=no
exec 3>&1

clean_up() {
    # A signal may arrive while output is redirected to a file.
    exec >&3
    trap - EXIT
    trap '' INT TERM
    [ -z "${job:-}" ] || kill "$job" 2>/dev/null || true
    if [ -n "${engine_ready:-}" ]; then
        docker ps --all --quiet --filter "label=$LABEL" | xargs --no-run-if-empty docker rm --force
        # The images of an engine that this script started are deleted with it.
        [ -n "${engine:-}" ] || docker rmi --force "$IMAGE" "$IMAGE-base" "$IMAGE-base-bare" || true
    fi >/dev/null 2>&1
    # On a signal debootstrap unmounts its file systems, but does not end at once.
    [ -z "${job:-}" ] || wait "$job" || true
    stop_engine "$work/engine"
    rm -rf --one-file-system "$work"
    if [ ${#table[@]} -gt 0 ]; then
        printf '\n%-58s %s\n' "step" "result"
        printf '%s\n' "${table[@]}"
    fi
    echo "check-container: $passed" | sed 's/: yes$/: passed/; s/: no$/: FAILED/'
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

give_up() { # MESSAGE...
    echo "check-container: $*" >&2
    exit 1
}

note() { # WHAT FIGURE
    table+=("$(printf '%-58s %s' "$1" "$2")")
}

# Run a command in the background, so that the traps handle signals at once.
attempt() { # COMMAND...
    local status=0
    "$@" &
    job=$!
    wait "$job" || status=$?
    job=
    return "$status"
}

# Run a command, require its exit status, and note the time.
step() { # WHAT STATUS COMMAND...
    local what=$1 expected=$2 status=0 started=$SECONDS
    shift 2
    printf '\n== %s\n' "$what"
    attempt "$@" || status=$?
    note "$what" "$((SECONDS - started)) s"
    [ "$status" = "$expected" ] || give_up "$what: status $status instead of $expected"
}

# Run a command in a container, like the organisers.
contain() { # DOCKER_OPTION... -- COMMAND...
    local options=()
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    docker run --rm --label "$LABEL" --network none --env OMP_NUM_THREADS "${options[@]}" "$IMAGE" "$@"
}

# Require that a submission is valid, that a second prediction has the same bytes, that it can be
# reproduced from its manifest, and that its score is at least LEAST_APLS.
judge() { # NAME DATA SCRATCH TRUTH LEAST_APLS
    local name=$1 data=$2 scratch=$3 truth=$4 least=$5 scores length
    local mounts=(-v "$data:/data:ro" -v "$scratch:/wdata" -v "$(dirname "$truth"):/truth:ro")
    cmp "$scratch/out.csv" "$scratch/again.csv" || give_up "$name: two predictions differ"
    note "$name: two predictions" "the same bytes"
    contain "${mounts[@]}" -- satmap check /wdata/out.csv /data/test || give_up "$name: bad CSV"
    contain "${mounts[@]}" -- satmap verify /wdata/out.csv || give_up "$name: cannot be reproduced"
    contain "${mounts[@]}" -- satmap score "/truth/$(basename "$truth")" /wdata/out.csv
    scores=$(
        contain "${mounts[@]}" -- satmap score "/truth/$(basename "$truth")" /wdata/out.csv --json
    )
    length=$(total apls_length <<<"$scores")
    awk -v score="$length" -v least="$least" 'BEGIN { exit !(score + 0 >= least + 0) }' ||
        give_up "$name: APLS length $length is less than $least"
    note "$name: APLS length / time" "$length / $(total apls_time <<<"$scores")"
    note "$name: rows of out.csv" "$(($(wc -l <"$scratch/out.csv") - 1))"
}

# Print a total from the output of `satmap score --json`, to three digits.
total() { # NAME
    tr --delete '\n' | sed -E "s/.*\"total\": *\{[^}]*\"$1\": *([0-9.]+).*/\1/" |
        awk '{ printf "%.3f\n", $1 }'
}

# Split an area: every tenth image goes to TEST, without its label, and the others to TRAIN.
hold_out() { # AREA TRAIN TEST
    local image chip number=0
    mkdir -p "$2" "$3"
    cp -r "$1"/*/ "$2"
    for image in "$2"/PS-RGB/*.tif; do
        if [ $((number++ % 10)) = 0 ]; then
            chip=$(basename "${image##*_}" .tif)
            rm "$2"/geojson_roads_speed/*"_$chip.geojson"
            mv "$image" "$3"
        fi
    done
}

require_owner() { # FILE USER
    [ "$(stat --format %u "$1")" = "$2" ] || give_up "$1 belongs to $(stat --format %u "$1")"
}

free_gb=$(df --output=avail --block-size=1G "$work" | tail -n 1)
[ "$free_gb" -ge "$NEEDED_GB" ] ||
    give_up "$work has $((free_gb)) GB free, and $NEEDED_GB GB are needed. Set another TMPDIR."
mkdir "$work/engine"
started=$SECONDS
start_engine "$work/engine"
engine_ready=yes
make_base_image "$IMAGE-base" "$work/base"
note "base image ($base_origin)" "$((SECONDS - started)) s"

proxies=()
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [ -z "${!name:-}" ] || proxies+=(--build-arg "$name")
done
step "docker build" 0 docker build --quiet --network host --build-arg "BASE_IMAGE=$IMAGE-base" \
    "${proxies[@]}" --tag "$IMAGE" .
note "image" "$(docker image inspect --format '{{.Size}}' "$IMAGE" | awk '{printf "%.1f GB", $1 / 1e9}')"

# 1. A synthetic city, with the organisers' commands. Docker makes the scratch directory, so root
# owns it, and there is no volume for the weights.
city=$work/city
step "making a synthetic city" 0 contain -v "$city:/wdata" -- satmap make-city /wdata/data \
    --chips 24 --test-chips 3 --size 400
as_organisers=(--ipc=host --shm-size 4G -v "$city/data:/data:ro" -v "$city/scratch:/wdata")
step "city: test.sh before train.sh" 1 contain "${as_organisers[@]}" -- \
    ./test.sh /data/test /wdata/out.csv
step "city: train.sh" 0 contain "${as_organisers[@]}" -- \
    ./train.sh /data/train --recipe "$RECIPE"
step "city: test.sh" 0 contain "${as_organisers[@]}" -- ./test.sh /data/test /wdata/out.csv
step "city: test.sh again" 0 contain "${as_organisers[@]}" -- ./test.sh /data/test /wdata/again.csv
judge city "$city/data" "$city/scratch" "$city/data/test_truth.csv" "$CITY_LEAST_APLS"
require_owner "$city/scratch/out.csv" 1000

# 2. Difficult conditions: volumes that only another user can access, names with spaces, 1 MB of
# shared memory with workers, another working directory.
hard=("--shm-size" 1m -w / -v "$city/data:/data/a city:ro" -v "$work/scratch:/wdata"
    -v "$work/weights:/satmap/weights")
mkdir -m 700 "$work/scratch" "$work/weights"
chown "$SCRATCH_OWNER" "$work/scratch"
chown "$WEIGHTS_OWNER" "$work/weights"
step "1 MB of shared memory: train.sh" 0 contain "${hard[@]}" -- /satmap/train.sh \
    "/data/a city/train" --recipe demo --time-limit 20s --workers 2
step "1 MB of shared memory: test.sh" 0 contain "${hard[@]}" -- /satmap/test.sh \
    "/data/a city/test" "/wdata/my roads.csv" --workers 2
require_owner "$work/scratch/my roads.csv" "$SCRATCH_OWNER"
step "no shared memory: test.sh" 0 contain --ipc none -v "$city/data:/data:ro" \
    -v "$work/weights:/satmap/weights" -v "$work/scratch:/wdata" -- \
    ./test.sh /data/test /wdata/third.csv
cmp "$work/scratch/my roads.csv" "$work/scratch/third.csv" || give_up "two predictions differ"
# A user without privileges, for whom the entry point changes nothing.
step "docker run --user, read-only container: test.sh" 0 contain \
    --user "$SCRATCH_OWNER:$SCRATCH_OWNER" --read-only --tmpfs /tmp -v "$city/data:/data:ro" \
    -v "$city/scratch/satmap-weights:/satmap/weights:ro" -v "$work/scratch:/wdata" -- \
    ./test.sh /data/test /wdata/fourth.csv
cmp "$city/scratch/out.csv" "$work/scratch/fourth.csv" || give_up "two predictions differ"

# 3. Calls that must fail, with their exit statuses.
step "no arguments: train.sh" 2 contain -- ./train.sh
step "no such directory: train.sh" 1 contain -- ./train.sh /data/nowhere --recipe demo
step "a recipe that needs ImageNet weights: train.sh" 1 contain "${as_organisers[@]}" -- \
    ./train.sh /data/train
step "output where nothing can be written: test.sh" 1 contain "${as_organisers[@]}" -- \
    ./test.sh /data/test /data/out.csv

# 4. Real chips, every tenth held out, with one network of the recipe.
if [ -d "$REAL" ]; then
    real=$work/real
    mkdir -p "$real/truth"
    hold_out "$REAL" "$real/data/train/$(basename "$REAL")" "$real/data/test"
    cp "$REAL"/*_simp.csv "$real/truth/truth.csv"
    real_volumes=(--ipc=host -v "$real/data:/data:ro" -v "$real/scratch:/wdata")
    note "real chips to train on / held out" "$(find "$real/data/train" -name '*.tif' | wc -l) / $(
        find "$real/data/test" -name '*.tif' | wc -l
    )"
    step "real chips: train.sh" 0 contain "${real_volumes[@]}" -- \
        ./train.sh /data/train --recipe "$RECIPE" --fold 0
    step "real chips: test.sh" 0 contain "${real_volumes[@]}" -- ./test.sh /data/test /wdata/out.csv
    step "real chips: test.sh again" 0 contain "${real_volumes[@]}" -- \
        ./test.sh /data/test /wdata/again.csv
    judge "real chips" "$real/data" "$real/scratch" "$real/truth/truth.csv" "$REAL_LEAST_APLS"
else
    note "real chips" "none in $REAL"
fi

passed=yes
