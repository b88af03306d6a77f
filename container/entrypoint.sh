#!/usr/bin/env bash
# Entry point of the container: runs COMMAND [ARGUMENT...] as a user who is not root and can use the
# volumes.
#
# A volume can belong to any user. Most often it belongs to root, because Docker creates missing
# directories as root. If this script runs as root, it changes to the owner of the volume for output
# (/wdata, else weights/), or to the user `satmap` if root is the owner. It keeps one capability of
# root, to open files regardless of their modes (CAP_DAC_OVERRIDE). If it runs as another user
# (`docker run --user`) or in a rootless engine, it changes nothing.
set -euo pipefail

# A container may be read-only (`docker run --read-only --tmpfs /tmp`).
[ -w "$HOME" ] || HOME=$(mktemp -d)
export HOME

[ "$(id -u)" = 0 ] || exec "$@"
# In a rootless engine root is the user who started the engine, who should also own the files.
read -r _ outside _ </proc/self/uid_map
[ "$outside" = 0 ] || exec "$@"

uid=$(id -u satmap)
gid=$(id -g satmap)
for volume in /wdata /satmap/weights; do
    if mountpoint --quiet "$volume"; then
        if [ "$(stat --format %u "$volume")" != 0 ]; then
            uid=$(stat --format %u "$volume")
            gid=$(stat --format %g "$volume")
        fi
        break
    fi
done
capabilities=-all,+dac_override
as_owner=(setpriv "--reuid=$uid" "--regid=$gid" --clear-groups
    "--inh-caps=$capabilities" "--ambient-caps=$capabilities" "--bounding-set=$capabilities" --)
if "${as_owner[@]}" true 2>/dev/null; then
    exec "${as_owner[@]}" "$@"
fi
# With `--cap-drop ALL` root cannot change to another user and has no other privileges either.
exec "$@"
