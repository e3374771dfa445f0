"""A program on a pseudo-terminal, and somebody who reads and types there."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

WITHIN_S = 60.0


class Terminal:
    """What a program shows, and its keyboard."""

    def __init__(self, process: asyncio.subprocess.Process, keyboard: int) -> None:
        self.process = process
        self.shown = ""
        """All that was shown so far."""
        self._keyboard = keyboard
        self._read_to = 0
        self._came = asyncio.Event()
        asyncio.get_running_loop().add_reader(keyboard, self._read)

    def _read(self) -> None:
        came = b""
        with suppress(OSError):  # Linux says so where the other end is closed
            came = os.read(self._keyboard, 65_536)
        if not came:
            asyncio.get_running_loop().remove_reader(self._keyboard)
        self.shown += came.decode(errors="replace").replace("\r\n", "\n")
        self._came.set()

    async def sees(self, text: str) -> str:
        """Wait until a text is shown; return what was shown before it, since the last one."""
        async with asyncio.timeout(WITHIN_S):
            while (at := self.shown.find(text, self._read_to)) < 0:
                self._came.clear()
                await self._came.wait()
        before = self.shown[self._read_to : at]
        self._read_to = at + len(text)
        return before

    async def answers(self, question: str, line: str) -> None:
        """Type a line once a question is shown."""
        await self.sees(question)
        self.types(f"{line}\n")

    def types(self, text: str) -> None:
        self.types_bytes(text.encode())

    def types_bytes(self, keys: bytes) -> None:
        os.write(self._keyboard, keys)

    @property
    def words(self) -> str:
        """All that was shown, in one line."""
        return re.sub(r"\s+", " ", self.shown)


@asynccontextmanager
async def on_terminal(
    *command: str, cwd: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[Terminal]:
    """Run a program whose three standard streams are a terminal of its own."""
    keyboard, screen = pty.openpty()

    def become_its_own() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=screen,
        stdout=screen,
        stderr=screen,
        cwd=cwd,
        env={**os.environ, "TERM": "dumb", **(env or {})},
        preexec_fn=become_its_own,
    )
    os.close(screen)
    terminal = Terminal(process, keyboard)
    try:
        yield terminal
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(keyboard)
        os.close(keyboard)
