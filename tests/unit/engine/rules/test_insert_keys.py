"""By which key an event is known again."""

from __future__ import annotations

from typing import Any

import pytest

from amplitude_intercom.engine.rules.insert_keys import dead_key, insert_key, project_hash
from amplitude_intercom.transports.amplitude import Head
from amplitude_intercom.transports.amplitude_heads import decode_head
from support import reference


def key_of(project: str = "p", *, derive: bool = False, **head: Any) -> bytes | None:
    return insert_key(Head(**head), b"raw", project_hash(project), derive=derive)


def test_an_event_is_known_again_by_its_insert_id_on_its_device() -> None:
    assert key_of(insert_id="i", device_id="d") == key_of(export_insert_id="i", device_id="d")
    assert key_of(insert_id="i", device_id="d") != key_of(insert_id="i", device_id="e")
    assert key_of(insert_id="i", device_id="d", user_id="ann") == key_of(
        insert_id="i", device_id="d", user_id="bob"
    )


def test_an_event_without_device_id_is_known_again_as_its_users() -> None:
    assert key_of(insert_id="i", user_id="alice") != key_of(insert_id="i", user_id="bobby")
    assert key_of(insert_id="i", user_id="alice") == key_of(insert_id="i", user_id="alice")
    assert key_of(insert_id="i", user_id="alice") != key_of(insert_id="i", device_id="alice")


def test_an_event_is_another_one_in_another_project() -> None:
    assert key_of("p", insert_id="i", device_id="d") != key_of("q", insert_id="i", device_id="d")
    assert key_of("p", derive=True) != key_of("q", derive=True)


def test_no_part_of_a_key_can_pass_for_another() -> None:
    parts = [
        ("p", "d", "ui"),
        ("p", "du", "i"),
        ("pd", "", "ui"),
        ("p", "d\0u", "i"),
        ("p", "", "dui"),
    ]
    keys = [key_of(project, device_id=d, insert_id=i) for project, d, i in parts]
    assert len(set(keys)) == len(parts)
    of_users = [key_of(project, user_id=user, insert_id=i) for project, user, i in parts]
    assert len({*keys, *of_users}) == 2 * len(parts) - 2  # two have neither device nor user


@pytest.mark.parametrize("time", [{}, {"event_time": "2024-05-14 09:00:00"}])
def test_an_event_without_insert_id_is_known_again_by_its_uuid(time: dict[str, Any]) -> None:
    assert key_of(uuid="u", device_id="d", **time) == key_of(insert_id="u", device_id="d")
    both = key_of(uuid="u", export_insert_id="i", device_id="d", **time)
    assert both == key_of(insert_id="i", device_id="d")


def test_an_event_without_any_id_is_known_by_its_content_where_its_source_may_repeat() -> None:
    assert key_of() is None
    same = insert_key(Head(), b"raw", project_hash("p"), derive=True)
    assert same == insert_key(Head(), b"raw", project_hash("p"), derive=True)
    assert same != insert_key(Head(), b"other", project_hash("p"), derive=True)


def test_a_dead_letter_is_not_the_event_that_the_same_bytes_are_under_other_settings() -> None:
    """Its letter may be gone by then, and it would be lost."""
    raw, project = b'{"event_type": "Bought", "user_id": "user-1"}', project_hash("p")
    head = Head(event_type="Bought")
    assert dead_key(raw, project) != insert_key(head, raw, project, derive=True)


def test_only_the_same_event_of_the_same_device_is_known_again() -> None:
    rows = reference.export_rows()

    def key(number: int) -> bytes | None:
        head = decode_head(rows[number])
        assert isinstance(head, Head)
        return insert_key(head, rows[number], project_hash(""), derive=True)

    assert key(16) == key(17)
    assert len({key(n) for n in (6, 7, 8, 16, 18, 39, 40)}) == 7
