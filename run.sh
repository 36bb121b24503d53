#!/usr/bin/env bash
# Run Buttervolume from this checkout, in the foreground: sudo ./run.sh
# Ctrl-C ends it. Safe to repeat; when nothing has changed it needs no network.
# Settings come from /etc/buttervolume/config.ini and BUTTERVOLUME_* in the environment.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
PATH=$PATH:/usr/sbin:/sbin:/snap/bin # after `su`, or with a short secure_path, they are missing

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# needs PACKAGE COMMAND...: note the package as missing if the command fails.
missing=()
needs() {
    "${@:2}" &>/dev/null || missing+=("$1")
}

needs_to_run() {
    needs python3 test -x /usr/bin/python3
    needs python3-venv /usr/bin/python3 -c 'import ensurepip'
    needs btrfs-progs command -v mkfs.btrfs
    needs openssh-client command -v ssh
    needs rsync command -v rsync
    needs mount command -v mount
}

# install_packages PACKAGE...: nothing is removed for them, no other service is restarted.
install_packages() {
    command -v apt-get >/dev/null || die "these are missing, install them first: $*"
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
    # a source that is down may be one that is not needed
    apt-get update || true
    # Debian 13 has the docker command apart from its daemon
    if [[ " $* " == *" docker.io "* ]] && apt-cache show docker-cli &>/dev/null; then
        set -- "$@" docker-cli
    fi
    # a fresh machine may be upgrading itself right now: wait for it
    apt-get install -y --no-install-recommends --no-remove -o DPkg::Lock::Timeout=300 "$@"
}

# make_venv DIRECTORY FILES PIP-ARGUMENT...: a virtual environment, brought up to date only when the
# files, Python or the place of the checkout have changed.
make_venv() {
    local venv=$1 files=$2 made_of
    # shellcheck disable=SC2086 # several files
    made_of=$(pwd && /usr/bin/python3 --version && echo "${@:3}" && sha256sum $files)
    if [[ $(cat "$venv/made-of" 2>/dev/null) != "$made_of" ]]; then
        echo "installing into $venv"
        rm -f "$venv/made-of"
        /usr/bin/python3 -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${@:3}"
        echo "$made_of" >"$venv/made-of"
    fi
}

# test.sh and .ci/run take the functions above from here.
[[ ${BASH_SOURCE[0]} == "$0" ]] || return 0

[[ $# -eq 0 ]] || die "takes no arguments; see the top of config.ini.example for settings"
[[ $EUID -eq 0 ]] || die "must be run as root: sudo ./run.sh"

needs_to_run
[[ ${#missing[@]} -eq 0 ]] || install_packages "${missing[@]}"
# Any docker will do, so whoever has one keeps it; without one the daemon runs all the same.
command -v docker >/dev/null || install_packages docker.io ||
    echo "run.sh: warning: Docker is not installed, or not wholly" >&2

rm -rf build # setuptools would install modules from there that the sources have no more
make_venv .venv "$(echo setup.py pyproject.toml README.rst $(find buttervolume -name "*.py"))" .

grep -qw btrfs /proc/filesystems || modprobe btrfs ||
    die "this kernel has no BTRFS: 'modprobe btrfs' failed"
.venv/bin/buttervolume init --file || {
    [[ -e /dev/loop-control ]] ||
        echo "run.sh: there is no /dev/loop-control, so no image file can be mounted" >&2
    exit 1
}
exec .venv/bin/buttervolume run
