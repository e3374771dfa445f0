"""The description that the HTTP source serves, held against it by a schema fuzzer."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from support import process

NOWHERE = "http://127.0.0.1:9"
HOOKS = """
import json

import schemathesis
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
USERS = TEXT.map("user-{}".format)
OBJECTS = st.dictionaries(TEXT, st.none() | st.integers() | TEXT, max_size=3)
KINDS = {
    "Event": st.fixed_dictionaries(
        {"event_type": TEXT, "user_id": USERS}, optional={"event_properties": OBJECTS}
    ),
    "Identification": st.fixed_dictionaries({"user_id": USERS, "user_properties": OBJECTS}),
    "GroupIdentification": st.fixed_dictionaries(
        {}, optional={"group_type": TEXT, "group_value": TEXT, "group_properties": OBJECTS}
    ),
}
for name, kind in KINDS.items():  # JSON inside a form's field: the fuzzer cannot look into it
    one_or_more = kind | st.lists(kind, min_size=1, max_size=3)
    schemathesis.openapi.format(f"json-{name}", one_or_more.map(json.dumps))


@schemathesis.hook
def filter_body(context, body):
    # 5.0 is an integer to a schema, and no id: whoever sends it has lost digits before
    events = body.get("events") if isinstance(body, dict) else None
    events = [e for e in events if isinstance(e, dict)] if isinstance(events, list) else []
    return not any(isinstance(v, float) for e in events for k, v in e.items() if k.endswith("_id"))
"""


async def test_a_schema_fuzzer_finds_no_violation(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS, encoding="utf-8")
    config = process.settings(tmp_path, NOWHERE, amplitude_api_keys=["*"])
    async with process.daemon(config) as daemon:
        fuzzer = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("st")),
            *("run", f"{daemon.http}/openapi.json", "--phases", "coverage,fuzzing"),
            *("--max-examples", "100", "--seed", "1", "--no-color"),
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await fuzzer.communicate()
        faults = [entry for entry in daemon.log if entry["level"] == "error"]
    assert fuzzer.returncode == 0, said.decode()[-5_000:]
    assert b"12 selected / 12 total" in said
    assert faults == []
