"""Insert keys: equal for two deliveries of one event, so that the second is a duplicate."""

from __future__ import annotations

import hashlib

from amplitude_intercom.transports.amplitude import Head


def project_hash(api_key: str) -> hashlib.blake2b:
    """Return the hash state with which every key of a project's events begins."""
    text = f"{len(api_key)} {api_key} "
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)


def insert_key(head: Head, raw: bytes, project: hashlib.blake2b, *, derive: bool) -> bytes | None:
    """Return the key of an event, from its project, device id and insert id; None without one.

    The user id replaces a missing device id, as at Amplitude (HTTP V2 page). With ``derive`` the
    content replaces a missing insert id; without it, two equal requests are two events.
    """
    unique, device = head.unique_id, head.device_id
    if not unique:
        return _key(project, b"content ", raw) if derive else None
    if device:
        text = f"device {len(device)} {device}{unique}"
    else:
        user = head.user_id or ""
        text = f"user {len(user)} {user}{unique}"
    return _key(project, text.encode("utf-8", "surrogatepass"))


def dead_key(content: bytes, project: hashlib.blake2b) -> bytes:
    """Return the key of a dead letter, from all of its content.

    So the corrected event, with the same insert id, is no duplicate. ``content`` is the event or a
    digest of it.
    """
    return _key(project, b"dead ", content)


def _key(project: hashlib.blake2b, text: bytes, content: bytes = b"") -> bytes:
    key = project.copy()
    key.update(text)
    if content:
        key.update(content)
    return key.digest()
