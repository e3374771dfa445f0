"""A daemon that does not answer now: how long it is waited for, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest

from amplitude_intercom.engine.commands.daemon_client import DaemonUnavailable
from amplitude_intercom.engine.commands.daemon_sync import (
    LEAST_PATIENCE_S,
    PATIENCE_S,
    DaemonSync,
)
from amplitude_intercom.engine.console.api_v1.batch_values import (
    BatchReceipt,
    HandedBatch,
    PendingFacts,
)
from amplitude_intercom.engine.console.problems import Problem, ProblemType
from amplitude_intercom.engine.errors import SettingsError
from support.virtual import in_virtual_time

FACTS = PendingFacts(False, 7, 1, 0, None, True, "well", "")
RECEIPT = BatchReceipt(1, {}, {}, 7)
Answer = tuple[int, bytes] | Exception


def full(reason: str) -> Answer:
    problem = Problem(ProblemType.UNAVAILABLE, reason, more={"reason": reason})
    return 503, problem.body()


GONE = DaemonUnavailable("nothing listens there")


class OneClient:
    """Answers as it is told, at the second of the question."""

    address = "127.0.0.1:8711"

    def __init__(self, answer: Callable[[float], Answer]) -> None:
        self._answer = answer
        self.asked: list[str] = []
        self.other = ""

    async def exchange(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        self.asked.append(f"{method} {path}")
        answer = self._answer(asyncio.get_running_loop().time())
        if isinstance(answer, Exception):
            raise answer
        return answer

    def decoded(self, content: bytes, kind: Any) -> Any:
        return msgspec.json.decode(content, type=kind)

    async def why_not(self) -> str:
        self.asked.append("whose")
        return self.other


def sync_of(client: OneClient, max_wait_s: float | None = None) -> DaemonSync:
    return DaemonSync(cast("Any", client), client.why_not, "a b", max_wait_s)


def facts_after(seconds: float, before: Answer) -> Callable[[float], Answer]:
    return lambda at_s: (200, msgspec.json.encode(FACTS)) if at_s >= seconds else before


async def never() -> bool:
    raise AssertionError("an answer that says no is not lost")


@pytest.mark.parametrize(
    ("max_wait_s", "patience_s"), [(None, PATIENCE_S), (0.0, LEAST_PATIENCE_S), (300.0, 300.0)]
)
@in_virtual_time
async def test_a_daemon_that_is_gone_is_waited_for_and_then_given_up(
    max_wait_s: float | None, patience_s: float
) -> None:
    found = await sync_of(OneClient(facts_after(patience_s - 1, GONE)), max_wait_s).pending(None)
    assert found == FACTS
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    sync = sync_of(OneClient(lambda _: GONE), max_wait_s)
    with pytest.raises(DaemonUnavailable, match="run it again, it goes on from there"):
        await sync.pending(None)
    assert patience_s <= loop.time() - began_s < patience_s + 1
    assert sync.trouble == "nothing listens there"


@in_virtual_time
async def test_a_daemon_that_is_about_to_end_is_as_one_that_is_gone() -> None:
    with pytest.raises(DaemonUnavailable, match="draining"):
        await sync_of(OneClient(lambda _: full("draining"))).pending(None)


@in_virtual_time
async def test_a_full_spool_is_waited_for_as_long_as_it_is_full() -> None:
    loop = asyncio.get_running_loop()

    def answer(at_s: float) -> Answer:
        return full("spool_full") if at_s < 3_600 else (200, msgspec.json.encode(RECEIPT))

    sync = sync_of(OneClient(answer))
    assert await sync.hand(HandedBatch(events=[b"{}"]), never) == RECEIPT
    assert loop.time() >= 3_600
    assert sync.trouble == ""


@in_virtual_time
async def test_what_comes_back_is_asked_whose_spool_it_has_before_anything_else() -> None:
    client = OneClient(facts_after(2, GONE))
    client.other = "the daemon there has another data_dir"
    with pytest.raises(DaemonUnavailable, match="another data_dir"):
        await sync_of(client).pending(None)
    assert client.asked[0] == "GET /syncs/a%20b/pending?"
    assert set(client.asked[1:]) == {"whose"}


@in_virtual_time
async def test_a_glance_does_not_wait_and_says_what_is_wrong() -> None:
    sync = sync_of(OneClient(facts_after(2, GONE)))
    assert await sync.glance() is None
    assert (sync.trouble, asyncio.get_running_loop().time() < 1) == ("nothing listens there", True)
    await asyncio.sleep(2)
    assert await sync.glance() == FACTS
    assert sync.trouble == ""


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        (ProblemType.NOT_FOUND, SettingsError, "`reload`"),
        (ProblemType.READ_ONLY, DaemonUnavailable, "`admin.token`"),
        (ProblemType.TOO_LARGE, DaemonUnavailable, "answers 413: too much"),
    ],
)
@in_virtual_time
async def test_a_refusal_for_good_is_an_error_at_once(
    kind: ProblemType, error: type[Exception], said: str
) -> None:
    problem = Problem(kind, "too much")
    client = OneClient(lambda _: (problem.status, problem.body()))
    with pytest.raises(error, match=said):
        await sync_of(client).hand(HandedBatch(events=[]), never)
    assert len(client.asked) == 1
