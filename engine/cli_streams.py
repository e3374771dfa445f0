"""The standard streams of the process, closed ones and narrow encodings included."""

from __future__ import annotations

import io
import os
import sys


def open_standard_streams() -> None:
    """Open the standard descriptors that are closed, and let no character fail.

    ``sys.stdin`` stays None where it was closed: closed is not empty.
    """
    # The next file that is opened would get the number of a closed one (`>&-`), and with it
    # everything that is printed.
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115 - until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def close_stdout() -> None:
    """Flush standard output; discard the rest where it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        # The interpreter flushes once more at its end, and would print an error about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
