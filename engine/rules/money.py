"""Amounts of money in whole minor units, exact, as Intercom takes them.

Intercom wants ``{"amount": …, "currency": …}`` with "a positive integer in cents" (API description
2.16). The minor unit depends on the currency (ISO 4217, table A.1): a yen has none, a dinar has
1,000.
"""

from __future__ import annotations

import decimal
from typing import Any, Final

from amplitude_intercom.engine.rules.numerals import DECIMAL, MAX_WHOLE

_BY_DIGITS: Final = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: (
        "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP"
        " BYN BZD CAD CDF CHE CHF CHW CNY COP COU CRC CUC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR"
        " FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HRK HTG HUF IDR ILS INR IRR JMD KES KGS KHR"
        " KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR"
        " MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK"
        " SGD SHP SLE SLL SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN"
        " UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG ZWL"
    ),
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
MINOR_DIGITS: Final = {code: n for n, codes in _BY_DIGITS.items() for code in codes.split()}
"""Decimal digits of each currency's minor unit (ISO 4217, table A.1, and lately withdrawn ones)."""


def is_exact(value: Any, amount: dict[str, Any]) -> bool:
    """Return whether ``amount``, as ``money`` made it of ``value``, was not rounded."""
    digits = MINOR_DIGITS[amount["currency"].upper()]
    return decimal.Decimal(str(value)) == decimal.Decimal(amount["amount"]).scaleb(-digits)


def money(value: Any, currency: Any) -> dict[str, Any] | None:
    """Return the amount in the currency's minor unit; None without a valid amount and currency.

    ``19.99`` and ``USD`` give 1999 of ``usd``; halves round to even. The decimal digits of a float
    count, not the binary fraction next to them. Intercom accepts no negative amount.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    code = currency.strip().upper() if isinstance(currency, str) else ""
    digits = MINOR_DIGITS.get(code)
    if digits is None:
        return None
    if isinstance(value, str) and not DECIMAL.fullmatch(value):
        return None
    try:
        # One rounding: to scale first would already round to the context's 28 digits.
        amount = decimal.Decimal(str(value)).quantize(decimal.Decimal(1).scaleb(-digits))
        minor = int(amount.scaleb(digits))
    except (decimal.DecimalException, ValueError, OverflowError):
        return None  # not a finite number, or one beyond the context's digits
    return {"amount": minor, "currency": code.lower()} if 0 <= minor < MAX_WHOLE else None
