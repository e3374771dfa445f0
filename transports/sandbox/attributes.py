"""The data attributes of a local Intercom's workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from amplitude_intercom.transports.sandbox.checks import ILLEGAL_IN_KEYS, MAX_STRING, WRITABLE
from amplitude_intercom.transports.sandbox.contacts import LOCATION_FIELDS
from amplitude_intercom.transports.sandbox.refusals import Json, Refusal, invalid, not_found

MAX_ATTRIBUTES: Final = 250  # custom ones of a workspace (help article on custom attributes)


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
    place = "location." if name in LOCATION_FIELDS else ""
    return {
        "type": "data_attribute",
        "name": name,
        "full_name": f"custom_attributes.{name}" if custom else f"{place}{name}",
        "label": name if custom else name.replace("_", " ").capitalize(),
        "description": "",
        "data_type": data_type,
        "api_writable": custom or name in WRITABLE,
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


class DataAttributes:
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
