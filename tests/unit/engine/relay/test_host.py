"""When requests to Amplitude may leave."""

from __future__ import annotations

from amplitude_intercom.engine.relay.host import BUSY, MANY, OUTAGE, WELL, AmplitudeHost


def failed(host: AmplitudeHost, times: int, now_s: float = 0.0) -> None:
    for _ in range(times):
        host.failed("no answer", now_s, 1.0)


def test_a_few_failures_are_nobodys_yet() -> None:
    host = AmplitudeHost()
    failed(host, MANY - 1)
    assert (host.state(0.0), host.slots(8, 2, 0.0)) == (WELL, 6)


def test_in_an_outage_one_finds_out_after_pauses_that_grow_to_ten_seconds() -> None:
    host, now_s, pauses = AmplitudeHost(), 0.0, []
    failed(host, MANY)
    for _ in range(8):
        assert host.state(now_s) == OUTAGE
        assert host.slots(8, 0, now_s) == 0
        next_s = host.next_look_s(now_s)
        assert next_s is not None
        pauses.append(next_s - now_s)
        now_s = next_s
        assert host.slots(8, 0, now_s) == 1
        assert host.slots(8, 1, now_s) == 0
        failed(host, 1, now_s)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_any_word_of_amplitudes_ends_an_outage() -> None:
    host = AmplitudeHost()
    failed(host, 20)
    host.answered(5.0, took=False)
    assert (host.state(5.0), host.slots(8, 0, 5.0), host.said) == (WELL, 8, "")
    assert host.last_taken_s < 5.0
    host.answered(6.0, took=True)
    assert host.last_taken_s == 6.0


def test_a_pause_that_amplitude_asks_for_holds_for_everybody() -> None:
    host = AmplitudeHost()
    host.be_busy("429", 30.0)
    assert (host.state(29.0), host.slots(8, 0, 29.0), host.next_look_s(1.0)) == (BUSY, 0, 30.0)
    assert (host.state(30.0), host.slots(8, 0, 30.0)) == (WELL, 8)


def test_of_several_times_that_amplitude_names_the_latest_holds() -> None:
    host = AmplitudeHost()
    host.be_busy("throttled", 10.0)
    host.be_busy("throttled", 5.0)
    assert (host.state(9.0), host.slots(8, 0, 9.0), host.next_look_s(9.0)) == (BUSY, 0, 10.0)
    assert host.state(10.0) == WELL
