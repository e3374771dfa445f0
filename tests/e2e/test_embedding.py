"""The engine inside of a program that has packages called `engine` and `transports` itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio

import engine, transports
from amplitude_intercom.engine import Engine, from_table

SETTINGS = {
    "data_dir": "data",
    "sync": [
        {
            "name": "production",
            "amplitude_api_keys": ["a-key"],
            "intercom": {"access_token": "a-token", "base_url": "http://127.0.0.1:9"},
            "events": {"select": [{"types": ["Signed Up"]}]},
        }
    ],
}


async def main():
    event = {"event_type": "Signed Up", "user_id": "mira-okafor"}
    async with Engine(from_table(SETTINGS), deliver=False) as streaming:
        receipt = await streaming.submit([event], api_key="a-key")
    print(engine.POWER, transports.WHEELS, receipt.accepted)


asyncio.run(main())
"""


def test_a_program_with_packages_of_these_names_embeds_it(tmp_path: Path) -> None:
    for name, content in (("engine", "POWER = 90"), ("transports", "WHEELS = 4")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(content)
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("90 4 1\n", "", 0)
