#!/usr/bin/env bash
# Run the tests: sudo ./test.sh [pytest arguments]
# or the benchmarks: sudo ./test.sh --benchmarks [--quick] [name...]
# Installs what they need first. They make their own filesystems, networks, sshd and dockerd, so
# no service of this machine is started, stopped or enabled. Safe to repeat.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
# shellcheck source=run.sh
source ./run.sh

[[ $EUID -eq 0 ]] || die "must be run as root: sudo ./test.sh"

# Offline, systemctl looks at files alone, so it works where systemd does not run, too.
enabled_units() {
    ! command -v systemctl >/dev/null ||
        SYSTEMD_OFFLINE=1 systemctl list-unit-files --state=enabled --no-legend |
        cut -d' ' -f1 | sort
}

# install_quietly PACKAGE...: no service is started now, nor at the next boot: nobody wants an sshd
# or a dockerd on their machine for having run some tests.
install_quietly() (
    policy=/usr/sbin/policy-rc.d # what maintainer scripts ask before they start a service
    if [[ ! -e $policy ]]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    before=$(enabled_units)
    install_packages "$@"
    for unit in $(comm -13 <(echo "$before") <(enabled_units)); do
        echo "came with the tests and is off; to use it yourself: systemctl enable --now $unit"
        SYSTEMD_OFFLINE=1 systemctl --quiet disable "$unit"
    done
)

needs_to_run
needs docker.io bash -c 'command -v docker && command -v dockerd'
needs docker-compose command -v docker-compose
needs docker-registry command -v docker-registry
needs openssh-server command -v sshd
needs iproute2 command -v ip
needs e2fsprogs command -v mkfs.ext4
needs curl command -v curl
needs systemd command -v systemd-analyze
needs acl command -v setfacl
needs attr command -v setfattr
needs strace command -v strace
needs xfsprogs command -v mkfs.xfs
needs debootstrap command -v debootstrap
needs shellcheck command -v shellcheck
# the page is shown in a browser; it is large, so it comes only where its tests are meant
if [[ $* != *tests/* || $* == *tests/web* ]]; then
    needs chromium command -v chromium
    needs chromium-driver command -v chromedriver
    needs prometheus bash -c 'command -v prometheus && command -v promtool'
    needs npm command -v npm
fi
[[ ${#missing[@]} -eq 0 ]] || install_quietly "${missing[@]}"

# The tests make images of a static busybox. Its package excludes the dynamic one, which many
# machines have; so it is unpacked here, not installed.
if ! command -v busybox >/dev/null || ldd "$(command -v busybox)" &>/dev/null; then
    busybox=$PWD/.cache/busybox-static
    if [[ ! -e $busybox ]]; then
        apt-get update || true
        mkdir -p .cache
        (cd .cache && apt-get -o APT::Sandbox::User=root download busybox-static)
        dpkg -x .cache/busybox-static_*.deb "$busybox"
        rm .cache/busybox-static_*.deb
    fi
    PATH=$busybox/bin:$busybox/usr/bin:$PATH # the first in Debian 12, the second in 13
fi

# The tests of the page let axe-core look for what keeps people out (Deque, MPL-2.0).
axe="axe-core-4.10.3"
if command -v npm >/dev/null && [[ ! -e .cache/$axe.tgz ]]; then
    mkdir -p .cache
    npm pack --silent --pack-destination .cache "${axe/core-/core@}" >/dev/null
fi

make_venv .cache/test-venv "setup.py pyproject.toml" --editable '.[test]'
# Tests start the daemon thousands of times: where PYTHONDONTWRITEBYTECODE is set, each of these would
# compile it for itself.
.cache/test-venv/bin/python -m compileall -q buttervolume
if [[ ${1-} == --benchmarks ]]; then
    exec .cache/test-venv/bin/python -m tests.benchmarks "${@:2}"
fi
exec .cache/test-venv/bin/python -m pytest "$@"
