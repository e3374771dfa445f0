"""Which call comes first with a user of whom no contact is known."""

from __future__ import annotations

from typing import Final

WEIGHT: Final = 1 / 32
"""Of the latest first contact in the share of those that were there."""

AT_FIRST: Final = 1 / 4
LOOKING_PAYS: Final = 1 / 2
"""Where the contact is new, to create first costs one call, and to look first two. Where it is
there it is the other way round if nothing differs, and two calls both ways if something does (three
to create first with an e-mail: whose it is has to be looked at). So looking pays where most of them
are there; what is taken for their share at first."""


class CreateOrFind:
    """How many of a workspace's first contacts were there already, lately."""

    def __init__(self) -> None:
        self.share = AT_FIRST

    def note(self, *, was_there: bool) -> None:
        """Take in what came of one."""
        self.share += WEIGHT * (was_there - self.share)

    @property
    def finds_first(self) -> bool:
        """Whether the contact is looked for before it is created."""
        return self.share > LOOKING_PAYS
