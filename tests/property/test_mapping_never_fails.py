"""The mapper takes whatever JSON a client can send, and gives what Intercom takes.

What Intercom takes is written down apart from the engine, in ``support.intercom_rules``.
"""

from __future__ import annotations

import decimal
import json
from collections.abc import Collection
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from amplitude_intercom.engine.envelope import Identity, Kind, Record
from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.engine.rules.bodies import contact_body, creation_body, event_body
from amplitude_intercom.engine.rules.contacts import AnyAttribute
from amplitude_intercom.engine.rules.money import money
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.texts import fit_key, fit_name
from amplitude_intercom.engine.rules.user_properties import apply
from amplitude_intercom.engine.rules.verdicts import Drop, Keep, Reject
from support.events import (
    ATTRIBUTES,
    KNOWN,
    RECORDS,
    SENT_RECORDS,
    STYLES,
    USER_PROPERTIES,
    rules,
)
from support.intercom_rules import faults_of_contact, faults_of_event

QUICK = settings(max_examples=500, deadline=None)
LIMIT = 5
BY_STYLE = [
    rules(field, style, limit=LIMIT) for field in ("external_id", "email") for style in STYLES
]
RULES = st.sampled_from(BY_STYLE)


class Types:
    """The attributes of a workspace."""

    def type_of(self, name: str) -> str | None:
        return ATTRIBUTES.get(name)

    def options_of(self, name: str) -> Collection[str]:
        return ()


@QUICK
@given(st.integers(0, len(BY_STYLE) - 1), RECORDS)
def test_a_record_is_planned_or_gets_a_verdict_and_the_same_one_again(
    which: int, record: Record
) -> None:
    planned, again = BY_STYLE[which].plan(record), BY_STYLE[which].plan(record)
    assert isinstance(planned, Keep | Drop | Reject)
    assert again == planned
    if isinstance(planned, Keep) and isinstance(again, Keep) and planned.value.event:
        assert again.value.event is not None
        assert event_body(again.value.event) == event_body(planned.value.event)


@QUICK
@given(RULES, SENT_RECORDS)
def test_an_event_s_body_follows_intercoms_rules(mapping: SyncRules, record: Record) -> None:
    verdict = mapping.plan(record)
    assert isinstance(verdict, Keep)
    planned = verdict.value
    assert planned.event is not None
    body = event_body(planned.event)
    assert faults_of_event(body, kept=LIMIT, now_s=record.accepted_at_ms // 1000) == []
    assert {adjustment.reason for adjustment in planned.adjustments} <= set(AdjustmentReason)


@QUICK
@given(RULES, KNOWN, USER_PROPERTIES, st.booleans())
def test_a_contact_s_body_follows_intercoms_rules(
    mapping: SyncRules, state: dict[str, Any], properties: dict[str, Any], known: bool
) -> None:
    event = {"event_type": "$identify", "user_properties": properties}
    raw = json.dumps(event).encode()
    verdict = mapping.plan(Record(1, Kind.IDENTIFY, "a@example.com", 0, raw))
    assert isinstance(verdict, Keep)
    contact = verdict.value.contact
    assert contact is not None
    new, _ = apply(contact.operations, state)
    types = Types() if known else AnyAttribute()
    fields, adjustments = mapping.contacts.contact_fields(new, types)
    assert faults_of_contact(contact_body(fields), ATTRIBUTES if known else None) == []
    assert {adjustment.reason for adjustment in adjustments} <= set(AdjustmentReason)
    written = json.loads(contact_body(fields))
    created = json.loads(creation_body(Identity("external_id", "user-1"), fields))
    assert created == {"role": "user", "external_id": "user-1"} | written
    assert mapping.contacts.contact_fields(new, types) == (fields, adjustments)


@given(st.text(max_size=300))
def test_names_and_keys_that_were_fitted_fit(text: str) -> None:
    for fit in (fit_key, fit_name):
        assert fit(fit(text)) == fit(text)


# ISO 4217, table A.1 (2024): the digits of the minor unit, where they are not two.
OTHER_DIGITS = {
    **dict.fromkeys(
        "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split(), 0
    ),
    **dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3),
    **dict.fromkeys(["CLF", "UYW"], 4),
}
ISO_4217 = (
    "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN"
    " BZD CAD CDF CHE CHF CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR"
    " FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY"
    " KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU"
    " MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON"
    " RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP"
    " TRY TTD TWD TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAF XCD XOF XPF YER ZAR"
    " ZMW ZWG"
).split()
AMOUNTS = (
    st.integers(0, 10**7)
    | st.floats(0, 10**7)
    | st.decimals(0, 10**7, places=40).map(str)
    | st.decimals(0, 10**7, places=4).map(float)
)


@settings(max_examples=1_000, deadline=None)
@given(AMOUNTS, st.sampled_from(ISO_4217), st.booleans())
def test_money_is_exact_in_the_minor_unit_of_every_currency(
    amount: float | str, currency: str, lower: bool
) -> None:
    with decimal.localcontext(decimal.Context(prec=500)):
        scaled = decimal.Decimal(str(amount)) * 10 ** OTHER_DIGITS.get(currency, 2)
        exact = scaled.to_integral_value(decimal.ROUND_HALF_EVEN)
    written = currency.lower() if lower else currency
    assert money(amount, written) == {"amount": int(exact), "currency": currency.lower()}
