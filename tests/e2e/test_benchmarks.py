"""The benchmarks work, and no ratio has collapsed; how fast anything is, they tell themselves."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = (
    *("filter", "intake-file", "intake-http-100", "intake-http-10", "intake-relay"),
    *("mapping", "mapping-nested", "mapping-identify"),
    *("delivery", "delivery-cpu", "delivery-updates", "allowance"),
    *("calls", "calls-there", "calls-half", "latency"),
    *("memory-growth", "recovery", "start-help", "start-ready"),
    *("scale-events", "scale-syncs", "scale-workers"),
    *("disk-bytes-500", "disk-bytes-2000", "cpu-per-event"),
    *("many-syncs-memory", "many-syncs-ready", "many-syncs-idle", "many-syncs-handles"),
)


async def _benchmarks(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.timeout(240)
async def test_the_smoke_form_works_and_nothing_has_collapsed() -> None:
    code, out, err = await _benchmarks("--smoke", "--json", "--seed", "3")
    assert code == 0, err
    found = json.loads(out)
    assert found["seed"] == 3
    assert found["versions"].keys() >= {"python", "sqlite", "aiohttp", "msgspec", "anyio"}
    assert found["machine"]["cores"] >= 1
    assert tuple(result["name"] for result in found["results"]) == NAMES
    for result in found["results"]:
        assert result["ratio"] > 0
        assert result["better"] in ("higher", "lower")
        assert result["unit"]


async def test_one_benchmark_can_be_run_and_an_unknown_one_is_named() -> None:
    code, out, _ = await _benchmarks("filter", "--smoke", "--json")
    assert code == 0
    assert [result["name"] for result in json.loads(out)["results"]] == ["filter"]
    code, _, err = await _benchmarks("speed")
    assert (code, "no such benchmark: speed; there is filter" in err) == (2, True)
