"""docker/buttervolume.service, as systemd reads it."""

import subprocess
from pathlib import Path

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


def test_docker_starts_after_the_daemon() -> None:
    lines = UNIT.read_text().splitlines()

    assert "Before=docker.service" in lines
    assert "RequiresMountsFor=/var/lib/buttervolume" in lines
