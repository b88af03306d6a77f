# shellcheck shell=bash
# Base image for container/check.sh, which sources this file: the base image of the Dockerfile if a
# registry can be reached, else an image made from this machine's Debian mirror.

# Time limit for pulling from a registry.
readonly PULL_SECONDS=300

# Debian release of the Dockerfile's base image.
readonly DEBIAN=bookworm

# Make an image TAG that the Dockerfile can build on. DIRECTORY is for temporary files. Sets
# $base_origin to the source of the image.
make_base_image() { # TAG DIRECTORY
    local tag=$1 directory=$2 image
    image=$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)
    mkdir -p "$directory/top"
    # shellcheck disable=SC2034  # check.sh prints it.
    base_origin=$image
    if attempt timeout "$PULL_SECONDS" docker pull --quiet "$image"; then
        echo "the base image is $image"
    else
        echo "$image cannot be pulled, so a base image is made with debootstrap"
        image=$tag-bare
        import_debian "$image" "$directory/root"
        # shellcheck disable=SC2034
        base_origin="debootstrap of $DEBIAN"
    fi
    # Settings for this machine's package index, which do not belong into the project's Dockerfile.
    {
        echo "FROM $image"
        copy_certificates "$directory/top"
        copy_pip_configuration "$directory/top"
        echo "RUN command -v python || ln -s \"\$(command -v python3)\" /usr/local/bin/python"
    } >"$directory/top/Dockerfile"
    attempt docker build --quiet --network host --tag "$tag" "$directory/top"
}

import_debian() { # IMAGE DIRECTORY
    local image=$1 directory=$2 mirror
    command -v debootstrap >/dev/null ||
        give_up "debootstrap is missing, and no image can be pulled. On Debian: apt-get install" \
            "debootstrap"
    mirror=$(debian_mirror)
    attempt debootstrap --variant=minbase \
        --include=ca-certificates,python3,python3-pip,python3-venv \
        "$DEBIAN" "$directory" "$mirror" >"$directory.log" ||
        { tail -n 5 "$directory.log" >&2 && give_up "debootstrap cannot use $mirror"; }
    tar -C "$directory" -c . | docker import - "$image"
    rm -rf "$directory" "$directory.log"
}

# Print the mirror that this machine's apt uses: the first source whose path ends in /debian.
debian_mirror() {
    local mirror
    mirror=$(
        shopt -s nullglob
        sources=(/etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources})
        # Both of apt's formats: `deb [options] URI suite ...` and `URIs: URI`.
        sed -n -E 's/^deb (\[[^]]*\] )?(https?:[^ ]+) .*/\2/p; s/^URIs: *(https?:[^ ]+).*/\1/p' \
            "${sources[@]}" 2>/dev/null | grep -m 1 -E '/debian/?$'
    ) || mirror=http://deb.debian.org/debian
    echo "$mirror"
}

# Print the Dockerfile line that copies this machine's certificates, which may include a proxy's.
copy_certificates() { # DIRECTORY
    local bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
    if [ -f "$bundle" ]; then
        cp "$bundle" "$1/certificates.crt"
        echo "COPY certificates.crt /etc/ssl/certs/ca-certificates.crt"
    fi
}

# Print the Dockerfile line that copies pip's index settings, without paths of this machine.
copy_pip_configuration() { # DIRECTORY
    {
        echo "[global]"
        echo "cert = /etc/ssl/certs/ca-certificates.crt"
        python3 -m pip config list 2>/dev/null |
            sed -n -E "s/^global\.(index-url|extra-index-url|trusted-host|proxy)='(.*)'$/\1 = \2/p" |
            grep -v ' file:' || true
    } >"$1/pip.conf"
    echo "COPY pip.conf /etc/pip.conf"
}
