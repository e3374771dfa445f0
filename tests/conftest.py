"""Long forms of a proof run only with ``-m long``; ``--no-skips`` makes a skipped test a failure.

In CI, properties repeat themselves; everywhere else hypothesis looks for new examples at every run.
"""

from __future__ import annotations

import os
import signal

import pytest
import structlog
from hypothesis import HealthCheck, settings

# How long a strategy takes says more about the machine's other work than about the strategy.
settings.register_profile("default", suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("default")
if os.environ.get("CI"):
    settings.load_profile("ci")

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the tests' own processes would ignore it

structlog.configure(  # a traceback with all its locals costs a fifth of a second, each
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail where a test is skipped")


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "long" in config.getoption("markexpr"):
        return
    chosen = [item for item in items if item.get_closest_marker("long") is None]
    config.hook.pytest_deselected(items=[i for i in items if i not in chosen])
    items[:] = chosen
