"""What mountinfo means: which directory of which filesystem is mounted where."""

import os

from buttervolume.system.mounts import Mount, of_directory, parse

HOST = b"""\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:50 / /var/lib/buttervolume rw,relatime shared:9 - btrfs /dev/loop0 rw,subvolid=5,subvol=/
"""
CONTAINER = rb"""
60 59 0:61 / / rw - overlay overlay rw
70 60 0:50 /volumes/my\040data /data rw - btrfs /dev/loop0 rw,subvolid=256,subvol=/volumes
"""


def test_a_line_says_device_root_and_place() -> None:
    assert parse(CONTAINER.strip())[1] == Mount("0:50", "/volumes/my data", "/data")


def test_a_volume_has_the_same_place_in_the_filesystem_for_host_and_container() -> None:
    on_host = of_directory("/var/lib/buttervolume/volumes/my data", parse(HOST))
    in_container = parse(CONTAINER.strip())[1]
    assert on_host == (in_container.device, in_container.root)


def test_the_longest_mount_point_counts_and_of_equal_ones_the_last() -> None:
    over = HOST + b"41 40 0:60 /old /var/lib/buttervolume rw - btrfs /dev/loop1 rw\n"
    assert of_directory("/var/lib/buttervolume/volumes", parse(over)) == ("0:60", "/old/volumes")
    assert of_directory("/var/lib/buttervolumes", parse(over)) == (
        "254:0",
        "/var/lib/buttervolumes",
    )


def test_a_subvolume_that_is_mounted_as_a_directory_is_found_below_it() -> None:
    mounts = [Mount("0:50", "/@data", "/srv")]
    assert of_directory("/srv/volumes/db", mounts) == ("0:50", "/@data/volumes/db")


def test_bytes_that_only_look_like_ends_of_lines_or_fields_are_part_of_a_path() -> None:
    odd = "a\u2028b\x85c\fd\x1ce\u3000f"
    line = f"70 60 0:50 /volumes/{odd} /{odd} rw - btrfs /dev/loop0 rw\n".encode()

    assert parse(line) == [Mount("0:50", f"/volumes/{odd}", f"/{odd}")]


def test_a_line_that_is_not_understood_stops_no_other() -> None:
    assert parse(b"\n70 60\nnonsense\n" + HOST) == parse(HOST)


def test_names_that_are_no_text_come_back_as_they_are() -> None:
    (mount,) = parse(b"70 60 0:50 /\xff\\011\\134 /data rw - btrfs /dev/loop0 rw")

    assert os.fsencode(mount.root) == b"/\xff\t\\"
