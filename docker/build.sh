#!/usr/bin/env bash
# Build the plugin's root filesystem, docker/rootfs, from this checkout:
#     sudo docker/build.sh [TAG] [OPTION OF DOCKER BUILD]...
# TAG is what to call the image that it is taken from (buttervolume-rootfs). Then
# `docker plugin create anybox/buttervolume docker` makes a plugin of it: this script touches none.
# Safe to repeat: rootfs is replaced, and only by one that is whole.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

[[ $EUID -eq 0 ]] || {
    echo "build.sh: must be run as root, who owns the files in docker/rootfs" >&2
    exit 1
}
tag=buttervolume-rootfs
if [[ $# -gt 0 && $1 != -* ]]; then
    tag=$1
    shift
fi

container=
new=$(mktemp -d docker/rootfs.XXXXXX)
clean_up() {
    rm -rf "$new"
    [[ -z $container ]] || docker rm "$container" >/dev/null
}
trap clean_up EXIT

# The context holds what the image is made of and nothing else, whatever lies about in the checkout.
tar --create --exclude __pycache__ --owner 0 --group 0 --mode u=rwX,go=rX \
    setup.py pyproject.toml README.rst LICENSE buttervolume docker/Dockerfile docker/entrypoint.sh |
    docker build --file docker/Dockerfile --tag "$tag" "$@" -

mkdir --mode 755 "$new/rootfs"
container=$(docker create "$tag" true)
docker export "$container" |
    tar --extract --numeric-owner --preserve-permissions --directory "$new/rootfs"
rm "$new/rootfs/.dockerenv" # a plugin is no container
[[ ! -e docker/rootfs ]] || mv docker/rootfs "$new/old"
mv "$new/rootfs" docker/rootfs
echo "docker/rootfs: $(du -sm docker/rootfs | cut -f1) MB"
