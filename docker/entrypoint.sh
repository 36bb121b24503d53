#!/bin/sh
# The start of the managed plugin: sshd in the background, if somebody may log in; then the daemon.
set -eu

data=/var/lib/buttervolume

# Let Docker find the volumes. It looks for them in the directory that it has mounted at $data, its
# own for what a plugin mounts there. It gets a link into the host's directory instead, and the plugin
# sees the latter, in a mount that nobody else sees. Mounted for Docker, the volumes would be mounted
# once more at each crash of the plugin; and a Docker that was killed would, while it starts the plugin
# again, now and then unmount them from under it.
link_volumes() {
    # what is wrong with the configuration is for the daemon to say
    volumes=$(python3 -c '
import os
from buttervolume.config import load
print(load(os.environ).volumes_path)' 2>/dev/null) || return 0
    case $volumes in
        "$data"/*) ;;
        *)
            echo "VOLUMES_PATH = $volumes: it must be below $data, or Docker finds no volume" >&2
            exit 1
            ;;
    esac
    below=${volumes#"$data"/}
    top=$data/${below%%/*}
    ln -sfT "$top" "$top"
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

# What `buttervolume peer` needs of the plugin's settings; sshd passes on nothing of its environment.
settings_for_peer() {
    python3 -c '
import os
for key in (
    "DTFORMAT", "HISTORY", "MIN_FREE", "NODE", "SCHEDULE", "SNAPSHOTS_PATH", "VOLUMES_PATH"
):
    value = os.environ.get(f"BUTTERVOLUME_{key}", "").replace("\\", "\\\\").replace("\"", "\\\"")
    if value:
        print(end=f" \"BUTTERVOLUME_{key}={value}\"")
'
}

# Serve as soon as somebody may log in, and again if sshd ends: a port in use may become free.
serve_ssh() {
    prepare_ssh
    until [ -e authorized_keys ]; do
        sleep 5
    done
    prepare_ssh
    make_host_key
    mkdir -p /run/sshd
    set -- -D -e -f /dev/null -p "${SSH_PORT:-1122}" \
        -o PermitRootLogin=prohibit-password \
        -o PasswordAuthentication=no \
        -o KbdInteractiveAuthentication=no \
        -o UsePAM=no \
        -o DisableForwarding=yes \
        -o PermitTTY=no \
        -o PermitUserRC=no \
        -o LoginGraceTime=20 \
        -o PerSourceMaxStartups=10 \
        -o ClientAliveInterval=15 \
        -o ClientAliveCountMax=4 \
        -o PidFile=none
    for key in "$PWD"/ssh_host_*_key; do
        set -- "$@" -h "$key"
    done
    settings=$(settings_for_peer)
    [ -z "$settings" ] || set -- "$@" -o "SetEnv$settings"
    pause=5
    while :; do
        /usr/sbin/sshd "$@" || true
        echo "sshd has ended; it is started again in $pause seconds" >&2
        sleep "$pause"
        [ "$pause" -ge 300 ] || pause=$((pause * 2))
    done
}

link_volumes
mount --make-rprivate "$data"
mount --rbind /host "$data"
if [ "$(stat -f -c %T "$data")" = btrfs ]; then # else the ssh directory is not the one to write to
    serve_ssh & # its failures are in the log, and leave the volumes alone
fi
# -s: the plugin shares the host's process ids, so tini is not process 1; orphans come to it all the same
exec tini -s -- buttervolume run
