"""What a sandbox's workspace holds, and the rules for reading and writing it: no calls, no clock.

- Contacts are immutable values: an update stores a new one, so a lagging index holds old ones.
- The *store* answers at once; the *index*, for search and list, sees a contact some time later.

Facts come from the project's reference on Intercom; "(recordings)" marks what was seen on the wire
in 422 real exchanges, "(API description)" Intercom's own, "(a choice)" what nobody has documented.
"""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Literal

import msgspec

MAX_STRING: Final = 255  # of a metadata value and of a custom attribute (help articles)
MAX_ATTRIBUTES: Final = 250  # custom ones of a workspace (help article on custom attributes)
MAX_FILTERS: Final = 15  # of one AND or OR group (API description, search)
MAX_PAGE: Final = 150
MAX_HOPS: Final = 3  # of merges that a 410's ``Link`` resolves (API description)

ILLEGAL_IN_KEYS: Final = frozenset(".$`~!@#%^&*'{}|\\\"\0")
"""Not allowed in names of metadata keys and custom attributes (help article on events)."""

Json = dict[str, Any]


class Refusal(Exception):
    """A call is turned down; ``link`` is the path of a merged contact's heir."""

    def __init__(self, status: int, code: str, message: str, link: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.link = link


def invalid(message: str) -> Refusal:
    """Return the usual 400."""
    return Refusal(400, "parameter_invalid", message)


def not_found(message: str = "User Not Found") -> Refusal:
    """Return the usual 404."""
    return Refusal(404, "not_found", message)


def conflict(contact: Contact) -> Refusal:
    """Return the 409 that names a contact (reference "Create a contact"; recordings)."""
    which = "A" if contact.state == "live" else "An archived"
    text = f"{which} contact matching those details already exists with id={contact.id}"
    return Refusal(409, "conflict", text)


def decode_object(body: bytes) -> Json:
    """Return a body's JSON object.

    Raises:
        Refusal: the body is something else.
    """
    try:
        sent = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise invalid("The request body is not valid JSON") from None
    if not isinstance(sent, dict):
        raise invalid("The request body is not a JSON object")
    return sent


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
    workspace_id: str = "sandbox1"

    @property
    def email_domain(self) -> str:
        """What follows the ``@``."""
        return self.email.partition("@")[2]


class StoredEvent(msgspec.Struct, frozen=True):
    """An event that was taken and was not a duplicate; ``metadata`` has the kept keys only."""

    contact_id: str
    name: str
    created_at: int
    metadata: Mapping[str, Any]
    stored_at_s: float = 0.0


# Contacts as returned

_NEVER_SET: Final = dict.fromkeys(
    "last_replied_at last_contacted_at last_email_opened_at last_email_clicked_at "
    "language_override browser browser_version browser_language os android_app_name "
    "android_app_version "
    "android_device android_os_version android_sdk_version android_last_seen_at ios_app_name "
    "ios_app_version ios_device ios_os_version ios_sdk_version ios_last_seen_at utm_campaign "
    "utm_content utm_medium utm_source utm_term referrer enabled_push_messaging".split()
)
_PLACES: Final = ("country", "region", "city", "country_code", "continent_code")
_CONSTANT: Final[Json] = {
    "type": "contact",
    "has_hard_bounced": False,
    "marked_email_as_spam": False,
    "social_profiles": {"type": "list", "data": []},
    "location": {"type": "location", **dict.fromkeys(_PLACES)},
    **_NEVER_SET,
}
_COPIED: Final = (
    "id workspace_id role external_id email email_domain phone name owner_id "
    "unsubscribed_from_emails signed_up_at last_seen_at created_at updated_at custom_attributes"
).split()
_LISTS: Final = {
    "tags": "tags",
    "notes": "notes",
    "companies": "companies",
    "opted_in_subscription_types": "subscriptions",
    "opted_out_subscription_types": "subscriptions",
}


def render_contact(contact: Contact) -> Json:
    """Return a contact as the API shows it (recordings; API description's examples)."""
    shown = {**_CONSTANT, **{field: getattr(contact, field) for field in _COPIED}}
    avatar = contact.avatar
    shown["avatar"] = None if avatar is None else {"type": "avatar", "image_url": avatar}
    for field, page in _LISTS.items():
        url = f"/contacts/{contact.id}/{page}"
        shown[field] = {"type": "list", "data": [], "url": url, "total_count": 0, "has_more": False}
    return shown


def _render_indexed(contact: Contact) -> Json:
    """Return a contact as search and list show it: no e-mail is null there (recordings)."""
    return {**render_contact(contact), "email": contact.email or None}


def page_of(found: Sequence[Contact], per_page: object, cursor: object) -> Json:
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
    data = [_render_indexed(contact) for contact in found[start : start + per_page]]
    return {"type": "list", "data": data, "total_count": total, "pages": pages}


# Searching

_COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "IN": lambda have, wanted: have in wanted,
    "NIN": lambda have, wanted: have not in wanted,
}


