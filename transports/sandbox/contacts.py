"""The contacts of a local Intercom: values, their form in answers, and the store with its index."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from amplitude_intercom.transports.sandbox.refusals import Json, Refusal, invalid, not_found

MAX_PAGE: Final = 150
MAX_HOPS: Final = 3  # of merges that a 410's ``Link`` resolves (API description)


def conflict(contact: Contact) -> Refusal:
    """Return the 409 that names a contact (reference "Create a contact"; recordings)."""
    which = "A" if contact.state == "live" else "An archived"
    text = f"{which} contact matching those details already exists with id={contact.id}"
    return Refusal(409, "conflict", text)


class Contact(msgspec.Struct, frozen=True):
    """A contact as stored; ``email`` is an empty string where there is none (recordings)."""

    id: str
    role: str = "user"
    external_id: str | None = None
    email: str = ""
    phone: str | None = None
    name: str | None = None
    avatar: str | None = None
    owner_id: str | None = None
    unsubscribed_from_emails: bool = False
    signed_up_at: int | None = None
    last_seen_at: int | None = None
    created_at: int = 0
    updated_at: int = 0
    custom_attributes: Mapping[str, Any] = {}
    state: Literal["live", "archived", "deleted", "merged"] = "live"
    merged_into: str = ""

    @property
    def email_domain(self) -> str:
        """The part behind the ``@``."""
        return self.email.partition("@")[2]


# Contacts as returned

_NEVER_SET: Final = dict.fromkeys(
    "last_replied_at last_contacted_at last_email_opened_at last_email_clicked_at "
    "language_override browser browser_version browser_language os android_app_name "
    "android_app_version "
    "android_device android_os_version android_sdk_version android_last_seen_at ios_app_name "
    "ios_app_version ios_device ios_os_version ios_sdk_version ios_last_seen_at utm_campaign "
    "utm_content utm_medium utm_source utm_term referrer enabled_push_messaging".split()
)
LOCATION_FIELDS: Final = ("country", "region", "city", "country_code", "continent_code")
_CONSTANT: Final[Json] = {
    "type": "contact",
    "has_hard_bounced": False,
    "marked_email_as_spam": False,
    "social_profiles": {"type": "list", "data": []},
    "location": {"type": "location", **dict.fromkeys(LOCATION_FIELDS)},
    **_NEVER_SET,
}
_COPIED: Final = (
    "id role external_id email email_domain phone name owner_id "
    "unsubscribed_from_emails signed_up_at last_seen_at created_at updated_at custom_attributes"
).split()
_LISTS: Final = {
    "tags": "tags",
    "notes": "notes",
    "companies": "companies",
    "opted_in_subscription_types": "subscriptions",
    "opted_out_subscription_types": "subscriptions",
}


def render_contact(contact: Contact, workspace_id: str) -> Json:
    """Return a contact as the API shows it (recordings; API description's examples)."""
    shown = {
        **_CONSTANT,
        "workspace_id": workspace_id,
        **{field: getattr(contact, field) for field in _COPIED},
    }
    avatar = contact.avatar
    shown["avatar"] = None if avatar is None else {"type": "avatar", "image_url": avatar}
    for field, page in _LISTS.items():
        url = f"/contacts/{contact.id}/{page}"
        shown[field] = {"type": "list", "data": [], "url": url, "total_count": 0, "has_more": False}
    return shown


def _render_indexed(contact: Contact, workspace_id: str) -> Json:
    """Return a contact as search and list show it: no e-mail is null there (recordings)."""
    return {**render_contact(contact, workspace_id), "email": contact.email or None}


def page_of(found: Sequence[Contact], per_page: object, cursor: object, workspace_id: str) -> Json:
    """Return one page of contacts; the cursor is the place of its first one.

    Raises:
        Refusal: the page's size or the cursor is not one.
    """
    if type(per_page) is not int or not 1 <= per_page <= MAX_PAGE:
        raise invalid("per_page is invalid")
    if not isinstance(cursor, str) or not cursor.isdecimal():
        raise invalid("starting_after is invalid")
    start, total = int(cursor), len(found)
    pages: Json = {"type": "pages", "page": start // per_page + 1, "per_page": per_page}
    pages["total_pages"] = math.ceil(total / per_page)
    if start + per_page < total:
        pages["next"] = {"per_page": per_page, "starting_after": str(start + per_page)}
    data = [_render_indexed(contact, workspace_id) for contact in found[start : start + per_page]]
    return {"type": "list", "data": data, "total_count": total, "pages": pages}


class Directory:
    """The contacts: a store that answers at once and an index, for search and list, that lags."""

    def __init__(self, lag_s: float) -> None:
        self.by_id: dict[str, Contact] = {}
        self._by_external_id: dict[str, dict[str, None]] = {}
        self._by_email: dict[str, dict[str, None]] = {}
        self._lag_s = lag_s
        self._index: dict[str, Contact] = {}
        self._unindexed: deque[tuple[float, Contact]] = deque()

    def put(self, contact: Contact, at_s: float) -> Contact:
        """Store a contact, new or changed, and return it."""
        old = self.by_id.get(contact.id, contact)
        self.by_id[contact.id] = contact
        self._file(self._by_external_id, contact.id, old.external_id, contact.external_id)
        self._file(self._by_email, contact.id, old.email.lower(), contact.email.lower())
        self._unindexed.append((at_s + self._lag_s, contact))
        self._catch_up(at_s)
        return contact

    @staticmethod
    def _file(
        index: dict[str, dict[str, None]], contact_id: str, old: str | None, new: str | None
    ) -> None:
        if old and old != new:
            index[old].pop(contact_id, None)
        if new:
            index.setdefault(new, {})[contact_id] = None

    def _catch_up(self, at_s: float) -> None:
        while self._unindexed and self._unindexed[0][0] <= at_s:
            self.index(self._unindexed.popleft()[1])

    def index(self, contact: Contact) -> None:
        """Let search and list see a contact as it is here."""
        self._index.pop(contact.id, None)
        if contact.state == "live":
            self._index[contact.id] = contact

    def indexed(self, at_s: float) -> Iterable[Contact]:
        """Return the live contacts as search and list see them at an instant."""
        self._catch_up(at_s)
        return self._index.values()

    def users_with_external_id(self, external_id: str) -> list[Contact]:
        """Return the users, in any state; a lead's UUID finds no user."""
        return self._users(self._by_external_id.get(external_id, ()))

    def users_with_email(self, email: str) -> list[Contact]:
        """Return the users, in any state; case does not count."""
        return self._users(self._by_email.get(email.lower(), ()))

    def _users(self, ids: Iterable[str]) -> list[Contact]:
        return [found for each in ids if (found := self.by_id[each]).role == "user"]

    def get(self, contact_id: object) -> Contact:
        """Return a live contact.

        Raises:
            Refusal: 410 with the heir's path when merged away, 404 for every other absence.
        """
        contact = self.by_id.get(contact_id) if isinstance(contact_id, str) else None
        if contact is not None and contact.state == "merged":
            raise self._merged(contact)
        if contact is None or contact.state != "live":
            raise not_found()
        return contact

    def _merged(self, contact: Contact) -> Refusal:
        for _ in range(MAX_HOPS):
            if contact.state == "merged":
                contact = self.by_id[contact.merged_into]
        text = "This contact has been merged. See the 'Link' header for the canonical contact."
        return Refusal(410, "contact_merged", text, f"/contacts/{contact.id}")
