"""``reload``: has the running daemon read its settings file again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from amplitude_intercom.engine.commands.daemon_client import DaemonClient, DaemonUnavailable
from amplitude_intercom.engine.commands.running import FAILED, OK, complain, print_json
from amplitude_intercom.engine.commands.terminal import say
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings import Settings

AS_BEFORE: Final = "nothing was reloaded: a daemon that runs goes on as before"
ELSEWHERE: Final = (
    "if admin.listen or the token has changed since the daemon read them, send it SIGHUP"
)


async def reload(read: Callable[[], Settings], *, as_json: bool) -> int:
    """Ask the daemon for it, and print what has changed. ``read`` reads the file for the command.

    Raises:
        SettingsError: the file is refused, here or by the daemon.
    """
    try:
        settings = read()
        if settings.admin is None:
            return complain("there is no [admin] to ask the daemon by: send it SIGHUP", FAILED)
        async with DaemonClient(settings.admin) as daemon:
            done = await daemon.reload()
    except SettingsError as error:
        raise SettingsError(f"{error}; {AS_BEFORE}") from None
    except DaemonUnavailable as error:
        return complain(f"{error}; {ELSEWHERE}", FAILED)
    if as_json:
        print_json(done)
        return OK
    for line in done.lines():
        say(line)
    return OK
