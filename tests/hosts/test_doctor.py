"""`doctor` against real hosts that have what goes wrong in practice."""

import json
from typing import Any

import pytest

from tests.hosts.harness import SNAPSHOTS, Host

MARK = "buttervolume-doctor"
"""Stands around what the doctor's script prints."""


def findings(host: Host, *hosts: str) -> dict[str, dict[str, Any]]:
    """What the doctor finds, by the name of the check."""
    done = host.cli("doctor", "--json", *hosts, check=False)
    found = json.loads(done.stdout)["Findings"]
    is_bad = any(finding["Level"] == "bad" for finding in found)
    assert done.returncode == (1 if is_bad else 0), done
    assert all(finding["Advice"] for finding in found if finding["Level"] == "bad")
    return {finding["Check"]: finding for finding in found}


def bad(found: dict[str, dict[str, Any]]) -> list[str]:
    return [check for check, finding in found.items() if finding["Level"] == "bad"]


def forget_all(host: Host) -> None:
    """Remove what other tests have left, forged identities among it."""
    for volume in host.api.names():
        host.api.call("Remove", Name=volume)
    host.api.call("Volume.Removed.Purge")
    host.run("sh", "-c", f"cd {SNAPSHOTS} && for s in *@*; do btrfs subvolume delete $s; done || :")


def test_a_host_in_good_health_has_nothing_bad(alpha: Host) -> None:
    forget_all(alpha)

    found = findings(alpha)

    assert bad(found) == []
    assert {"BTRFS", "kernel", "btrfs", "ssh", "rsync", "space", "clock", "identity"} <= {*found}


def test_another_host_in_good_health_has_nothing_bad_and_nothing_stays_there(
    alpha: Host, beta: Host
) -> None:
    before = beta.run("ls", "-A", SNAPSHOTS).stdout

    found = findings(alpha, "beta")

    assert bad(found) == []
    assert {"name", "port", "key", "path", "write", "clock", "rsync"} <= {*found}
    assert found["write"]["Message"] == "a byte that was sent arrived"
    assert beta.run("ls", "-A", SNAPSHOTS).stdout == before


def test_a_name_that_does_not_resolve(alpha: Host) -> None:
    found = findings(alpha, "nowhere.invalid")

    assert bad(found) == ["name"]


@pytest.mark.parametrize("name", ["a..b", "x" * 70])
def test_a_name_that_no_resolver_takes(alpha: Host, name: str) -> None:
    found = findings(alpha, name)

    assert bad(found) == ["name"]


def test_a_port_that_nobody_listens_on(alpha: Host) -> None:
    with alpha.ssh_config("Host closed\n  HostName 127.0.0.1\n"):
        found = findings(alpha, "closed")

    assert bad(found) in (["port"], ["key"])


def test_a_key_that_is_not_accepted(alpha: Host, beta: Host) -> None:
    with beta.changed_file("/root/.ssh/authorized_keys", ""):
        found = findings(alpha, "beta")

    assert bad(found) == ["key"]
    assert "Permission denied" in found["key"]["Message"]
    assert "authorized_keys" in found["key"]["Advice"]


@pytest.mark.parametrize(
    "answer",
    [
        "head -c 50000 /dev/zero | tr '\\0' '['; echo",
        "cat /dev/zero",
        f"echo {MARK}; echo 'time {'9' * 400}'; echo {MARK}",
    ],
    ids=["deep", "endless", "a time beyond all"],
)
def test_whatever_a_host_answers_is_a_finding_and_spoils_no_other(
    alpha: Host, beta: Host, answer: str
) -> None:
    key = alpha.path("/root/.ssh/id_ed25519.pub").read_text()
    with beta.changed_file("/root/.ssh/authorized_keys", f'command="{answer}" {key}'):
        found = findings(alpha, "beta", "nowhere.invalid")

    assert bad(found)
    assert found["name"]["Host"] == "nowhere.invalid"


def test_a_host_key_that_is_not_known(alpha: Host) -> None:
    strict = "Host beta\n  UserKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n"
    with alpha.ssh_config(strict):
        found = findings(alpha, "beta")

    assert bad(found) == ["key"]
    assert "Host key verification failed" in found["key"]["Message"]


def test_a_host_without_btrfs_at_the_same_path(alpha: Host, beta: Host) -> None:
    beta.run("mount", "-t", "tmpfs", "none", SNAPSHOTS)
    try:
        found = findings(alpha, "beta")
    finally:
        beta.run("umount", SNAPSHOTS)

    assert bad(found) == ["path"]
    assert "tmpfs" in found["path"]["Message"]


def test_a_directory_that_is_bound_over_the_path(alpha: Host, beta: Host) -> None:
    beta.run("mkdir", "-p", f"{SNAPSHOTS}-elsewhere")
    beta.run("mount", "--bind", f"{SNAPSHOTS}-elsewhere", SNAPSHOTS)
    try:
        found = findings(alpha, "beta")
    finally:
        beta.run("umount", SNAPSHOTS)
        beta.run("rmdir", f"{SNAPSHOTS}-elsewhere")

    assert bad(found) == ["mount"]


def test_a_path_where_nothing_can_be_written(alpha: Host, beta: Host) -> None:
    beta.run("mount", "--bind", SNAPSHOTS, SNAPSHOTS)
    beta.run("mount", "-o", "remount,bind,ro", SNAPSHOTS)
    try:
        found = findings(alpha, "beta")
    finally:
        beta.run("umount", SNAPSHOTS)

    assert "write" in bad(found)


def test_a_host_name_that_is_none_is_refused(alpha: Host) -> None:
    done = alpha.cli("doctor", "-oProxyCommand=touch /tmp/x", check=False)
    assert done.returncode == 1
    assert "is not allowed" in done.stderr
    assert alpha.api.refused("Doctor", Hosts=["-oProxyCommand=touch /tmp/x"])


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_without_a_daemon_it_says_so_and_goes_on(alpha: Host, arguments: tuple[str, ...]) -> None:
    alpha.daemon.stop()
    try:
        done = alpha.cli("doctor", *arguments, check=False)
    finally:
        alpha.boot()

    assert done.returncode == 1
    assert "daemon" in done.stdout
    assert "docker" in done.stdout
