"""Our own sources keep the contract of a source (``transports.conformance``)."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import lzma
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import msgspec
import pytest

from amplitude_intercom.transports import conformance
from amplitude_intercom.transports.conformance import Outside, event
from amplitude_intercom.transports.contract import Intake, Source, batch_of
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.http import HttpSource
from amplitude_intercom.transports.line_source import LineSource

API_KEY = "conformance-key"


class HttpOutside:
    """A client that uploads a few events at a time, and again what was answered 503."""

    ends = False

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._http = HttpSource(listen="127.0.0.1:0")
        self.source: Source = self._http
        self._session = session
        self._confirmed: set[str] = set()

    async def offer(self, ids: Sequence[str]) -> None:
        url = f"http://{await self._http.listening()}/2/httpapi"
        for start in range(0, len(ids), 7):
            some = ids[start : start + 7]
            while not await self._upload(url, some):
                pass
            self._confirmed.update(some)

    async def _upload(self, url: str, ids: Sequence[str]) -> bool:
        events = [msgspec.json.decode(event(id_)) for id_ in ids]
        body = {"api_key": API_KEY, "events": events}
        async with self._session.post(url, json=body) as answer:
            assert answer.status in (200, 503)
            return answer.status == 200

    def confirmed(self) -> set[str]:
        return self._confirmed


class PipeOutside:
    """A program that writes lines into a named pipe."""

    ends = True

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._path = path
        self.source: Source = LineSource([str(path)], batch_lines=7, refused_nap_s=0.0)

    async def offer(self, ids: Sequence[str]) -> None:
        with suppress(BrokenPipeError):
            await asyncio.to_thread(self._path.write_bytes, lines(ids))

    def confirmed(self) -> set[str]:
        return set()


class FileOutside:
    """A folder of files of several shapes, which is read once they are there."""

    ends = True

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._written = asyncio.Event()
        self._source = LineSource([str(folder)], batch_lines=7, refused_nap_s=0.0)
        self.source: Source = self

    async def run(self, intake: Intake) -> None:
        await self._written.wait()
        await self._source.run(intake)

    async def offer(self, ids: Sequence[str]) -> None:
        third = len(ids) // 3
        array = b"[" + b",\n".join(map(event, ids[2 * third :])) + b"]"
        (self._folder / "1.json").write_bytes(lines(ids[:third]))
        (self._folder / "2.json.gz").write_bytes(gzip.compress(lines(ids[third : 2 * third])))
        (self._folder / "3.json.xz").write_bytes(lzma.compress(array))
        self._written.set()

    def confirmed(self) -> set[str]:
        return set()


def lines(ids: Sequence[str]) -> bytes:
    return b"".join(event(id_) + b"\n" for id_ in ids)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("check", conformance.CHECKS)
@pytest.mark.parametrize("kind", ["http", "pipe", "files"])
async def test_our_sources_keep_the_contract(
    tmp_path: Path, kind: str, check: conformance.Check, seed: int
) -> None:
    names = itertools.count()

    @asynccontextmanager
    async def make() -> AsyncIterator[Outside]:
        if kind == "http":
            async with aiohttp.ClientSession() as session:
                yield HttpOutside(session)
        elif kind == "pipe":
            yield PipeOutside(tmp_path / f"pipe-{next(names)}")
        else:
            yield FileOutside(tmp_path / f"folder-{next(names)}")

    await check(make, seed)


# --- the checks find what is wrong --------------------------------------------------------


class Wrong:
    """A source that keeps events in a list, and does one thing wrong."""

    ends = False

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._events: asyncio.Queue[str] = asyncio.Queue()
        self._confirmed: set[str] = set()
        self.source: Source = self

    async def run(self, intake: Intake) -> None:
        self._left: asyncio.Task[object]
        if self._fault == "leaves a task":
            self._left = asyncio.create_task(asyncio.Event().wait())
        if self._fault == "goes on when cancelled":
            self._left = asyncio.create_task(self._serve(intake))
            await asyncio.shield(self._left)
        await self._serve(intake)

    async def _serve(self, intake: Intake) -> None:
        while True:
            id_ = await self._events.get()
            if self._fault == "loses one" and id_.endswith("-9"):
                self._confirmed.add(id_)
                continue
            await self._bring(id_, intake)

    async def _bring(self, id_: str, intake: Intake) -> None:
        while id_ not in self._confirmed:
            try:
                ticket = await intake.send(batch_of([event(id_)], sync="a"))
                if self._fault == "tells at once":
                    self._confirmed.add(id_)
                await ticket.wait()
            except Refused:
                if self._fault == "forgets what is refused":
                    self._confirmed.add(id_)
            else:
                self._confirmed.add(id_)

    async def offer(self, ids: Sequence[str]) -> None:
        for id_ in ids if self._fault != "out of order" else reversed(ids):
            self._events.put_nowait(id_)
        while not self._confirmed >= set(ids):
            await asyncio.sleep(0)

    def confirmed(self) -> set[str]:
        return self._confirmed


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        ("loses one", 1),
        ("out of order", 1),
        ("tells at once", 2),
        ("forgets what is refused", 3),
        ("goes on when cancelled", 4),
        ("leaves a task", 5),
    ],
)
async def test_a_source_that_breaks_the_contract_is_found_out(fault: str, number: int) -> None:
    @asynccontextmanager
    async def make() -> AsyncIterator[Outside]:
        yield Wrong(fault)

    with pytest.raises(AssertionError, match=f"contract {number}, seed 1: "):
        await conformance.CHECKS[number - 1](make, 1)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


@pytest.mark.parametrize("check", conformance.CHECKS)
async def test_a_source_without_fault_passes(check: conformance.Check) -> None:
    @asynccontextmanager
    async def make() -> AsyncIterator[Outside]:
        yield Wrong("none")

    await check(make, 1)
