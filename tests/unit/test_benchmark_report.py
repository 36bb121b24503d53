"""The tables of the benchmarks: two runs side by side."""

from pathlib import Path

import pytest

from tests.benchmarks import report
from tests.benchmarks.report import Goal, Row

BEFORE = [
    Row("Create", {"ours": 0.004, "bare": 0.002}),
    Row("memory", {"ours": 40e6}, "MB"),
    Row("what is no longer measured", {"ours": 1.0}, "s"),
]
NOW = [
    Row("Create", {"ours": 0.003, "bare": 0.002, "original": 0.03}),
    Row("memory", {"ours": 50e6}, "MB"),
    Row("what was not measured then", {"ours": 1.0}, "s"),
]


def test_two_runs_stand_side_by_side_in_what_both_have_measured() -> None:
    heading, _, *lines = report.comparison(BEFORE, NOW).splitlines()

    cells = [[cell.strip() for cell in line.split("|")] for line in (heading, *lines)]
    assert cells == [
        ["what", "before", "now", "now/before", "before/bare", "now/bare"],
        ["Create", "4.00 ms", "3.00 ms", "0.75", "2.00", "1.50"],
        ["memory", "40.0 MB", "50.0 MB", "1.25", "", ""],
    ]


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    report.write_csv(NOW, tmp_path / "table.csv")

    again = report.read_csv(tmp_path / "table.csv")

    for row, same in zip(NOW, again, strict=True):
        assert (same.what, same.unit) == (row.what, row.unit)
        assert same.values == pytest.approx(row.values)


def test_what_is_no_table_of_ours_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,b\n1,2\n")

    with pytest.raises(ValueError, match=r"table\.csv has no column"):
        report.read_csv(file)


@pytest.mark.parametrize(
    ("goal", "ours", "misses", "words"),
    [
        (None, 9.0, False, ""),
        (Goal(0.004), 0.004, False, "4.00 ms"),
        (Goal(0.004), 0.0041, True, "4.00 ms"),
        (Goal(1.5, "bare"), 0.003, False, "1.5 × bare"),
        (Goal(1.5, "bare"), 0.0031, True, "1.5 × bare"),
        (Goal(1, "bare", 0.0005), 0.0025, False, "1 × bare + 0.500 ms"),
        (Goal(1, "bare", 0.0005), 0.0026, True, "1 × bare + 0.500 ms"),
        (Goal(0.5, "original"), 9.0, False, "0.5 × original"),
    ],
)
def test_a_goal_is_kept_or_missed(goal: Goal | None, ours: float, misses: bool, words: str) -> None:
    row = Row("Remove", {"ours": ours, "bare": 0.002}, goal=goal)

    assert row.misses_goal() is misses
    assert row.goal_in_words() == words
