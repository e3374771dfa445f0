"""What a reload says in the log."""

from __future__ import annotations

from structlog.testing import capture_logs

from amplitude_intercom.engine.commands.reloading import MOST_WARNINGS, warn_of_keys
from support.findings import settings, sync


def test_a_crowd_of_syncs_with_one_key_does_not_fill_the_log() -> None:
    for number, lines in ((2, 1), (7, MOST_WARNINGS + 1), (500, MOST_WARNINGS + 1)):
        with capture_logs() as logged:
            warn_of_keys(settings(*(sync(f"s{n}") for n in range(number))))
        assert len(logged) == lines
        assert ("there are more" in logged[-1]["event"]) == (lines > MOST_WARNINGS)
