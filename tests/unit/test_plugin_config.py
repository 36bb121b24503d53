"""docker/config.json against the configuration that it must let users change."""

import json
from pathlib import Path
from typing import Any

from buttervolume import config

PLUGIN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "docker/config.json").read_text(encoding="utf-8")
)


def test_every_configuration_key_can_be_set() -> None:
    assert {variable["Name"] for variable in PLUGIN["Env"]} == {
        config._variable(key) for key in config._KEYS
    }
    assert all(variable["Settable"] == ["value"] for variable in PLUGIN["Env"])


def test_no_default_hides_what_is_in_the_configuration_file() -> None:
    assert {variable["Value"] for variable in PLUGIN["Env"]} == {""}


def test_every_setting_says_what_it_is_for() -> None:
    assert all(entry["Description"] for entry in PLUGIN["Env"] + PLUGIN["Mounts"])


def test_the_volumes_path_is_where_docker_looks_for_them() -> None:
    defaults = config.load({}, Path("/nonexistent"))

    assert defaults.volumes_path.is_relative_to(PLUGIN["PropagatedMount"])
    assert defaults.socket.name == PLUGIN["Interface"]["Socket"]
