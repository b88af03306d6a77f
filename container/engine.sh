# shellcheck shell=bash
# Docker engine for container/check.sh, which sources this file: the running engine, or a temporary
# one.

# Use the running engine, else start one under DIRECTORY and export DOCKER_HOST.
start_engine() { # DIRECTORY
    local directory=$1 driver
    command -v docker >/dev/null || give_up "docker is missing. On Debian: apt-get install docker.io"
    if docker info >/dev/null 2>&1; then
        echo "using the running Docker engine"
        return
    fi
    command -v dockerd >/dev/null || give_up "no Docker engine is running and dockerd is missing." \
        "On Debian: apt-get install docker.io"
    [ "$(id -u)" = 0 ] || give_up "no Docker engine is running, and only root can start one"
    export DOCKER_HOST=unix://$directory/docker.sock
    # overlay2 does not work on all file systems. vfs does, but copies whole layers.
    for driver in overlay2 vfs; do
        echo "starting a temporary Docker engine, with $driver"
        # No bridge and no firewall rules: do not change the machine's network.
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
    give_up "a Docker engine cannot be started here"
}

# Stop the engine if start_engine started one, and unmount its file systems.
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
