"""Reasons of failures and refusals in transports: closed sets of words, each explained."""

from __future__ import annotations

import enum
from typing import Self


class Reason(enum.StrEnum):
    """A word of a closed set.

    A member is its word (``NoAnswerCause.TIMEOUT == "timeout"``), so it is stored, counted and
    logged as that, also where a log writes the ``repr`` of a value that holds it.
    """

    __repr__ = str.__repr__

    means: str
    """The meaning, in half a sentence."""
    remedy: str
    """The remedy; empty where none is needed."""

    def __new__(cls, word: str, means: str = "", remedy: str = "") -> Self:
        """Make a member of its word and explanation."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.means = means
        member.remedy = remedy
        return member


class NoAnswerCause(Reason):
    """Why a call has no answer."""

    UNRESOLVED = (
        "unresolved",
        "the host name cannot be resolved",
        "check `sync.intercom.base_url` and the resolver of this machine",
    )
    REFUSED = (
        "refused",
        "nothing listens there",
        "check the port of `sync.intercom.base_url`, and whether the proxy runs",
    )
    UNTRUSTED = (
        "untrusted",
        "no encrypted connection: the certificate or protocol does not fit",
        "check the proxy's certificate, the certificates of this machine and its clock",
    )
    TIMEOUT = (
        "timeout",
        "no answer in time",
        "it is tried again; raise `sync.intercom.timeout_s` where answers are slow by nature",
    )
    RESET = ("reset", "the connection broke before an answer came", "it is tried again")
    INCOMPLETE = ("incomplete", "the answer was cut off", "it is tried again")
    UNFORESEEN = (
        "unforeseen",
        "the call failed on this side, in a way that nobody foresaw",
        "it is tried again; look at the log, and at the memory and threads of this machine",
    )


class RefusalReason(Reason):
    """Why a batch or a request was refused, so that nothing of it is stored."""

    SPOOL_FULL = (
        "spool_full",
        "more waits than `spool.max_bytes`",
        "see `status` for what keeps it from leaving, or raise `spool.max_bytes`",
    )
    SPOOL_FAILING = (
        "spool_failing",
        "the spool's disk or file fails",
        "look at the disk, then at `spool verify`",
    )
    DISK_FULL = (
        "disk_full",
        "the disk under the spool is full",
        "free at least twice `spool.reserve_bytes` on the disk of `data_dir`",
    )
    DRAINING = ("draining", "the engine is about to end", "send it again once it has started again")
    INTERNAL = (
        "internal",
        "a fault of this program; the log has it",
        "report it with the traceback in the log",
    )
    BUSY = (
        "busy",
        "as many bytes of bodies as `http.max_held_bytes` are held already",
        "the client sends it again; raise `http.max_held_bytes` where it happens all the time",
    )
    UNAVAILABLE = (
        "unavailable",
        "the engine cannot take it now",
        "the client sends it again; see the log",
    )
    UNKNOWN_KEY = (
        "unknown_key",
        "no sync takes this Amplitude API key",
        "add the key to `sync.amplitude_api_keys`, or correct it in the client",
    )
    BAD_EVENTS = (
        "bad_events",
        "some of its events are not what Amplitude takes",
        "the answer lists them by index; correct them in the client",
    )
    MISSING_FIELD = (
        "missing_field",
        "the request lacks a field, such as its API key",
        "the answer names the field",
    )
    INVALID_JSON = ("invalid_json", "the body is not JSON, or not of the right shape", "mend it")
    INVALID_FORM = ("invalid_form", "the body is not the form of this path", "mend it")
    NO_BODY = ("no_body", "there is no body", "send the events in the body")
    BAD_CHECKSUM = (
        "bad_checksum",
        "the form's checksum does not fit what it holds",
        "look for what changes the body between the client and here",
    )
    TOO_LARGE = (
        "too_large",
        "more bytes or events than a request may have",
        "send less at once",
    )
    THROTTLED = (
        "throttled",
        "more than `http.key_requests_per_s` or `http.key_events_per_s` let through",
        "the client sends it again; raise the limit where it is too low",
    )
    SLOW_BODY = (
        "slow_body",
        "the body did not arrive within `http.body_timeout_s`",
        "look at the client's network",
    )
    GONE = (
        "gone",
        "the client hung up before its request was whole",
        "look at the client's network and time-outs",
    )
    ENCODING = (
        "encoding",
        "a content encoding that is not read here",
        "send gzip, deflate or plain bytes",
    )
    UNKNOWN_PATH = (
        "unknown_path",
        "nothing is served at this path",
        "see `transports/README.md` for the paths of each client",
    )
    METHOD = ("method", "the path does not take this method", "send it with POST")
    BAD_HTTP = (
        "bad_http",
        "the request is not HTTP, or breaks one of its limits",
        "mend the client",
    )


UNTAKEN = frozenset(
    {
        RefusalReason.SPOOL_FULL,
        RefusalReason.SPOOL_FAILING,
        RefusalReason.DISK_FULL,
        RefusalReason.DRAINING,
        RefusalReason.INTERNAL,
    }
)
"""Why the engine does not take a batch (``transports.errors.Refused``)."""
