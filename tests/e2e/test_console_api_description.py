"""The description of the console's API is of its routes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import jsonschema

from support.console import Console, bury, console


async def test_answers_are_as_described(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 2)
        description = await api.get("/openapi.json")
        schemas = {"components": description["components"]}
        checked = 0
        for path, methods in description["paths"].items():
            if "get" not in methods or "{" in path.replace("{sync}", ""):
                continue
            answer = await api.get(path.removeprefix("/api/v1").replace("{sync}", "e2e"))
            content = methods["get"]["responses"]["200"]["content"]["application/json"]
            jsonschema.validate(answer, {**content["schema"], **schemas})
            checked += 1
        assert checked == 17


async def test_a_change_says_its_body_and_its_version(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        described = (await api.get("/openapi.json"))["paths"]["/api/v1/settings/file"]["put"]
        assert [one["name"] for one in described["parameters"]] == ["If-Match"]
        assert described["requestBody"]["required"]
        assert {"200", "403", "409", "412", "415", "422", "428"} <= described["responses"].keys()


CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


async def fuzzed(api: Console, folder: Path, *more: str) -> bytes:
    """Ask the API by its own description; return what the fuzzer says."""
    fuzzer = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("st")),
        *("run", f"{api.url}/api/v1/openapi.json", "--phases", "coverage,fuzzing"),
        *("--max-examples", "15", "--seed", "1", "--no-color", "--checks", ",".join(CHECKS)),
        *more,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await fuzzer.communicate()
    assert fuzzer.returncode == 0, said.decode()[-5_000:]
    return said


async def test_a_schema_fuzzer_finds_no_violation(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 3)
        described = (await api.get("/openapi.json"))["paths"].values()
        said = await fuzzed(api, tmp_path)
    assert f"Tested: {sum(map(len, described))}".encode() in said


async def test_signing_in_and_the_audit_are_as_described_where_a_token_is_set(
    tmp_path: Path,
) -> None:
    top = {"admin": {"listen": "127.0.0.1:0", "token": "may-change", "read_token": "may-look"}}
    async with console(tmp_path, top=top) as api:
        signed = await api.ask(
            "POST", "/session", {"token": "may-look"}, Sec_Fetch_Site="same-origin"
        )
        described = (await api.ask("GET", "/openapi.json", Authorization="Bearer may-look")).json
        content = described["paths"]["/api/v1/session"]["post"]["responses"]["200"]["content"]
        schema = content["application/json"]["schema"]
        jsonschema.validate(signed.json, {**schema, "components": described["components"]})
        assert signed.json == {"who": "read token", "may_change": False}
        only = ("--include-path-regex", "/session$|/audit$")
        said = await fuzzed(api, tmp_path, "-H", "Authorization: Bearer may-change", *only)
        assert b"Tested: 4" in said