def _value_of(contact: Contact, field: str) -> object:
    group, _, name = field.partition(".")
    if group == "custom_attributes":
        return contact.custom_attributes.get(name)
    return getattr(contact, field, None)


def compile_filter(query: object, level: int = 0) -> Callable[[Contact], bool]:
    """Return the test that a search's query asks for (API description, "Search contacts").

    Raises:
        Refusal: an unknown operator, more than two levels or too many filters.
    """
    if not isinstance(query, dict):
        raise invalid("query is invalid")
    if query.get("operator") in ("AND", "OR"):
        return _compile_group(query, level + 1)
    return _compile_comparison(query)


def _compile_group(query: Json, level: int) -> Callable[[Contact], bool]:
    filters = query.get("value")
    if level > 2 or not isinstance(filters, list) or not 1 <= len(filters) <= MAX_FILTERS:
        raise invalid("Too many or too deeply nested filters")
    tests = [compile_filter(each, level) for each in filters]
    join = all if query["operator"] == "AND" else any
    return lambda contact: join(test(contact) for test in tests)


def _compile_comparison(query: Json) -> Callable[[Contact], bool]:
    field, wanted = query.get("field"), query.get("value")
    compare = _COMPARE.get(str(query.get("operator")))
    is_list = isinstance(wanted, list)
    if (
        compare is None
        or not isinstance(field, str)
        or is_list != (query["operator"] in ("IN", "NIN"))
    ):
        raise invalid("query is invalid")
    return lambda contact: compare(_value_of(contact, field), wanted)


# What may be written

_WRITTEN: Final[Mapping[str, tuple[type, ...]]] = {
    "role": (str,),
    "external_id": (str,),
    "email": (str,),
    "phone": (str,),
    "name": (str,),
    "avatar": (str,),
    "owner_id": (str, int),
    "unsubscribed_from_emails": (bool,),
    "signed_up_at": (int,),
    "last_seen_at": (int,),
}
_ROLES: Final = {"user": "user", "lead": "lead", "contact": "user"}  # the last one: recordings


def standard_fields(sent: Json) -> Json:
    """Return the standard fields of a write, checked; those left out stay left out.

    A null ``external_id`` is ignored and a null ``email`` becomes an empty string (recordings).

    Raises:
        Refusal: a value has a wrong type, or ``email_verified`` stands without ``email``.
    """
    fields: Json = {}
    for field, kinds in _WRITTEN.items():
        if field in sent:
            value = sent[field]
            if value is not None and type(value) not in kinds:
                raise invalid(f"{field} is invalid")
            fields[field] = value
    if not fields.get("external_id"):
        fields.pop("external_id", None)
    if "email" in fields:
        fields["email"] = fields["email"] or ""
    if "unsubscribed_from_emails" in fields:
        fields["unsubscribed_from_emails"] = bool(fields["unsubscribed_from_emails"])
    if fields.get("owner_id") is not None:
        fields["owner_id"] = str(fields["owner_id"])
    return _with_role(fields, sent)


def _with_role(fields: Json, sent: Json) -> Json:
    if fields.get("role") is None:
        fields.pop("role", None)
    elif fields["role"] not in _ROLES:
        raise invalid("role is invalid")
    else:
        fields["role"] = _ROLES[fields["role"]]
    if "email_verified" in sent and not fields.get("email"):
        raise invalid("email_verified needs an email")
    return fields


def _is_metadata_value(value: object) -> bool:
    """Return whether a value is a text, a number, a rich link or money (API description).

    Booleans are none of the kinds that are listed; refusing them is a choice.
    """
    if isinstance(value, dict):
        return _is_rich_link(value) or _is_money(value)
    if isinstance(value, str):
        return len(value) <= MAX_STRING
    return value is None or type(value) in (int, float)


def _is_rich_link(value: Json) -> bool:
    return value.keys() == {"url", "value"} and all(
        isinstance(part, str) for part in value.values()
    )


def _is_money(value: Json) -> bool:
    """Return whether this is an amount in cents; zero is let through (a choice)."""
    amount, currency = value.get("amount"), value.get("currency")
    return len(value) == 2 and type(amount) is int and amount >= 0 and isinstance(currency, str)


def check_metadata(sent: object, kept: int) -> Json:
    """Return the first ``kept`` keys of an event's metadata; surplus ones are ignored in silence.

    Raises:
        Refusal: not an object; a nested value that is no rich link and no amount of money
            (intercom-ruby #244); an illegal character in a key, two keys that are equal but for
            case, or a string too long (choices).
    """
    if sent is None:
        return {}
    if not isinstance(sent, dict) or len({key.lower() for key in sent}) < len(sent):
        raise invalid("Invalid metadata")
    for key, value in sent.items():
        if not (ILLEGAL_IN_KEYS.isdisjoint(key) and _is_metadata_value(value)):
            raise invalid("Invalid metadata")
    return dict(islice(sent.items(), kept))


# Custom attributes

