"""Who may go: each device in its order, and nobody behind somebody else's device."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.relay.parts import RequestPart
from amplitude_intercom.engine.relay.request_queue import MOST_PARTS, RequestQueue
from amplitude_intercom.engine.spool.relay_requests import WaitingRequest


def request(id_: int, *devices: int, key: str = "k") -> WaitingRequest:
    return WaitingRequest(id_, 0, key, len(devices), list(devices), list(range(len(devices))))


def going(queue: RequestQueue) -> list[RequestPart]:
    found = []
    while (part := queue.oldest()) is not None:
        found.append(part)
    return found


def woken(queue: RequestQueue, now_s: float) -> int | None:
    """Wake who is due; return the request after which is read again."""
    queue.wake(now_s)
    return queue.again


def ids(parts: list[RequestPart]) -> list[tuple[int, list[int]]]:
    return [(part.request.id, part.indexes) for part in parts]


def test_requests_of_different_devices_go_at_once_and_of_one_after_the_other() -> None:
    queue = RequestQueue()
    for waiting in (request(1, 10), request(2, 20), request(3, 10, 30), request(4, 30)):
        queue.add(waiting)
    first = going(queue)
    assert ids(first) == [(1, [0]), (2, [0])]
    queue.answered(first[0], {0})
    third = going(queue)
    assert ids(third) == [(3, [0, 1])]
    queue.answered(third[0], {0, 1})
    assert ids(going(queue)) == [(4, [0])]


def test_a_request_answered_in_part_stays_first() -> None:
    queue = RequestQueue()
    queue.add(request(1, 10, 20))
    queue.add(request(2, 10))
    queue.add(request(3, 20))
    [part] = going(queue)
    queue.answered(part, {1})
    assert ids(going(queue)) == [(3, [0]), (1, [0])]


def test_a_device_that_is_held_lets_the_others_of_its_requests_go() -> None:
    queue = RequestQueue()
    queue.add(request(1, 10, 20))
    queue.add(request(2, 10, 30))
    [first] = going(queue)
    queue.answered(first, set())
    queue.hold([10], 5.0, 1)
    assert ids(going(queue)) == [(1, [1]), (2, [1])]
    queue.add(request(3, 10, 40))
    assert ids(going(queue)) == [(3, [1])]
    assert queue.next_wake_s == 5.0
    assert woken(queue, 4.9) is None
    assert woken(queue, 5.0) == 0
    queue.add(request(4, 10))  # new, while the older ones are still to be read again
    for waiting in (request(1, 10, 20), request(2, 10, 30), request(3, 10, 40), request(4, 10)):
        queue.add(waiting)
    assert queue.end_pass() == []
    queue.add(request(5, 10))
    arrived = []
    while parts := going(queue):
        [part] = parts
        arrived.append(part.request.id)
        queue.answered(part, set(part.indexes))
    assert arrived == [1, 2, 3, 4, 5]


def test_halves_go_one_after_the_other_where_they_share_a_device_and_at_once_else() -> None:
    queue = RequestQueue()
    queue.add(request(1, 10, 20, 20, 30))
    queue.add(request(2, 30))
    [part] = going(queue)
    queue.answered(part)
    queue.halve(part)
    [first] = going(queue)
    assert ids([first]) == [(1, [0, 1])]
    queue.answered(first, {0, 1})
    [second] = going(queue)
    assert ids([second]) == [(1, [2, 3])]
    queue.answered(second, {2, 3})
    assert ids(going(queue)) == [(2, [0])]


def test_a_key_that_is_held_waits_whole_and_others_of_its_devices_do_not() -> None:
    queue = RequestQueue()
    queue.add(request(1, 10, key="bad"))
    queue.add(request(2, 11, key="bad"))
    queue.add(request(3, 12))
    [one, two, three] = going(queue)
    queue.answered(one)
    queue.hold_key("bad", 60.0, 1)
    queue.answered(two)
    queue.hold_key("bad", 60.0, 2)
    queue.answered(three, {0})
    queue.add(request(4, 10, key="bad"))
    assert going(queue) == []
    queue.wake(60.0)
    assert queue.again == 0
    queue.add(request(2, 11, key="bad"))
    assert ids(going(queue)) == [(2, [0])]
    assert queue.end_pass() == []


def test_a_device_that_is_due_during_a_pass_has_the_next_pass_at_once() -> None:
    queue = RequestQueue()
    for n in (1, 2):
        queue.add(request(n, n))
    for part in going(queue):
        queue.answered(part)
        queue.hold(part.devices, float(part.request.id), part.request.id)
    queue.wake(1.0)
    assert queue.again == 0
    queue.wake(2.0)
    queue.add(request(1, 1))
    queue.end_pass()
    assert queue.again == 1


def test_a_key_of_which_nothing_is_left_is_named_when_it_is_free() -> None:
    queue = RequestQueue()
    queue.add(request(1, 10, key="bad"))
    [part] = going(queue)
    queue.answered(part)
    queue.hold_key("bad", 60.0, 1)
    queue.wake(60.0)
    assert queue.end_pass() == ["bad"]


def test_a_busy_device_has_a_few_parts_loaded_and_the_others_all_of_theirs() -> None:
    queue = RequestQueue()
    for n in range(1, 2 * MOST_PARTS):
        assert queue.reads_front
        queue.add(request(n, 10))
    queue.add(request(2 * MOST_PARTS, 20))
    parts = going(queue)
    assert ids(parts) == [(1, [0]), (2 * MOST_PARTS, [0])]
    arrived = [parts[0].request.id]
    queue.answered(parts[0], {0})
    while (found := going(queue)) or queue.again is not None:
        for part in found:
            arrived.append(part.request.id)
            queue.answered(part, {0})
        if queue.again is not None:
            for n in range(queue.again + 1, 2 * MOST_PARTS):
                if n not in arrived:
                    queue.add(request(n, 10))
            queue.end_pass()
    assert arrived == list(range(1, 2 * MOST_PARTS))


def test_no_more_is_read_than_fits() -> None:
    queue = RequestQueue()
    for n in range(MOST_PARTS):
        assert queue.reads_front
        queue.add(request(n, n))
    assert not queue.reads_front


def devices_of(devices: list[int]) -> list[int]:
    """Return in which queue a request's events stand: of its API key, which has its own ones."""
    return [device + 10 * (len(devices) % 2) for device in devices]


