"""The settings document in the console's API, at a real port."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from amplitude_intercom.engine import config
from amplitude_intercom.engine.config import MAX_FILE_BYTES
from amplitude_intercom.engine.console.access import API_ROOT
from amplitude_intercom.engine.console.problems import HELP
from amplitude_intercom.engine.document.tables import digest
from amplitude_intercom.engine.errors import SettingsError
from support import process
from support.console import Console, Said, console
from support.process import API_KEY, TOKEN

FILE = "/settings/file"
SYNC = "/syncs/e2e/settings"


async def change(api: Console, method: str, path: str, body: Any = None) -> Said:
    """Change the present version."""
    version = (await api.get(FILE))["version"]
    return await api.ask(method, path, body, If_Match=f'"{version}"')


async def test_nothing_that_is_read_has_a_secret_in_it(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await change(api, "PUT", "/syncs/e2e/secrets/access_token", {"token": "typed-secret-9"})
        versions = await api.pages("/settings/versions?limit=1")
        assert len(versions) == 2
        paths = [f"/settings/versions/{one['id']}" for one in versions]
        for path in ("/settings", FILE, SYNC, "/syncs/e2e", "/status", *paths):
            said = await api.ask("GET", path)
            text = json.dumps(said.json)
            assert said.status == 200
            assert not [one for one in (TOKEN, "typed-secret-9", API_KEY) if one in text], path


async def test_the_etag_is_of_the_bytes_of_the_file(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        version = digest((tmp_path / "settings.toml").read_bytes())
        for path in ("/settings", FILE, SYNC):
            said = await api.ask("GET", path)
            assert (said.headers["ETag"], said.json["version"]) == (f'"{version}"', version)
            assert said.json["can_save"]


async def test_a_saved_text_keeps_its_secrets_and_is_loaded(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        shown = await api.ask("GET", FILE)
        text = (
            shown.json["text"]
            .replace("[[sync]]", "# a comment\n[[sync]]")
            .replace('name = "e2e"', 'name = "e2e"\nenabled = false')
        )
        body = {"text": text, "note": "off for today"}
        said = await api.ask("PUT", FILE, body, If_Match=shown.headers["ETag"])
        assert (said.status, said.json["reloaded"]["changed"]) == (200, ["e2e"])
        assert said.headers["ETag"] == f'"{said.json["version"]}"' != shown.headers["ETag"]
        assert not api.engine.settings.sync[0].enabled
        written = (tmp_path / "settings.toml").read_text(encoding="utf-8")
        assert "# a comment" in written
        assert TOKEN in written
        newest = (await api.get("/settings/versions"))["items"][0]
        assert (newest["who"], newest["note"]) == ("loopback", "off for today")
        assert await api.audited() == [("settings saved", "the file")]


async def test_a_change_of_another_version_is_refused_with_the_present_one(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        shown = await api.ask("GET", FILE)
        body = {"text": shown.json["text"]}
        assert (await api.ask("PUT", FILE, body)).status == 428
        assert (await api.ask("PUT", FILE, body, If_Match="x")).status == 400
        said = await api.ask("PUT", FILE, body, If_Match="*")
        assert (said.status, said.json["detail"]) == (428, "If-Match: `*` names no version")
        path = tmp_path / "settings.toml"
        path.write_text(path.read_text(encoding="utf-8") + "# by hand\n", encoding="utf-8")
        said = await api.ask("PUT", FILE, body, If_Match=shown.headers["ETag"])
        present = f'"{digest(path.read_bytes())}"'
        assert (said.status, said.headers["ETag"], said.json["etag"]) == (412, present, present)
        assert await api.audited() == []


async def test_of_changes_of_one_version_at_the_same_time_one_is_saved(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        tag = (await api.ask("GET", FILE)).headers["ETag"]
        asked = [
            api.ask("PATCH", "/syncs/e2e", {"enabled": False, "note": str(n)}, If_Match=tag)
            for n in range(6)
        ]
        statuses = sorted(said.status for said in await asyncio.gather(*asked))
        assert statuses == [200, *[412] * 5]


async def test_a_sync_is_disabled_changed_added_and_removed(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        said = await change(api, "PATCH", "/syncs/e2e", {"enabled": False})
        assert (said.status, api.engine.settings.sync[0].enabled) == (200, False)
        form = (await api.get(SYNC))["settings"]
        form["enabled"] = True
        form["users"]["properties"] = ["plan"]
        said = await change(api, "PUT", SYNC, {"settings": form})
        assert (said.status, said.json["reloaded"]["changed"]) == (200, ["e2e"])
        assert api.engine.settings.sync[0].users.properties == ["plan"]
        new = {"name": "other", "intercom": {"access_token": "typed-secret-9"}, "enabled": False}
        said = await change(api, "POST", "/syncs", {"settings": new})
        assert (said.status, said.headers["Location"]) == (201, "/api/v1/syncs/other")
        assert said.json["reloaded"]["added"] == ["other"]
        assert "typed-secret-9" not in (tmp_path / "settings.toml").read_text(encoding="utf-8")
        assert (await api.get("/syncs/other"))["enabled"] is False
        said = await change(api, "DELETE", "/syncs/other")
        assert (said.status, said.json["reloaded"]["removed"]) == (200, ["other"])
        assert (await api.ask("GET", "/syncs/other")).status == 404


async def test_a_version_comes_back(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await change(api, "PATCH", "/syncs/e2e", {"enabled": False})
        oldest = (await api.pages("/settings/versions"))[-1]
        path = f"/settings/versions/{oldest['id']}/restore"
        said = await change(api, "POST", path, {"note": "back"})
        assert (said.status, said.json["version"]) == (200, oldest["version"])
        assert api.engine.settings.sync[0].enabled
        for name in ("none", "..", "..%2f..%2fsettings", "%00", "a" * 5_000):
            said = await change(api, "POST", f"/settings/versions/{name}/restore", {})
            assert said.status == 404, name
            assert (await api.ask("GET", f"/settings/versions/{name}")).status == 404, name


async def test_a_change_that_would_give_a_secret_away_is_refused(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        form = (await api.get(SYNC))["settings"]
        form["intercom"]["base_url"] = "https://thief.example.com"
        said = await change(api, "PUT", SYNC, {"settings": form})
        assert (said.status, said.pointers) == (422, ["/sync/0/intercom/access_token"])
        said = await change(
            api, "PUT", "/syncs/e2e/secrets/access_token", {"token": "file:/etc/passwd"}
        )
        assert said.status == 422
        for body in ({"typed-secret-9": 1}, {"token": 1, "x": "typed-secret-9"}, "typed-secret-9"):
            said = await change(api, "PUT", "/syncs/e2e/secrets/access_token", body)
            assert said.status == 422
            assert "typed-secret-9" not in json.dumps(said.json), "a secret in the wrong place"
        text = (await api.get(FILE))["text"]
        said = await change(api, "PUT", FILE, {"text": f"{text}\n[admin.x]\n"})
        assert said.status == 422
        assert await api.audited() == []


async def test_a_preview_tells_the_change_and_changes_nothing(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        before = (tmp_path / "settings.toml").read_bytes()
        form = (await api.get(SYNC))["settings"]
        form["amplitude_api_keys"] = []
        said = await api.ask("POST", "/settings/preview", {"sync": "e2e", "settings": form})
        assert (said.status, said.json["effects"]["changed"]) == (200, ["e2e"])
        assert "amplitude_api_keys = []" in said.json["diff"]
        found = {(one["level"], one["key"]) for one in said.json["findings"]}
        assert {
            ("error", "http"),
            ("warning", "sync[0].intercom.access_token"),
            ("warning", "sync[0].events.select"),
        } <= found
        assert API_KEY not in json.dumps(said.json)
        assert await api.audited() == [], "a preview is no change"
        text = (await api.get(FILE))["text"]
        other = text.replace("[http]", "[spool]\nmax_bytes = 2000000\n\n[http]")
        said = await api.ask("POST", "/settings/preview", {"text": other})
        assert (said.status, said.json["effects"]["needs_restart"]) == (200, ["spool"])
        said = await api.ask(
            "POST", "/settings/preview", {"text": text.replace("127.0.0.1:0", "127.0.0.1:1")}
        )
        assert said.status == 422
        new = {"name": "other", "intercom": {"access_token": "typed-secret-9"}}
        said = await api.ask("POST", "/settings/preview", {"settings": new})
        assert (said.status, said.json["effects"]["added"]) == (200, ["other"])
        assert "typed-secret-9" not in json.dumps(said.json)
        open_ones = [one["key"] for one in said.json["findings"] if "spelled out" in one["text"]]
        assert open_ones == ["sync[0].intercom.access_token"], "a typed one goes into a file"
        for body in ({}, {"text": "", "settings": {}}, {"text": "x", "sync": "e2e"}):
            assert (await api.ask("POST", "/settings/preview", body)).status == 422
        assert (tmp_path / "settings.toml").read_bytes() == before


async def test_a_file_that_was_changed_by_hand_is_loaded(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        path = tmp_path / "settings.toml"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('name = "e2e"', 'name = "e2e"\nenabled = false'), "utf-8")
        said = await api.ask("POST", "/settings/reload")
        assert (said.status, said.json["changed"]) == (200, ["e2e"])
        path.write_text("not toml", encoding="utf-8")
        said = await api.ask("POST", "/settings/reload")
        assert said.status == 409
        assert len(api.engine.settings.sync) == 1
        assert await api.audited() == [("settings loaded", "changed: e2e")]


async def test_a_saved_change_that_waits_for_a_restart_says_so(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        text = (await api.get(FILE))["text"]
        text = text.replace("[[sync]]", "[spool]\nmax_bytes = 2000000000\n[[sync]]", 1)
        said = await change(api, "PUT", FILE, {"text": text})
        assert (said.status, said.json["reloaded"]["needs_restart"]) == (200, ["spool"])


async def test_no_source_is_told_to_read_a_file_with_secrets(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        shown = await api.get(FILE)
        for path in ("data/secrets/e2e-access_token-0123456789abcdef", "/proc/self/environ"):
            text = f'{shown["text"]}\n[sources.stdin]\npaths = ["{path}"]\nsync = "e2e"\n'
            said = await change(api, "PUT", FILE, {"text": text})
            assert (said.status, said.pointers) == (422, ["/sources/stdin"])
        assert await api.get(FILE) == shown


async def test_settings_that_are_viewed_are_not_changed(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        api.access.follow(msgspec.structs.replace(api.access.settings, settings="view"))
        shown = await api.get(FILE)
        assert not shown["can_save"]
        bodies: dict[tuple[str, str], Any] = {
            ("PUT", "/settings/file"): {"text": shown["text"]},
            ("POST", "/settings/versions/{version}/restore"): {},
            ("POST", "/syncs"): {"settings": {"name": "other"}},
            ("PATCH", "/syncs/{sync}"): {"enabled": False},
            ("DELETE", "/syncs/{sync}"): None,
            ("PUT", "/syncs/{sync}/settings"): {"settings": {"name": "e2e"}},
            ("PUT", "/syncs/{sync}/secrets/access_token"): {"token": "t"},
        }
        assert set(bodies) == await _changes_of_settings(api)
        for (method, path), body in bodies.items():
            said = await change(api, method, path.format(sync="e2e", version="7"), body)
            assert (said.status, said.json["type"]) == (403, f"{HELP}settings_are_viewed")
        said = await api.ask("POST", "/settings/preview", {"text": shown["text"]})
        assert (said.status, said.json["diff"]) == (200, "")


async def _changes_of_settings(api: Console) -> set[tuple[str, str]]:
    """Return the operations that name the version of the file which they change."""
    described = (await api.get("/openapi.json"))["paths"]
    return {
        (method.upper(), path.removeprefix(API_ROOT))
        for path, methods in described.items()
        for method, one in methods.items()
        if any(given["name"] == "If-Match" for given in one["parameters"])
    }


@pytest.mark.parametrize(
    "form",
    [
        {"name": "e2e", "users": None},
        {"name": "e2e", "events": {"select": [{"types": [None]}]}},
        {"name": "e2e", "unknown": 1},
        {"name": "other"},
        {"name": "e2e", "amplitude_api_keys": 10**400},
        {"name": "e2e", "delivery": {"retry_attempts": 10**30}},
        {"name": "e2e", "intercom": {"access_token": {"set": True, "at": 7}}},
        {"name": "e2e", "intercom": {"access_token": "***"}},
        {"name": "e2e", "intercom": {"access_token": {"from": "env:HOME"}}},
        {"name": "e2e", "": {}, "a\nb": "\u0000"},
        {},
    ],
)
async def test_a_form_that_is_no_sync_is_refused(tmp_path: Path, form: Any) -> None:
    async with console(tmp_path) as api:
        before = (tmp_path / "settings.toml").read_bytes()
        for method, path in (("PUT", SYNC), ("POST", "/syncs")):
            said = await change(api, method, path, {"settings": form})
            assert said.status in (409, 422), said
        assert (tmp_path / "settings.toml").read_bytes() == before


async def test_a_form_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        body = b'{"settings": {"a": ' + b"[" * 500 + b"]" * 500 + b"}}"
        tag = (await api.ask("GET", FILE)).headers["ETag"]
        said = await api.ask("PUT", SYNC, data=body, If_Match=tag)
        assert said.status == 422


async def test_a_sync_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        for name in ("none", "..", "e2e%2fx", "%00"):
            assert (await api.ask("GET", f"/syncs/{name}/settings")).status == 404
            assert (await change(api, "PATCH", f"/syncs/{name}", {"enabled": True})).status == 404
            assert (await change(api, "DELETE", f"/syncs/{name}")).status == 404


@pytest.mark.parametrize("path", ["/settings", FILE, SYNC])
async def test_what_somebody_has_is_not_sent_again_before_it_changes(
    tmp_path: Path, path: str
) -> None:
    async with console(tmp_path) as api:
        first = await api.ask("GET", path)
        tag = first.headers["ETag"]
        assert first.headers["Cache-Control"] == "private, no-cache"
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            said = await api.ask("GET", path, If_None_Match=known)
            assert (said.status, said.json, said.headers["ETag"]) == (304, None, tag)
            assert "Content-Security-Policy" in said.headers
        for other in ('"other"', "x", "", tag.strip('"')):
            assert (await api.ask("GET", path, If_None_Match=other)).status == 200
        await change(api, "PATCH", "/syncs/e2e", {"enabled": False})
        assert (await api.ask("GET", path, If_None_Match=tag)).status == 200


async def test_every_text_that_the_program_reads_can_be_saved_and_no_larger_one(
    tmp_path: Path,
) -> None:
    async with console(tmp_path) as api:
        shown = await api.ask("GET", FILE)
        text = shown.json["text"] + "# \u00e9\n" * 400_000
        assert 1_000_000 < len(text.encode()) < MAX_FILE_BYTES
        said = await api.ask("POST", "/settings/preview", {"text": text})
        assert said.status == 200, said
        said = await api.ask("PUT", FILE, {"text": text}, If_Match=shown.headers["ETag"])
        assert (said.status, said.json["refused"]) == (200, ""), said
        larger = {"text": text + "#" * MAX_FILE_BYTES}
        for method, path in (("PUT", FILE), ("POST", "/settings/preview")):
            said = await api.ask(method, path, larger, If_Match=f'"{said_version(tmp_path)}"')
            assert (said.status, str(MAX_FILE_BYTES) in said.json["detail"]) == (413, True)
            much = b'{"text": "' + b"#" * (3 * MAX_FILE_BYTES) + b'"}'
            assert (await api.ask(method, path, data=much)).status == 413
        small = await api.ask("POST", "/syncs/e2e/check", data=b" " * 1_000_001)
        assert small.status == 413, "where no text is sent, less is taken"


def said_version(folder: Path) -> str:
    return digest((folder / "settings.toml").read_bytes())


async def test_a_file_that_a_crash_left_half_written_keeps_no_daemon_from_starting(
    tmp_path: Path,
) -> None:
    path = process.settings(tmp_path, "http://127.0.0.1:9")
    old = path.read_text(encoding="utf-8")
    new = f"# {'a longer comment' * 10}\n{old}"
    kept = tmp_path / "data" / "settings"
    kept.mkdir(parents=True, mode=0o700)
    (tmp_path / "data").chmod(0o700)
    texts = {"path": str(path.resolve()), "old": old, "new": new}
    (kept / "unfinished.json").write_text(json.dumps(texts), encoding="utf-8")
    half = new[:170] + old[170:]
    path.write_text(half, encoding="utf-8")
    with pytest.raises(SettingsError):
        config.load(path)
    async with process.daemon(path) as daemon:
        said = [entry["event"] for entry in daemon.log]
        assert "the settings file was half written: it has its old text again" in said
        assert (await daemon.status())["received"] == 0
    assert path.read_text(encoding="utf-8") == old
