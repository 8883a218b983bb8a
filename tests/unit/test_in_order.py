"""A partition's messages through a client that forgets and repeats: each is taken once, in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.stream.in_order import InOrder, Turn


class ForgetfulClient:
    """Reads a log from a place; `whims` say what happens to each message: handed over, forgotten, or read again."""

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
    for _ in range(2):  # what was forgotten at the very end is read again by whoever looks after idle partitions
        while (offset := client.next()) is not None:
            turn = order.turn_of(0, offset)
            if turn in {Turn.NEXT, Turn.NEXT_AFTER_GAP}:
                found.append(offset)
            elif turn is Turn.PASSED_OVER:
                client.go_back(order.next_offset(0))
        client.go_back(order.next_offset(0))
    return found


@given(
    st.integers(1, 60),
    st.integers(0, 20),
    st.lists(st.sampled_from(["hand over", "hand over", "hand over", "forget", "go back"]), max_size=80),
)
def test_whatever_is_forgotten_or_repeated_each_is_taken_once_and_in_order(count, start, whims):
    # Two times in a row the same place must not be forgotten: then it is taken for an offset that is no message.
    whims = [whim if i % 7 == 0 or whim != "forget" else "hand over" for i, whim in enumerate(whims)]
    order = InOrder()
    order.start(0, start)
    order.open()
    log = list(range(count))
    assert taken(order, ForgetfulClient(log, whims), start) == log[start:]


@given(st.sets(st.integers(0, 60), min_size=1))
def test_offsets_that_do_not_exist_are_passed_after_three_readings(offsets):
    order = InOrder()
    order.start(0, 0)
    order.open()
    log = sorted(offsets)
    assert taken(order, ForgetfulClient(log, []), 0) == log


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
