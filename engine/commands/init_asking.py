"""The questions of ``init``, on a terminal: asked on stderr, answered on stdin."""

from __future__ import annotations

import getpass
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.commands.init_sample import Property, picked
from amplitude_intercom.engine.commands.terminal import print_table, say
from amplitude_intercom.engine.errors import SettingsError


def is_terminal() -> bool:
    """Whether questions can be asked and answered."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def tell(text: str) -> None:
    """Say something between the questions."""
    say(text, stderr=True)


def ask(question: str, default: str = "") -> str:
    """Return a line of the user's, without the blanks around it; an empty one is the default.

    Raises:
        SettingsError: the input ends.
    """
    while True:
        shown = f"{question}{f' [{default}]' if default else ''}: "
        print(shown, end="", file=sys.stderr, flush=True)
        _wait_for_line()
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError:
            tell(f"{NOT_TEXT}; once more")
            continue
        if not line:
            raise _ended()
        return line.strip() or default


NOT_TEXT: Final = "that has characters of another encoding than the terminal's"


def _wait_for_line() -> None:
    """Wait until there is a line, or raise ``KeyboardInterrupt`` at Ctrl-C.

    A read alone would miss a Ctrl-C that comes an instant before it: the interpreter has noted the
    signal then, and looks at its notes only once the read is over.
    """
    woken, waker = socket.socketpair()
    with woken, waker:
        waker.setblocking(False)
        before = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        try:
            select.select([sys.stdin, woken], [], [])
        finally:
            signal.set_wakeup_fd(before)


def ask_secret(question: str) -> str:
    """Return a line that is not shown while it is typed.

    Raises:
        SettingsError: the input ends.
    """
    while True:
        logs.flush()  # getpass writes to the terminal itself, past what waits for stderr
        try:
            return getpass.getpass(f"{question} (not shown): ").strip()
        except EOFError:
            raise _ended() from None
        except UnicodeDecodeError:
            tell(f"{NOT_TEXT}; once more")


def ask_whether(question: str, *, default: bool = True) -> bool:
    """Return a yes or a no."""
    while True:
        answer = ask(f"{question} [{'Y/n' if default else 'y/N'}]").lower()
        if answer in ("", "y", "yes", "n", "no"):
            return default if not answer else answer.startswith("y")
        tell("please answer y or n")


def ask_which(
    what: str,
    rows: Sequence[tuple[str, str]],
    marked: Sequence[str],
    problem: Callable[[list[str]], str],
) -> list[str]:
    """Return the names that the user picks of a list; ``rows``: names with facts.

    ``problem`` says why names cannot be used; empty: they can.
    """
    names = [name for name, _ in rows]
    table = [
        (f"{'*' if name in marked else ' '}{number}", name, facts)
        for number, (name, facts) in enumerate(rows, start=1)
    ]
    tell("")
    tell(f"{what}; those with * are proposed:")
    print_table(table, stderr=True)
    while True:
        answer = ask("Numbers or names, with commas; all; none; Enter for those with *")
        try:
            chosen = picked(answer, names, marked)
        except ValueError as error:
            tell(str(error))
            continue
        wrong = problem(chosen)
        if not wrong:
            return chosen
        tell(wrong)


def ask_names(question: str, problem: Callable[[list[str]], str]) -> list[str]:
    """Return names that the user types, with commas between them; none is an answer, too."""
    while True:
        names = [name.strip() for name in ask(question).split(",") if name.strip()]
        wrong = problem(names)
        if not wrong:
            return names
        tell(wrong)


def facts_of(found: Property) -> str:
    """Return the facts about a property, for a list."""
    example = f", e.g. {found.example}" if found.example else ""
    return f"{found.kind}{example}; {found.count}×"


def ask_needed(question: str, *, is_public: bool) -> str:
    """Return an answer that is not empty; one that is not public is not shown.

    Raises:
        SettingsError: the input ends.
    """
    asked = ask if is_public else ask_secret
    while not (answer := asked(question)):
        tell("it is needed; once more")
    return answer


DECISIONS: Final = ("again", "untried", "other")


def ask_about_silence() -> str:
    """Return what to do where nobody judges a secret; one of ``DECISIONS``.

    Raises:
        SettingsError: the input ends.
    """
    question = "again: ask once more; untried: go on without; other: type another"
    while (answer := ask(question, DECISIONS[0]).lower()) not in DECISIONS:
        tell(f"please answer {', '.join(DECISIONS)}")
    return answer


def _ended() -> SettingsError:
    return SettingsError("the input ended before all was answered; nothing was written")
