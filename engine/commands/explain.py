"""``explain``: the meaning of a setting, a reason or a metric, and the alerting rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Final

import msgspec

from amplitude_intercom.engine.commands.running import OK, USAGE, complain, print_json
from amplitude_intercom.engine.commands.terminal import print_table, say
from amplitude_intercom.engine.console.problems import ProblemType
from amplitude_intercom.engine.delivery.gate import State
from amplitude_intercom.engine.did_you_mean import did_you_mean
from amplitude_intercom.engine.metrics import METRICS, PREFIX
from amplitude_intercom.engine.reasons import AdjustmentReason, DeadReason, DropReason
from amplitude_intercom.engine.relay.host import RelayState
from amplitude_intercom.engine.settings_meanings import MEANINGS
from amplitude_intercom.transports.reasons import NoAnswerCause, Reason, RefusalReason

SETS: Final[dict[str, type[Reason]]] = {
    "why an event is dropped": DropReason,
    "why an event is a dead letter": DeadReason,
    "what was changed on the way to Intercom": AdjustmentReason,
    "why a request is refused": RefusalReason,
    "why a call has no answer": NoAnswerCause,
    "how Intercom fares": State,
    "how Amplitude fares for a relay": RelayState,
    "why the admin port refuses a request": ProblemType,
}
"""The closed sets of words, each with the kind of its words."""


ALERTS: Final = "alerts"
LEAST_PART: Final = 4
MOST_AROUND: Final = 8
"""Characters of a part of a word that is looked for, and the words with it that are named."""


def alerting_rules() -> str:
    """Return the alerting rules for Prometheus, in YAML."""
    return files("amplitude_intercom.engine").joinpath("alerts.yaml").read_text(encoding="utf-8")


class Word(msgspec.Struct, frozen=True):
    """A word that the program uses, of one ``kind``."""

    word: str
    kind: str
    means: str
    remedy: str = ""


def words() -> Iterator[Word]:
    """Yield every word that can be explained; one may have several meanings."""
    for path, meaning in MEANINGS.items():
        yield Word(path, "a setting", meaning)
    for kind, members in SETS.items():
        for member in members:
            yield Word(member.value, kind, member.means, member.remedy)
    yield Word(
        ALERTS, "rules", "alerting rules for Prometheus, printed as a file by `explain alerts`"
    )
    for name, text in METRICS.items():
        yield Word(PREFIX + name, "a metric", text)


def explain(word: str | None, *, as_json: bool) -> int:
    """Print the meaning of a word, or all words; exits 2 where there is no such word.

    ``alerts`` prints the alerting rules for Prometheus.
    """
    if word == ALERTS and not as_json:
        print(alerting_rules(), end="")
        return OK
    every = list(words())
    found = every if word is None else [entry for entry in every if _is_meant(word, entry.word)]
    if not found:
        hint = _hint(str(word), list(dict.fromkeys(one.word for one in every)))
        return complain(f"there is no word `{str(word)[:64]}`{hint}", USAGE)
    if as_json:
        print_json([msgspec.structs.asdict(word) for word in found])
    elif word is None:
        print_table([(word.word, word.kind, word.means) for word in found])
    else:
        _print(found)
    return OK


def _hint(asked: str, known: list[str]) -> str:
    """Return the words to look at instead: the one most like it, or those that it is a part of."""
    part = asked.strip(" `").lower().replace("-", "_")
    around = [short for word in known if part in (short := word.removeprefix(PREFIX)).lower()]
    if len(part) >= LEAST_PART and 0 < len(around) <= MOST_AROUND:
        return f"; there is {', '.join(f'`{short}`' for short in around)}"
    return did_you_mean(asked, known) or "; `explain` alone lists them"


def _is_meant(asked: str, word: str) -> bool:
    """Whether a word is asked for: as it is, by its last part, or by the section it is in."""
    asked = re.sub(r"\[\d*\]", "", asked).strip(" `[]").lower().replace("-", "_")
    plain = word.lower()
    return (
        asked in (plain, plain.removeprefix(PREFIX))
        or plain.endswith(f".{asked}")
        or f".{asked}." in f".{plain}."
        or asked.startswith(f"{plain}.")
    )


def _print(found: list[Word]) -> None:
    for word in found:
        say(f"{word.word}: {word.kind}")
        say(f"  {word.means}")
        if word.remedy:
            say(f"  what to do: {word.remedy}")
