"""The order of a partition's messages: each is taken once, whatever the client repeats or skips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.services.matcher.offset_order import OffsetOrder, Verdict


class ForgetfulClient:
    """Reads a log from a place.

    `whims` say what happens to each message: handed over, forgotten, or read again.
    """

    def __init__(self, log: list[int], whims: list[str]) -> None:
        self.log = log
        self.whims = list(whims)
        self.place = 0

    def go_back(self, offset: int) -> None:
        """Read on from `offset`."""
        self.place = offset

    def next(self) -> int | None:
        """The next message that the client hands over, or None at the log's end."""
        while (offset := next((o for o in self.log if o >= self.place), None)) is not None:
            whim = self.whims.pop() if self.whims else "hand over"
            if whim == "go back":
                self.place = max(0, offset - 3)
                continue
            self.place = offset + 1
            if whim != "forget":
                return offset
        return None


def taken(order: OffsetOrder, client: ForgetfulClient, start: int) -> list[int]:
    """The offsets that are taken when every message is read until the log's end."""
    found = []
    # Whoever watches idle partitions has the end of the log read again.
    while order.next_offset(0) <= client.log[-1]:
        while (offset := client.next()) is not None:
            verdict = order.judge(0, offset)
            if verdict is Verdict.GAP:
                expected = order.next_offset(0)
                order.skip(0, expected, min(o for o in client.log if o >= expected))
                verdict = order.judge(0, offset)
            if verdict is Verdict.TAKE:
                found.append(offset)
            elif verdict is Verdict.GAP:
                client.go_back(order.next_offset(0))
        client.go_back(order.next_offset(0))
    return found


@given(
    st.sets(st.integers(0, 60), min_size=1),
    st.integers(0, 20),
    st.lists(st.sampled_from(["hand over", "hand over", "forget", "go back"]), max_size=120),
)
def test_whatever_is_forgotten_repeated_or_does_not_exist_each_is_taken_once_and_in_order(
    offsets, start, whims
):
    """Every message from the start on is taken once and in order, whatever the client does."""
    order = OffsetOrder()
    order.start(0, start)
    order.open()
    log = sorted(offsets)
    assert taken(order, ForgetfulClient(log, whims), start) == [o for o in log if o >= start]


def test_what_is_behind_a_message_passed_over_waits_for_the_next_reading():
    """After a gap is reported, later messages wait until the missing one has come."""
    order = OffsetOrder()
    order.start(0, 5)
    order.open()
    assert [order.judge(0, offset) for offset in (6, 7, 8)] == [
        Verdict.GAP,
        Verdict.LEAVE,
        Verdict.LEAVE,
    ]
    assert order.judge(0, 6) is Verdict.GAP  # read again, and forgotten again
    assert [order.judge(0, offset) for offset in (5, 6)] == [Verdict.TAKE, Verdict.TAKE]


def test_skipping_begins_nothing_that_was_not_begun():
    """Skipping in a partition that has no place to begin does nothing."""
    order = OffsetOrder()
    assert not order.skip(0, 5, 9)
    assert order.next_offset(0) is None


def test_what_was_found_empty_is_skipped_only_where_the_partition_still_stands_there():
    """A range is skipped only where it begins at the partition's next offset.

    Kafka is asked meanwhile: a partition that moved away and came back begins again.
    """
    order = OffsetOrder()
    order.start(0, 5)
    order.open()
    order.close()
    order.start(0, 3)
    order.open()
    assert not order.skip(0, 5, 9)
    assert not order.skip(0, 3, 3)
    assert order.judge(0, 3) is Verdict.TAKE
    assert order.skip(0, 4, 9)
    assert order.judge(0, 9) is Verdict.TAKE


def test_nothing_is_taken_before_the_place_to_begin_is_known_and_all_is_loaded():
    """Messages wait until their partition has a start and the order is open."""
    order = OffsetOrder()
    assert order.judge(0, 5) is Verdict.LEAVE
    order.start(0, 5)
    assert order.judge(0, 5) is Verdict.LEAVE
    order.open()
    assert order.judge(0, 5) is Verdict.TAKE
    assert order.judge(1, 0) is Verdict.LEAVE
    order.close()
    assert order.judge(0, 6) is Verdict.LEAVE


@pytest.mark.parametrize("opened", [True, False])
def test_going_back_to_what_is_committed_takes_nothing_twice(opened):
    """A new start before the current place is ignored, unless the order was closed first."""
    order = OffsetOrder()
    order.start(0, 5)
    order.open()
    assert order.judge(0, 5) is Verdict.TAKE
    if not opened:
        order.close()
    order.start(0, 3)
    order.open()
    assert order.judge(0, 3) is (Verdict.LEAVE if opened else Verdict.TAKE)
    assert order.next_offset(0) == (6 if opened else 4)
