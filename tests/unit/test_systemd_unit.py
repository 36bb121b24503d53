"""docker/buttervolume.service, as systemd reads it."""

import re
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "docker/buttervolume.service"


def complaints(directory: Path, text: str) -> list[str]:
    """What systemd has to say of a unit with this text, whose program is installed."""
    unit = directory / UNIT.name
    unit.write_text(text.replace("/opt/buttervolume/bin/buttervolume", "/bin/true"))
    argv = ["systemd-analyze", "verify", str(unit)]
    verified = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [line for line in verified.stderr.splitlines() if UNIT.name in line]


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    assert complaints(tmp_path, UNIT.read_text()) == []
    assert complaints(tmp_path, UNIT.read_text().replace("Restart=", "Restrat=")) != []


def exposure(directory: Path, text: str) -> float:
    """How exposed a service would be, from 0 to 10, as systemd judges it."""
    unit = directory / UNIT.name
    unit.write_text(text)
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    judged = subprocess.run(argv, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", judged.stdout)
    assert found, judged
    return float(found[1])


def test_systemd_finds_it_shut_in_as_far_as_can_be(tmp_path: Path) -> None:
    text = UNIT.read_text()

    assert exposure(tmp_path, text) <= 5.0
    without = text.replace("CapabilityBoundingSet=", "X-Unset=")
    assert exposure(tmp_path, without) > exposure(tmp_path, text) + 0.5


def test_it_is_started_again_however_often_it_fails_and_tells_when_it_is_ready() -> None:
    lines = UNIT.read_text().splitlines()

    for line in ("Type=notify", "Restart=on-failure", "RestartSec=5", "StartLimitIntervalSec=0"):
        assert line in lines
    assert lines.index("StartLimitIntervalSec=0") < lines.index("[Service]")


@pytest.mark.parametrize(
    "needed",
    [
        "RestrictSUIDSGID",  # rsync and btrfs receive bring setuid programs
        "PrivateDevices",  # and device files
        "DevicePolicy",
        "ProtectClock",  # it closes all devices, too
        "ProtectProc",  # the mounts of containers are seen there
        "ProtectHome",  # ssh's known hosts
        "PrivateUsers",
        "PrivateNetwork",
    ],
)
def test_what_the_work_needs_is_not_taken_away(needed: str) -> None:
    assert not re.search(rf"^{needed}=", UNIT.read_text(), re.MULTILINE)


def test_docker_starts_after_the_daemon() -> None:
    lines = UNIT.read_text().splitlines()

    assert "Before=docker.service" in lines
    assert "RequiresMountsFor=/var/lib/buttervolume" in lines