_STANDARD: Final = {
    "string": "id role name email phone external_id avatar workspace_id country region city "
    "browser browser_version browser_language language_override os android_app_name "
    "android_sdk_version ios_app_name ios_sdk_version",
    "integer": "owner_id",
    "boolean": "unsubscribed_from_emails marked_email_as_spam has_hard_bounced",
    "date": "created_at updated_at signed_up_at last_seen_at last_contacted_at last_replied_at "
    "last_email_opened_at last_email_clicked_at",
}
_FITS: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "float": (int, float),
    "boolean": (bool,),
    "date": (int,),
}
_ATTRIBUTE_MODELS: Final = {"contact": "people", "company": "company"}


def _attribute(name: str, data_type: str, model: str = "contact", *, custom: bool = True) -> Json:
    place = "location." if name in _PLACES else ""
    return {
        "type": "data_attribute",
        "name": name,
        "full_name": f"custom_attributes.{name}" if custom else f"{place}{name}",
        "label": name if custom else name.replace("_", " ").capitalize(),
        "description": "",
        "data_type": data_type,
        "api_writable": custom or name in _WRITTEN,
        "ui_writable": name in ("name", "email", "phone") and not custom,
        "messenger_writable": False,
        "custom": custom,
        "archived": False,
        "model": model,
    }


def _options_of(sent: Json) -> list[str]:
    options = sent.get("options") or []
    if not isinstance(options, list) or not all(isinstance(each, dict) for each in options):
        raise invalid("options is invalid")
    return [str(each.get("value")) for each in options]


class Attributes:
    """The data attributes of a workspace (reference on custom attributes; API description)."""

    def __init__(self, custom: Mapping[str, str], open_to_all: bool) -> None:
        self.custom: dict[str, Json] = {}
        self._open = open_to_all
        self._standard = [
            _attribute(name, data_type, custom=False)
            for data_type, names in _STANDARD.items()
            for name in names.split()
        ]
        for name, data_type in custom.items():
            self._add(_attribute(name, data_type), 0)

    def _add(self, record: Json, at_s: float) -> Json:
        made = {"id": len(self.custom) + 1, "created_at": int(at_s), "updated_at": int(at_s)}
        return self.custom.setdefault(record["name"], {**record, **made, "admin_id": "1"})

    def listed(self, model: str) -> list[Json]:
        """Return those of a model: the standard ones (contacts only), then the custom ones.

        Raises:
            Refusal: 404 where any attribute is taken: there is no list of all that could be.
        """
        if self._open:
            raise not_found("No list of attributes")
        standard = self._standard if model == "contact" else []
        return standard + [each for each in self.custom.values() if each["model"] == model]

    def create(self, sent: Json, at_s: float) -> Json:
        """Add one and return it.

        Raises:
            Refusal: with the texts of the API description.
        """
        name, model, options = sent.get("name"), sent.get("model"), _options_of(sent)
        data_type = "string" if options else str(sent.get("data_type")).replace("datetime", "date")
        if not isinstance(model, str) or model not in _ATTRIBUTE_MODELS:
            raise invalid("The Data Attribute model field must be either contact or company")
        if data_type not in _FITS or len(options) == 1:
            raise invalid("Data Type isn't an option")
        self._check_name(name, model)
        record = _attribute(str(name), data_type, model)
        if options:
            record["options"] = options
        return self._add(record, at_s)

    def _check_name(self, name: object, model: str) -> None:
        if not isinstance(name, str) or not name or not ILLEGAL_IN_KEYS.isdisjoint(name):
            raise invalid(
                "Your name for this attribute must only contain alphanumeric characters, "
                "currency symbols, and hyphens"
            )
        if name in self.custom:
            have = _ATTRIBUTE_MODELS[self.custom[name]["model"]]
            raise invalid(
                f"You already have '{name}' in your {have} data. To save this as new "
                f"{_ATTRIBUTE_MODELS[model]} data, use a different name."
            )
        if len(self.custom) >= MAX_ATTRIBUTES:
            raise Refusal(400, "custom_data_limit_reached", "Too many custom attributes")

    def check(self, sent: object) -> Json:
        """Return the custom attributes of a write.

        Raises:
            Refusal: one does not exist (the whole write fails, one name an answer), or its value
                is of a wrong type or too long.
        """
        if sent is None:
            return {}
        if not isinstance(sent, dict):
            raise invalid("custom_attributes is invalid")
        for name, value in sent.items():
            if value is not None:
                self._check_value(name, value)
            elif not self._open:
                self._known(name)
        return sent

    def _known(self, name: str) -> Json:
        record = self.custom.get(name)
        if record is None or record["model"] != "contact":
            raise invalid(f"Custom attribute '{name}' does not exist")
        return record

    def _check_value(self, name: str, value: object) -> None:
        fits = (str, int, float, bool) if self._open else _FITS[self._known(name)["data_type"]]
        if type(value) not in fits:
            raise invalid(f"Custom attribute '{name}' is not of type Numeric, String or Boolean")
        if isinstance(value, str) and len(value) > MAX_STRING:
            raise invalid(f"Custom attribute '{name}' is too long")


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
        """Return the users, in any state; a lead's UUID finds nobody."""
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
