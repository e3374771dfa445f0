"""An event loop whose clock jumps to the next timer: simulated hours pass in a moment.

No sockets and no threads inside. A loop that has nothing to wait for any more is stuck for good, so
that raises. Each turn advances at least a microsecond: a limiter that re-arms a timer at "now"
because of rounding would otherwise spin for ever.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
EPOCH_S = 1_800_000_000.0
"""Unix time at which simulations begin; divisible by ten, as Intercom's windows are."""


class Stuck(Exception):
    """Every task waits, and no timer will wake any of them."""


class _Selector(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise Stuck
        self.loop.now_s += max(timeout, 1e-6)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """``now_s`` is seconds since the simulation began; ``wall_offset_s`` is for stepping clocks."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.now_s = 0.0
        self.wall_offset_s = 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return EPOCH_S + self.now_s + self.wall_offset_s

    def wall_ms(self) -> int:
        return int(self.wall_s() * 1000)


def current() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def in_virtual_time(main: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make a coroutine function, such as a test, a function that runs in virtual time."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(main(*args, **kwargs))

    return run
