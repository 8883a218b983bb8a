"""A partition's messages through a client that forgets and repeats: each is taken once, in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.services.matcher.offset_order import InOrder, Turn


class ForgetfulClient:
    """Reads a log from a place.

    `whims` say what happens to each message: handed over, forgotten, or read again.
    """

    def __init__(self, log: list[int], whims: list[str]) -> None:
        self.log, self.whims, self.place = log, list(whims), 0

    def go_back(self, offset: int) -> None:
        self.place = offset

    def next(self) -> int | None:
        while (offset := next((o for o in self.log if o >= self.place), None)) is not None:
            whim = self.whims.pop() if self.whims else "hand over"
            if whim == "go back":
                self.place = max(0, offset - 3)
                continue
            self.place = offset + 1
            if whim != "forget":
                return offset
        return None


def taken(order: InOrder, client: ForgetfulClient, start: int) -> list[int]:
    found = []
    while (
        order.next_offset(0) <= client.log[-1]
    ):  # whoever looks after idle partitions has the end read again
        while (offset := client.next()) is not None:
            turn = order.turn_of(0, offset)
            if turn is Turn.PASSED_OVER:
                expected = order.next_offset(0)
                order.skip(0, expected, min(o for o in client.log if o >= expected))
                turn = order.turn_of(0, offset)
            if turn is Turn.NEXT:
                found.append(offset)
            elif turn is Turn.PASSED_OVER:
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
    order = InOrder()
    order.start(0, start)
    order.open()
    log = sorted(offsets)
    assert taken(order, ForgetfulClient(log, whims), start) == [o for o in log if o >= start]


def test_what_is_behind_a_message_passed_over_waits_for_the_next_reading():
    order = InOrder()
    order.start(0, 5)
    order.open()
    assert [order.turn_of(0, offset) for offset in (6, 7, 8)] == [
        Turn.PASSED_OVER,
        Turn.LATER,
        Turn.LATER,
    ]
    assert order.turn_of(0, 6) is Turn.PASSED_OVER  # read again, and forgotten again
    assert [order.turn_of(0, offset) for offset in (5, 6)] == [Turn.NEXT, Turn.NEXT]


def test_skipping_begins_nothing_that_was_not_begun():
    order = InOrder()
    assert not order.skip(0, 5, 9)
    assert order.next_offset(0) is None


def test_what_was_found_empty_is_skipped_only_where_the_partition_still_stands_there():
    """Kafka is asked meanwhile: a partition that moved and came back begins at what is committed, and skips nothing."""
    order = InOrder()
    order.start(0, 5)
    order.open()
    order.close()
    order.start(0, 3)
    order.open()
    assert not order.skip(0, 5, 9)
    assert not order.skip(0, 3, 3)
    assert order.turn_of(0, 3) is Turn.NEXT
    assert order.skip(0, 4, 9)
    assert order.turn_of(0, 9) is Turn.NEXT


def test_nothing_is_taken_before_the_place_to_begin_is_known_and_all_is_loaded():
    order = InOrder()
    assert order.turn_of(0, 5) is Turn.LATER
    order.start(0, 5)
    assert order.turn_of(0, 5) is Turn.LATER
    order.open()
    assert order.turn_of(0, 5) is Turn.NEXT
    assert order.turn_of(1, 0) is Turn.LATER
    order.close()
    assert order.turn_of(0, 6) is Turn.LATER


@pytest.mark.parametrize("opened", [True, False])
def test_going_back_to_what_is_committed_takes_nothing_twice(opened):
    order = InOrder()
    order.start(0, 5)
    order.open()
    assert order.turn_of(0, 5) is Turn.NEXT
    if not opened:
        order.close()
    order.start(0, 3)
    order.open()
    assert order.turn_of(0, 3) is (Turn.LATER if opened else Turn.NEXT)
    assert order.next_offset(0) == (6 if opened else 4)
