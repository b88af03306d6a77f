#!/usr/bin/env bash
# Where a container begins: COMMAND [ARGUMENT...] runs as a user who is not root and can use the
# volumes.
#
# Volumes belong to anybody, most often to root, for Docker makes missing directories so. Started as
# root, this script becomes the owner of the volume that is written to (/wdata, else weights/), or
# `satmap` where that is root itself. Of root's powers it keeps one, to open files whatever their
# modes are (CAP_DAC_OVERRIDE). Started by anybody else (`docker run --user`, rootless engines) it
# changes nothing.
set -euo pipefail

# A container may be read-only (`docker run --read-only --tmpfs /tmp`).
[ -w "$HOME" ] || HOME=$(mktemp -d)
export HOME

[ "$(id -u)" = 0 ] || exec "$@"
# Under an engine without root this root is, outside, the user who started it; so be the files'.
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
powers=-all,+dac_override
as_owner=(setpriv "--reuid=$uid" "--regid=$gid" --clear-groups
    "--inh-caps=$powers" "--ambient-caps=$powers" "--bounding-set=$powers" --)
if "${as_owner[@]}" true 2>/dev/null; then
    exec "${as_owner[@]}" "$@"
fi
# Without even the power to become somebody else (`--cap-drop ALL`) root is nobody special.
exec "$@"
