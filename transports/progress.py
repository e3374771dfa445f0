"""The progress of a source that reads files, reported to a display or a log."""

from __future__ import annotations

import logging

from amplitude_intercom.transports.contract import Receipt
from amplitude_intercom.transports.errors import BadFile

_log = logging.getLogger(__name__)


class Progress:
    """Receives the progress of reading; this one ignores all but problems."""

    def read(self, count: int) -> None:
        """``count`` more bytes of the files were read."""

    def stored(self, receipt: Receipt) -> None:
        """A batch is on disk."""

    def passed_over(self, count: int) -> None:
        """``count`` events lie outside the period that was asked for."""

    def bad_file(self, error: BadFile) -> None:
        """A file is not whole, or holds no events: the next one is read."""
        _log.warning("%s", error)

    def unreadable(self, error: OSError) -> None:
        """A file cannot be read; unless this raises, the next one is."""
        raise error
