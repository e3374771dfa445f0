"""``reload``: has the running daemon read its settings file again."""

from __future__ import annotations

from amplitude_intercom.engine.commands.daemon_client import DaemonClient, DaemonUnavailable
from amplitude_intercom.engine.commands.running import FAILED, OK, complain, print_json
from amplitude_intercom.engine.commands.terminal import say
from amplitude_intercom.engine.settings import Settings


async def reload(settings: Settings, *, as_json: bool) -> int:
    """Ask the daemon for it, and print what has changed.

    Raises:
        SettingsError: the daemon refuses the file.
    """
    if settings.admin is None:
        return complain("there is no [admin] to ask the daemon by: send it SIGHUP", FAILED)
    async with DaemonClient(settings.admin) as daemon:
        try:
            done = await daemon.reload()
        except DaemonUnavailable as error:
            return complain(error, FAILED)
    if as_json:
        print_json(done)
        return OK
    for line in done.lines():
        say(line)
    return OK