FEW = 3


def test_holding_many_devices_of_many_requests_takes_no_long_while() -> None:
    """What is looked at grows with the events, and not with their square."""
    queue = RequestQueue()
    looked_at = 0

    class Counting(WaitingRequest):
        def device(self, index: int) -> int:
            nonlocal looked_at
            looked_at += 1
            return super().device(index)

    for n in range(1, 8):
        queue.add(Counting(n, 0, "k", 500, list(range(500)), list(range(500))))
    part = queue.oldest()
    assert part is not None
    queue.answered(part)
    looked_at = 0
    queue.hold(range(500), 10.0, 1)
    assert looked_at <= 7 * 500
    assert queue.oldest() is None
    assert queue.held == 500


class World:
    """Requests on disk, and what has become of them; a naive model checks each departure."""

    def __init__(self, requests: list[list[int]]) -> None:
        self.rows = {
            id_: WaitingRequest(
                id_, 0, f"k{devices[0] // 10}", len(devices), devices, [*range(len(devices))]
            )
            for id_, devices in enumerate(map(devices_of, requests), 1)
        }
        self.arrived: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.refused: set[tuple[int, int]] = set()
        self.queue = RequestQueue()
        self.out: list[RequestPart] = []
        self.now_s = 0.0

    def read(self) -> None:
        """Read a few again, and a few new ones, as the relay does."""
        queue = self.queue
        if queue.reads_again:
            assert queue.again is not None
            passed = [id_ for id_ in sorted(self.rows) if queue.again < id_ <= queue.front]
            for id_ in passed[:FEW]:
                queue.add(self.rows[id_])
            if len(passed) < FEW:
                queue.end_pass()
        if queue.reads_front:
            for id_ in [id_ for id_ in sorted(self.rows) if id_ > queue.front][:FEW]:
                queue.add(self.rows[id_])

    def send(self, most: int) -> None:
        while len(self.out) < most and (part := self.queue.oldest()) is not None:
            busy = {device for other in self.out for device in other.devices}
            assert not busy & part.devices
            self.out.append(part)

    def answer(self, choice: int, how: int) -> None:
        if not self.out:
            return
        part = self.out.pop(choice % len(self.out))
        indexes, row = part.indexes, part.request
        assert len(indexes) > 0
        half = set(indexes[::2])
        settled = [set(indexes), half, set(), set(), set(), set()][how]
        self.settle(row, settled, refused=how == 1)
        devices = set(list(part.devices)[: 1 + choice % 3])
        self.queue.answered(part, settled)
        if how == 2:
            self.queue.hold(devices, self.now_s + 1 + choice % 5, row.id)
        elif how == 3:
            self.queue.hold_key(row.api_key, self.now_s + 1 + choice % 5, row.id)
        elif how == 4 and len(part.indexes) > 1:
            self.queue.halve(part)

    def settle(self, row: WaitingRequest, settled: set[int], *, refused: bool) -> None:
        for index in sorted(settled):
            if refused:
                self.refused.add((row.id, index))
            else:
                self.arrived[row.device(index)].append((row.id, index))
        left = [i for i in row.remaining if i not in settled]
        if left:
            row.remaining = left
            self.rows[row.id] = row
        else:
            self.rows.pop(row.id, None)

    def pass_time(self, seconds: int) -> None:
        self.now_s += seconds
        self.queue.wake(self.now_s)

    def drain(self) -> None:
        for _ in range(10_000):
            self.pass_time(10)
            self.read()
            self.send(8)
            if not self.out and not self.rows:
                return
            while self.out:
                self.answer(0, 0)
        raise AssertionError("somebody waits for ever")


steps = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 20), st.integers(0, 5)), min_size=5, max_size=60
)


@given(
    requests=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=25),
    steps=steps,
)
def test_after_any_answers_each_device_keeps_its_order_and_none_waits_for_ever(
    requests: list[list[int]], steps: list[tuple[int, int, int]]
) -> None:
    world = World(requests)
    for step, choice, how in steps:
        world.read()
        world.send(1 + choice % 4)
        if step < 6:
            world.answer(choice, how)
        else:
            world.pass_time(choice)
    world.drain()
    for device in (*range(5), *range(10, 15)):
        expected = [
            (id_, index)
            for id_, devices in enumerate(map(devices_of, requests), 1)
            for index, of_event in enumerate(devices)
            if of_event == device and (id_, index) not in world.refused
        ]
        assert world.arrived[device] == expected
