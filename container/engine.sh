# shellcheck shell=bash
# A Docker engine for container/check.sh, which sources this: the machine's, or one of our own that
# leaves nothing behind.

# Use the engine that runs, else start one under DIRECTORY; sets and exports DOCKER_HOST then.
start_engine() { # DIRECTORY
    local directory=$1 driver
    command -v docker >/dev/null || give_up "docker is missing. On Debian: apt-get install docker.io"
    if docker info >/dev/null 2>&1; then
        echo "using the engine that runs here"
        return
    fi
    command -v dockerd >/dev/null || give_up "no engine runs and dockerd is missing. On Debian:" \
        "apt-get install docker.io"
    [ "$(id -u)" = 0 ] || give_up "no engine runs here, and only root can start one"
    export DOCKER_HOST=unix://$directory/docker.sock
    # Not all file systems carry overlays. vfs works anywhere, but copies whole layers.
    for driver in overlay2 vfs; do
        echo "starting an engine of our own, with $driver"
        # No bridge and no rules: the machine's network is left alone.
        dockerd --host "$DOCKER_HOST" --data-root "$directory/data" --exec-root "$directory/exec" \
            --pidfile "$directory/pid" --storage-driver "$driver" --bridge=none --iptables=false \
            --ip6tables=false --ip-forward=false --ip-masq=false >"$directory/dockerd.log" 2>&1 &
        engine=$!
        for _ in $(seq 60); do
            docker info >/dev/null 2>&1 && return
            kill -0 "$engine" 2>/dev/null || break
            sleep 1
        done
        stop_engine "$directory"
    done
    tail -n 20 "$directory/dockerd.log" >&2
    give_up "no engine can be started here"
}

# End the engine that start_engine has started, if it has, and what it leaves mounted.
stop_engine() { # DIRECTORY
    local directory=$1 mounted
    [ -n "${engine:-}" ] || return 0
    kill "$engine" 2>/dev/null || true
    wait "$engine" 2>/dev/null || true
    engine=
    # The innermost mounts first.
    while read -r mounted; do
        umount "$mounted" || umount --lazy "$mounted" || true
    done < <(cut -d ' ' -f 2 /proc/mounts | grep "^$directory/" | tac)
}
