"""The trials of ``init``: a secret is tried at each host that may be the right one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from amplitude_intercom.engine.commands import init_asking as asking
from amplitude_intercom.engine.commands.init_text import Answers, Server


class TrialProblem(msgspec.Struct, frozen=True):
    """Why a secret is not taken; ``is_judged``: by somebody who knows, so that another is needed.

    Otherwise nobody answered, or only somebody between.
    """

    text: str
    is_judged: bool


class Service(msgspec.Struct, frozen=True):
    """One of the two services: its regions, and the flags that say where it is."""

    called: str
    region_flag: str
    url_flag: str
    regions: tuple[str, ...]

    @property
    def choices(self) -> str:
        """The regions, for people."""
        return f"{', '.join(self.regions[:-1])} or {self.regions[-1]}"

    def asked_region(self) -> str:
        """Return the region that the user names.

        Raises:
            SettingsError: the input ends.
        """
        question = f"Region of the {self.called} ({', '.join(self.regions)})"
        while (region := asking.ask(question)) not in self.regions:
            asking.tell(f"there is no region {region}" if region else "it is needed")
        return region


class Trial:
    """Tries a secret at hosts until one takes it."""

    def __init__(
        self,
        service: Service,
        hosts: Sequence[Server],
        draft: Callable[[str, Server], Answers],
        asked: Callable[[Answers], TrialProblem | None],
    ) -> None:
        """``draft``: the answers with a secret and a host. ``asked``: what a draft's problem is."""
        self._service = service
        self._hosts = hosts
        self._made = draft
        self._asked = asked
        self.draft = draft("unknown", hosts[0])
        """The answers that were tried last."""
        self.problem: TrialProblem | None = None
        """Why the secret that was tried last is not taken."""

    def takes(self, secret: str) -> bool:
        """Return whether a host takes a secret; ``problem`` says why none does.

        A host that does not answer may be the one: that comes before the others' refusals.
        """
        problems = []
        for host in self._hosts:
            self.draft = self._made(secret, host)
            problem = self._asked(self.draft)
            if problem is None:
                return True
            problems.append(problem)
        self.problem = next((p for p in problems if not p.is_judged), problems[0])
        return False

    def untried(self, secret: str) -> Answers:
        """Return the answers with a secret that nobody has taken, and the region that is asked for.

        Raises:
            SettingsError: the input ends.
        """
        host = self._hosts[0]
        if len(self._hosts) > 1:
            host = Server(self._service.asked_region())
        return self._made(secret, host)
