"""What followed volumes carry and members tell: it comes back as it went, and bad input is bad."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buttervolume.errors import BadCharter, BadOption
from buttervolume.follow.charter import (
    Charter,
    Record,
    Report,
    copy_from_json,
    copy_to_json,
    line_to_json,
    lines_from_json,
    report_from_json,
    report_to_json,
)
from buttervolume.follow.machine import (
    Base,
    Copy,
    Epoch,
    How,
    Line,
    Policy,
    Role,
    Standing,
    Version,
)
from buttervolume.follow.options import split_follow

HOSTS = st.sampled_from(["ann", "bob", "cleo"])
SEQS = st.integers(0, 1 << 40)


@st.composite
def lines(draw: st.DrawFn) -> Line:
    line: list[Epoch] = []
    for number in range(draw(st.integers(0, 5))):
        base = Base(draw(st.integers(0, number - 1)), draw(SEQS)) if number else None
        how = draw(st.sampled_from(How))
        line.append(Epoch(f"{number:04x}{draw(st.integers(0, 255)):x}", draw(HOSTS), base, how))
    return tuple(line)


@st.composite
def standings(draw: st.DrawFn) -> Standing:
    long = draw(lines())
    part = st.integers(0, len(long)).map(lambda length: long[:length])
    some = st.one_of(part, lines())
    copies = [
        Copy("ann", f"db@{number}", Version(draw(some), draw(SEQS)))
        for number in range(draw(st.integers(0, 4)))
    ]
    return Standing(
        "ann",
        draw(some),
        draw(some),
        draw(st.sampled_from(Role)),
        draw(st.none() | HOSTS),
        draw(st.frozensets(st.sampled_from(["abcd", "0123"]))),
        draw(st.booleans()),
        tuple(copies),
    )


CHARTERS = st.builds(
    Charter,
    st.just(("ann", "bob")),
    st.sampled_from(Policy),
    st.integers(1, 600),
    lines(),
    SEQS,
)
LINE = (Epoch("aaaa", "ann", None, How.FIRST), Epoch("bbbb", "bob", Base(0, 7), How.TAKEN))
CHARTER = Charter(("ann", "bob"), Policy.LATEST, 5, LINE, 9)
RECORD = Record(Role.GRANTED, "bob", LINE, frozenset({"cccc"}), "dddd", ("uuid", 7))
REPORT = Report(
    Standing("ann", LINE, LINE[:1], copies=(Copy("ann", "db@1", Version(LINE, 9)),)), CHARTER
)


@given(CHARTERS)
def test_a_charter_comes_back(charter: Charter) -> None:
    assert Charter.load(charter.dump()) == charter


@given(standings(), st.none() | CHARTERS)
def test_a_report_comes_back_over_the_wire(standing: Standing, charter: Charter | None) -> None:
    report = Report(standing, charter, ("db@2",))
    assert report_from_json("ann", json.loads(json.dumps(report_to_json(report)))) == report


def test_a_record_and_a_copy_come_back() -> None:
    assert Record.load(RECORD.dump()) == RECORD
    assert Record.load(Record().dump()) == Record()
    copy = Copy("ann", "db@1", Version(LINE, 9))
    assert copy_from_json("ann", copy_to_json(copy)) == copy


def test_a_line_of_hundreds_of_epochs_fits_into_an_attribute() -> None:
    hosts = [f"web{number}.example.org" for number in range(3)]
    line = tuple(
        Epoch(
            f"{number:012x}",
            hosts[number % 3],
            Base(number - 1, 288 * number) if number else None,
            How.HANDED,
        )
        for number in range(400)
    )
    assert len(Charter(tuple(hosts), line=line).dump()) < 15_000


NONSENSE: list[object] = [
    None,
    True,
    -1,
    1 << 80,
    1.5,
    "",
    "a b",
    "x" * 100_000,
    [],
    [[]],
    {},
    {"a": []},
]


def damaged(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Each of the values replaced by all kinds of nonsense, or left out."""
    found = []
    for key in values:
        found.append({k: v for k, v in values.items() if k != key})
        found += [{**values, key: bad} for bad in NONSENSE if bad != values[key]]
    return found


@pytest.mark.parametrize(
    ("good", "load"),
    [
        (json.loads(CHARTER.dump()), lambda v: Charter.load(json.dumps(v).encode())),
        (json.loads(RECORD.dump()), lambda v: Record.load(json.dumps(v))),
        (json.loads(json.dumps(report_to_json(REPORT))), lambda v: report_from_json("ann", v)),
        (copy_to_json(REPORT.standing.copies[0]), lambda v: copy_from_json("ann", v)),
        ({"line": line_to_json(LINE), "dropped": []}, lines_from_json),
    ],
    ids=["charter", "record", "report", "copy", "line"],
)
def test_nonsense_is_refused_or_means_something_that_can_be_said(
    good: dict[str, Any], load: Callable[[dict[str, Any]], object]
) -> None:
    refused = 0
    for values in damaged(good):
        try:
            load(values)
        except BadCharter:
            refused += 1
    load(good)
    assert refused > len(good) * len(NONSENSE) / 2


@pytest.mark.parametrize(
    "epochs",
    [
        ["aaaa f 0 0 1"],
        ["aaaa f 0", "bbbb h 0"],
        ["aaaa f 0", "bbbb h 0 1 1"],
        ["aaaa f 0", "aaaa h 0 0 1"],
        ["aaaa f 1"],
        ["aaaa f -1"],
        ["aaaa x 0"],
        ["AAAA f 0"],
        ["../a f 0"],
        ["aaaa f 0", "bbbb h 0 0 ²"],
        ["aaaa f 0 0"],
        [7],
        ["aaaa f 0"] * 5000,
    ],
)
def test_a_line_that_cannot_be_is_refused(epochs: list[object]) -> None:
    with pytest.raises(BadCharter):
        lines_from_json({"line": {"owners": ["ann"], "epochs": epochs}, "dropped": []})


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_what_is_no_charter_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(BadCharter):
        Charter.load(data)
    with pytest.raises(BadCharter):
        Record.load(data.decode(errors="replace"))


@pytest.mark.parametrize("text", ["ann:bob", "bob,ann", " ann , bob ", "peers", "PEERS"])
def test_members_are_written_in_several_ways(text: str) -> None:
    wish, others = split_follow({"follow": text, "size": "1G"}, "ann", ["bob", "ann"])
    assert wish == Charter(("ann", "bob"), Policy.REFUSE, 5)
    assert others == {"size": "1G"}


def test_an_empty_value_is_the_default() -> None:
    options = {"follow": "ann:bob", "every": "", "orphan": "Latest"}
    assert split_follow(options, "ann", ())[0] == Charter(("ann", "bob"), Policy.LATEST, 5)
    assert split_follow({"follow": "", "every": ""}, "ann", ()) == (None, {})


@pytest.mark.parametrize(
    "options",
    [
        {"follow": "ann"},
        {"follow": "bob:cleo"},
        {"follow": "ann:ann"},
        {"follow": "ann:"},
        {"follow": "peers"},
        {"follow": ["ann", "bob"]},
        {"follow": "ann:bob", "every": "0"},
        {"follow": "ann:bob", "every": "1h"},
        {"follow": "ann:bob", "every": "99999999"},
        {"follow": "ann:bob", "orphan": "yes"},
        {"every": "5"},
        {"orphan": "refuse"},
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadOption):
        split_follow(options, "ann", ())
