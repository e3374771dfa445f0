"""Expressions find what Prometheus' documentation says they find."""

from __future__ import annotations

import pytest

from support.promql import TARGET, Found, Scrapes, labels_of, parse

AT_S = 600.0


def scrapes() -> Scrapes:
    """Return ten minutes of scrapes: ``old`` goes, ``new`` comes, the counter starts anew."""
    found = Scrapes()
    for n in range(11):
        lines = [f'waiting{{sync="a"}} {n}', f'waiting{{sync="b"}} {10 - n}', 'limit{sync="a"} 5']
        lines.append(f"calls_total {n % 6 * 10}")
        lines.append('kept{reason="old"} 1' if n < 8 else 'kept{reason="new"} 2')
        found.add(n * 60.0, "\n".join(lines) + "\n")
    return found


def plain(found: Found) -> object:
    """Return a result without the labels that every series has."""
    if isinstance(found, float):
        return found
    shared = labels_of(TARGET)
    return {" ".join(sorted(v for _, v in key - shared)): value for key, value in found.items()}


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("1 + 2 * 3e0", 7.0),
        ("(1 + 2) * 3 - 4 / 2", 7.0),
        ("waiting", {"a": 10.0, "b": 0.0}),
        ('waiting{sync="a"}', {"a": 10.0}),
        ('waiting{sync!="a",sync=~"a|b"}', {"b": 0.0}),
        ("waiting offset 4m", {"a": 6.0, "b": 4.0}),
        ("waiting - waiting offset 4m", {"a": 4.0, "b": -4.0}),
        ("waiting > 5", {"a": 10.0}),
        ("5 < waiting", {"a": 10.0}),
        ("waiting > limit", {"a": 10.0}),
        ("waiting / limit", {"a": 2.0}),
        ("waiting and limit", {"a": 10.0}),
        ("waiting unless limit", {"b": 0.0}),
        ("limit or waiting", {"a": 5.0, "b": 0.0}),
        ("limit or on () waiting", {"a": 5.0}),
        ("waiting and on (job, instance) up", {"a": 10.0, "b": 0.0}),
        ("waiting or limit unless limit and calls_total", {"a": 10.0, "b": 0.0}),
        ("kept", {"new": 2.0}),
        ("kept unless kept offset 5m", {"new": 2.0}),
        ("max_over_time(kept[10m])", {"old": 1.0, "new": 2.0}),
        ('min_over_time(waiting{sync="a"}[3m])', {"a": 8.0}),
        ("sum(waiting)", {"": 10.0}),
        ("sum by (sync) (waiting)", {"a": 10.0, "b": 0.0}),
        ("max(waiting)", {"": 10.0}),
        ("increase(calls_total[4m])", {"": 30.0}),
        ("increase(calls_total[10m])", {"": 40.0 + 0.0 + 40.0}),
        ('predict_linear(waiting{sync="b"}[5m], 2 * 60)', {"b": -2.0}),
        ("absent(nothing)", {"": 1.0}),
        ("absent(limit)", {}),
        ("up", {"": 1.0}),
    ],
)
def test_an_expression_finds_what_it_means(expression: str, result: object) -> None:
    assert plain(scrapes().evaluate(parse(expression), AT_S)) == pytest.approx(result)


def test_a_target_without_an_answer_is_down_and_has_no_series() -> None:
    found = scrapes()
    found.add(660.0, None)
    assert plain(found.evaluate(parse("up == 0"), 660.0)) == {"": 0.0}
    assert found.evaluate(parse("waiting"), 660.0) == {}
    assert found.evaluate(parse("up"), 660.0 + 300.0) == {}


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "waiting >",
        "rate(waiting)",
        "(waiting",
        "waiting)",
        "waiting{sync=a}",
        "a ~ b",
        "a by b",
    ],
)
def test_a_text_that_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(AssertionError):
        scrapes().evaluate(parse(expression), AT_S)


def test_a_function_that_is_not_known_is_refused() -> None:
    with pytest.raises(KeyError):
        scrapes().evaluate(parse("quantile_over_time(waiting[5m])"), AT_S)
