"""What the record says must be on a disk after a cut."""

from tests.power.record import Content, Record, Thing

DB = Thing("alpha", "volume", "db")


def test_what_was_answered_before_the_cut_has_happened() -> None:
    record = Record()
    record.add(1, 2, {DB: Content()})
    record.add(3, 4, {DB: None})

    assert record.possible(DB, 2.5, 2.6) == [Content()]
    assert record.possible(DB, 4, 5) == [None]


def test_what_was_asked_and_not_answered_may_have_happened() -> None:
    record = Record()
    record.add(1, 2, {DB: Content()})
    record.add(3, 4, {DB: None})
    record.add(5, 6, {DB: Content()})

    assert record.possible(DB, 0, 0.5) == [None]
    assert record.possible(DB, 1.5, 1.6) == [None, Content()]
    assert record.possible(DB, 3.5, 5.5) == [Content(), None, Content()]


def test_a_file_must_be_there_when_it_was_synced_and_may_be_from_its_beginning() -> None:
    begun = Content().with_begun("f-1")
    written = begun.with_written("f-1", synced=False)
    synced = begun.with_written("f-1", synced=True)

    assert not Content().holds({"f-1": True})
    assert all(begun.holds(found) for found in ({}, {"f-1": False}, {"f-1": True}))
    assert all(written.holds(found) for found in ({}, {"f-1": False}, {"f-1": True}))
    assert synced.holds({"f-1": True})
    assert not any(synced.holds(found) for found in ({}, {"f-1": False}))
    assert not synced.holds({"f-1": True, "g-1": True})


def test_a_snapshot_holds_what_was_written_whether_synced_or_not() -> None:
    before = Content().with_begun("f-1").with_written("f-1", synced=False)
    after = before.with_begun("g-1").with_written("g-1", synced=True)

    taken = before.copied(after)

    assert taken.holds({"f-1": True})
    assert taken.holds({"f-1": True, "g-1": False})
    assert not taken.holds({"f-1": False})
    assert not taken.holds({})


def test_a_snapshot_need_not_hold_what_was_removed_while_it_was_taken() -> None:
    before = Content().with_begun("f-1").with_written("f-1", synced=True)

    taken = before.copied(before.without("f-1"))

    assert taken.holds({})
    assert taken.holds({"f-1": True})
