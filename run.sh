#!/usr/bin/env bash
# Run Buttervolume from this checkout, in the foreground: sudo ./run.sh
# Ctrl-C ends it. Safe to repeat; when nothing has changed it needs no network.
# sudo ./run.sh --uninstall takes back what it did, and never volumes, snapshots or settings.
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

installed=.cache/installed-by-run # the packages that came with run.sh

list_packages() {
    dpkg-query --show --showformat '${db:Status-Abbrev} ${Package}\n' | sed -n 's/^ii *//p' | sort
}

# install_and_note PACKAGE...: --uninstall removes what comes now.
install_and_note() {
    local before status=0
    before=$(list_packages)
    install_packages "$@" || status=$?
    mkdir -p .cache
    comm -13 <(echo "$before") <(list_packages) >>"$installed"
    return $status
}

# Those that nothing else needs by now go. Docker stays where it has containers.
remove_packages() {
    local noted removable
    mapfile -t noted < <(sort -u "$installed" | comm -12 - <(list_packages))
    [[ ${#noted[@]} -gt 0 ]] || return 0
    apt-mark auto "${noted[@]}" >/dev/null
    if [[ -n $(docker ps --all --quiet 2>/dev/null) ]]; then
        echo "Docker stays, since it has containers"
        apt-mark manual docker.io >/dev/null
    fi
    mapfile -t removable < <(apt-get -o APT::AutoRemove::RecommendsImportant=false \
        -o APT::AutoRemove::SuggestsImportant=false --simulate autoremove |
        sed -n 's/^Remv \([^ ]*\).*/\1/p' | sort | comm -12 - <(printf '%s\n' "${noted[@]}"))
    [[ ${#removable[@]} -eq 0 ]] || apt-get remove -y -o DPkg::Lock::Timeout=300 "${removable[@]}"
}

unmount_image() {
    local image=/var/lib/buttervolume.img device mount_point
    if grep -q "^${image}[[:space:]]" /etc/fstab; then
        echo "$image stays mounted, since it is in /etc/fstab"
        return
    fi
    for device in $(losetup --noheadings --output NAME --associated "$image" 2>/dev/null); do
        for mount_point in $(findmnt --raw --noheadings --output TARGET --source "$device"); do
            umount "$mount_point" || die "end the containers that use volumes in $mount_point first"
            echo "unmounted $mount_point; its volumes and snapshots stay in $image"
            rmdir --ignore-fail-on-non-empty "$mount_point"
        done
    done
    # a link that led into the image
    [[ ! -L /etc/buttervolume || -e /etc/buttervolume ]] || rm /etc/buttervolume
}

uninstall() {
    grep -lxzsF -- "$PWD/.venv/bin/buttervolume" /proc/[0-9]*/cmdline >/dev/null &&
        die "a daemon of this checkout runs: end it first (Ctrl-C)"
    unmount_image
    rm -rf .venv build buttervolume.egg-info
    [[ ! -s $installed ]] || remove_packages
    rm -f "$installed"
    echo "done"
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

[[ $# -eq 0 || $* == --uninstall ]] ||
    die "takes no arguments but --uninstall; see the top of config.ini.example for settings"
[[ $EUID -eq 0 ]] || die "must be run as root: sudo ./run.sh"
if [[ $# -gt 0 ]]; then
    uninstall
    exit
fi

needs_to_run
[[ ${#missing[@]} -eq 0 ]] || install_and_note "${missing[@]}"
# Any docker will do, so whoever has one keeps it; without one the daemon runs all the same.
command -v docker >/dev/null || install_and_note docker.io ||
    echo "run.sh: warning: Docker is not installed, or not wholly" >&2

make_venv .venv "setup.py pyproject.toml README.rst $(
    find buttervolume -type f ! -name "*.pyc" | sort
)" .

grep -qw btrfs /proc/filesystems || modprobe btrfs ||
    die "this kernel has no BTRFS: 'modprobe btrfs' failed"
.venv/bin/buttervolume init --file || {
    [[ -e /dev/loop-control ]] ||
        echo "run.sh: there is no /dev/loop-control, so no image file can be mounted" >&2
    exit 1
}
exec .venv/bin/buttervolume run
