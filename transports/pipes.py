"""Text from pipes and files for the event loop: blocking reads happen where they can be cancelled.

A file is read in a thread, one chunk ahead. A pipe may stay silent for ever, and a thread that
waits for it could not be cancelled. So the loop waits until a pipe has bytes, and reads then.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import anyio
import anyio.to_thread

from amplitude_intercom.transports import files
from amplitude_intercom.transports.files import Chunk
from amplitude_intercom.transports.lines import FilePosition
from amplitude_intercom.transports.packing import PackedText


async def read_in_thread(chunks: Iterator[Chunk]) -> AsyncGenerator[Chunk]:
    """Yield the chunks of a blocking reader, which reads one chunk ahead in a thread.

    Cancelled, it waits for the read that has begun: a thread cannot be stopped.
    """
    loop = asyncio.get_running_loop()
    ahead = loop.run_in_executor(None, next, chunks, None)
    try:
        while (chunk := await ahead) is not None:
            ahead = loop.run_in_executor(None, next, chunks, None)
            yield chunk
    finally:
        await asyncio.wait([ahead])
        if not ahead.cancelled():
            # An error behind the point where reading stopped is of no interest; unfetched, asyncio
            # would log it.
            ahead.exception()


async def read_named_pipe(path: str) -> AsyncGenerator[Chunk]:
    """Yield the text of a named pipe; waits for its first writer.

    Raises:
        OSError: it cannot be read.
    """
    # Non-blocking, because ``open`` would wait for a writer and could not be cancelled.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        async with aclosing(read_pipe(descriptor, path)) as chunks:
            async for chunk in chunks:
                yield chunk
    finally:
        os.close(descriptor)


async def read_pipe(descriptor: int, name: str) -> AsyncGenerator[Chunk]:
    """Yield the text of a pipe, unpacked where it is packed. The last chunk has its problem.

    Raises:
        OSError: it cannot be read.
    """
    stream, problem = PackedText(), ""
    try:
        while block := await _read_block(descriptor, name):
            for text in stream.feed(block):
                yield Chunk("", text, len(block))
        for text in stream.finish():
            yield Chunk("", text, len(text))
        if stream.archive is not None:
            inside = files.read_archive(stream.archive, FilePosition(), layers=stream.layers)
            async with aclosing(read_in_thread(inside)) as chunks:
                async for chunk in chunks:
                    yield chunk
    except Exception as error:  # the libraries raise errors of any class for damaged input
        problem = files.problem_of(error)
    finally:
        if stream.archive is not None:
            stream.archive.close()
    yield Chunk("", b"", 0, problem)


async def _read_block(descriptor: int, name: str) -> bytes:
    """Return the bytes that are there, after a wait for the first one; b"" at the end.

    Raises:
        OSError: it cannot be read; the error names it.
    """
    try:
        if _can_be_silent(descriptor):
            await anyio.wait_readable(descriptor)
            return os.read(descriptor, files.CHUNK_BYTES)
        return await anyio.to_thread.run_sync(os.read, descriptor, files.CHUNK_BYTES)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


def _can_be_silent(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
