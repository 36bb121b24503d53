#!/bin/sh
# The start of the managed plugin: sshd in the background, if somebody may log in; then the daemon.
set -eu

# config.json has the host's directory at /host. It is mounted here rather than there, because Docker
# would do it again, on top, whenever it starts a plugin after a crash. Propagation doubles those
# mounts each time, on the host too: after 16 crashes there would be 65,536 of them.
mount_data() {
    data=/var/lib/buttervolume
    if [ "$(stat -c %d:%i /host)" != "$(stat -c %d:%i "$data")" ]; then
        mount --rbind /host "$data"
    fi
}

# Files that others may read or write are refused by ssh. /root/.ssh is a directory of the host, so
# that keys stay the same over an upgrade of the plugin.
prepare_ssh() {
    umask 077
    cd /root/.ssh
    chown -hR root:root .
    find . -type d -exec chmod 700 {} +
    find . -type f -exec chmod 600 {} +
    if [ ! -e config ]; then
        printf 'Host *\n    StrictHostKeyChecking accept-new\n' >.config.new
        mv .config.new config
    fi
}

# Make a key for this host, unless it has one of whatever type. A start that is cut off leaves none.
make_host_key() {
    for key in ssh_host_*_key; do
        [ ! -e "$key" ] || return 0
    done
    new=.ssh_host_key.new
    rm -f "$new" "$new.pub"
    ssh-keygen -q -t ed25519 -N '' -C buttervolume -f "$new"
    sync "$new" "$new.pub"
    mv "$new.pub" ssh_host_ed25519_key.pub
    mv "$new" ssh_host_ed25519_key
}

serve_ssh() {
    prepare_ssh
    [ -e authorized_keys ] || exit 0
    make_host_key
    mkdir -p /run/sshd
    set -- -D -e -f /dev/null -p "${SSH_PORT:-1122}" \
        -o PermitRootLogin=prohibit-password \
        -o PasswordAuthentication=no \
        -o KbdInteractiveAuthentication=no \
        -o UsePAM=no \
        -o ClientAliveInterval=15 \
        -o ClientAliveCountMax=4 \
        -o PidFile=none
    for key in "$PWD"/ssh_host_*_key; do
        set -- "$@" -h "$key"
    done
    exec /usr/sbin/sshd "$@"
}

mount_data
serve_ssh & # its failures are in the log, and leave the volumes alone
exec tini -- buttervolume run
