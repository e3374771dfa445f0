"""Amounts of money, exact in the minor unit."""

from __future__ import annotations

from typing import Any

import pytest

from amplitude_intercom.engine.rules.money import MINOR_DIGITS, money


@pytest.mark.parametrize(
    ("value", "currency", "amount"),
    [
        (19.99, "USD", 1999),
        (0.1, "usd", 10),
        (1200, "JPY", 1200),
        (1.2345, "KWD", 1234),
        (1.5, "CLF", 15000),
        ("449.50", "EUR", 44950),
        (0.125, "USD", 12),
        (0.135, "USD", 14),
        ("0.12500000000000000000000000000000001", "USD", 13),
        (0, "USD", 0),
        (" +19.99\n", "USD", 1999),
        ("1.", "USD", 100),
        (".5", "USD", 50),
        ("1E1", "USD", 1000),
    ],
)
def test_an_amount_is_exact_in_the_minor_unit(value: Any, currency: str, amount: int) -> None:
    assert money(value, currency) == {"amount": amount, "currency": currency.lower()}


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, [], -1, 10**20),
        *("nan", "sNaN", "inf", "Infinity", "", "1e999999", "-0.5", ".", "e5", "1e5e5", "1..5"),
        *("1_9.9_9", "1_000", "\uff11\uff19.9", "\u0661", "1 9", "1,5", "0x10", "\u00a019"),
    ],
)
def test_an_invalid_amount_is_no_money(value: Any) -> None:
    assert money(value, "USD") is None


@pytest.mark.parametrize("currency", [None, "", "US", "EURO", "12E", "ßßß", "ABC", "XAU", 5])
def test_an_invalid_currency_makes_no_money(currency: Any) -> None:
    assert money(1, currency) is None


def test_every_currency_is_there_once_in_capitals() -> None:
    assert len(MINOR_DIGITS) > 160
    assert all(len(code) == 3 and code.isascii() and code.isupper() for code in MINOR_DIGITS)
