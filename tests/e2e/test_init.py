"""``init``: questions on a terminal, flags without one, and a file that works with the sandbox."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from amplitude_intercom.engine.config import load
from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve, serve_amplitude
from support import process
from support.terminal import Terminal, on_terminal

KEY, TOKEN = "shop-key-1f", "shop-token-9c"
NAME = "amplitude-intercom.toml"
OFFLINE = ["--offline", "--region", "eu", "--amplitude-region", "eu"]
SECRETS = ["--amplitude-key", KEY, "--intercom-token", TOKEN]


def sample(folder: Path) -> Path:
    events = [
        process.event(
            f"user-{n}",
            n,
            "Purchase Completed" if n % 3 else "Page Viewed",
            event_properties={"amount": 9.5 * n, "currency": "EUR", "api_token": "sekrit"},
            user_properties={"$set": {"plan": "pro", "seats": n, "address": {"city": "Lagos"}}},
        )
        for n in range(1, 10)
    ]
    path = folder / "sample.ndjson"
    path.write_text("".join(json.dumps(event) + "\n" for event in events), "utf-8")
    return path


class Services:
    """The addresses of a local Intercom, which has an attribute `plan`, and a local Amplitude."""

    def __init__(self, intercom: str, amplitude: str) -> None:
        self.flags = ["--intercom-url", intercom, "--amplitude-url", amplitude]


@asynccontextmanager
async def services() -> AsyncIterator[Services]:
    local = Sandbox(latency_s=0, access_token=TOKEN, attributes={"plan": "string"})
    async with serve(local) as intercom, serve_amplitude(LocalAmplitude()) as amplitude:
        yield Services(intercom, amplitude)


async def ends_well(terminal: Terminal) -> None:
    await terminal.sees("amplitude-intercom run")
    assert await terminal.process.wait() == 0, terminal.shown


async def checked(folder: Path) -> None:
    code, out, err = await process.run("check", "-c", str(folder / NAME))
    assert code == 0, out + err


async def test_a_newcomer_answers_the_questions_and_check_has_nothing_against_it(
    tmp_path: Path,
) -> None:
    sample(tmp_path)
    async with (
        services() as local,
        on_terminal(*process.command("init", *local.flags), cwd=tmp_path) as terminal,
    ):
        await terminal.answers("Intercom access token", "wrong-token")
        assert "401" in await terminal.sees("once more")
        await terminal.answers("Intercom access token", TOKEN)
        await terminal.answers("Pass requests on to Amplitude?", "")
        await terminal.answers("API key of the Amplitude project", KEY)
        await terminal.answers("Sample (Enter: none)", "sample.ndjson")
        await terminal.answers("Enter for those with *", "7")
        await terminal.answers("expected numbers from 1 to 2", "")
        types = await terminal.sees("Event properties")
        assert "Purchase Completed" in terminal.shown + types
        assert "api_token" not in await terminal.sees("Enter for those with *")
        terminal.types("1\n")
        users = await terminal.sees("Enter for those with *")
        assert "address" not in users
        assert "not in Intercom yet" in users
        terminal.types("plan, seats\n")
        await terminal.answers("Create seats in Intercom", "")
        await ends_well(terminal)
        assert TOKEN not in terminal.shown
        await checked(tmp_path)
    made = load(tmp_path / NAME)
    (sync,) = made.sync
    assert sync.intercom.access_token.reveal() == TOKEN
    assert [key.reveal() for key in sync.amplitude_api_keys] == [KEY]
    assert [selector.types for selector in sync.events.select] == [
        ["Purchase Completed", "Page Viewed"]
    ]
    assert sync.events.metadata == ["amount"]
    assert sync.users.properties == ["plan", "seats"]
    assert sync.users.create_missing_attributes
    assert len(made.relay) == 1
    text = (tmp_path / NAME).read_text("utf-8")
    assert TOKEN not in text
    assert KEY not in text
    for path in (tmp_path / "data").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


async def test_flags_answer_everything_where_there_is_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / NAME
    async with services() as local:
        code, out, err = await process.run(
            "init",
            str(path),
            *local.flags,
            "--amplitude-key",
            "env:SHOP_KEY",
            "--sample",
            str(sample(tmp_path)),
            "--no-relay",
            env={"SHOP_KEY": KEY, "INTERCOM_ACCESS_TOKEN": TOKEN},
        )
        assert code == 0, err
    assert f"amplitude-intercom check -c {path}" in out
    text = path.read_text("utf-8")
    assert '"env:SHOP_KEY"' in text
    assert '"env:INTERCOM_ACCESS_TOKEN"' in text
    assert "[[relay]]" not in text
    assert 'properties = ["plan"]' in text, "the workspace has no `seats`"
    assert not (tmp_path / "data").exists()


async def test_missing_flags_are_named_and_nothing_is_asked_without_a_terminal(
    tmp_path: Path,
) -> None:
    path = tmp_path / NAME
    code, out, err = await process.run("init", str(path), stdin=b"never read\n")
    assert (code, out) == (2, "")
    assert "--amplitude-key (or the variable AMPLITUDE_API_KEY)" in err
    assert "--intercom-token (or the variable INTERCOM_ACCESS_TOKEN)" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--intercom-token", "wrong"], "--intercom-token: Intercom answers 401"),
        (["--intercom-token", "env:NOT_SET_ANYWHERE"], "`NOT_SET_ANYWHERE` to be set"),
        (["--intercom-token", TOKEN, "--sample", "missing.ndjson"], "missing.ndjson"),
        (["--intercom-token", TOKEN, "--sample", "."], "."),
        (["--intercom-token", TOKEN, "--event", ""], "event"),
        (["--intercom-token", TOKEN, "--event", "\udcff"], "another encoding than UTF-8"),
        (["--intercom-token", ""], "give --intercom-token"),
        (["--intercom-token", TOKEN, "--property", "a$b"], "cannot be the name of an attribute"),
    ],
)
async def test_what_is_refused_is_said_and_leaves_nothing(
    tmp_path: Path, flags: list[str], said: str
) -> None:
    path = tmp_path / NAME
    async with services() as local:
        code, out, err = await process.run(
            "init", str(path), *local.flags, "--amplitude-key", KEY, *flags
        )
    assert code in (1, 2)
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


async def test_a_file_that_exists_stays_unless_force_is_given(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_text("mine", "utf-8")
    flags = [*OFFLINE, "--amplitude-key", KEY, "--intercom-token", TOKEN]
    code, _, err = await process.run("init", str(path), *flags)
    assert code == 2
    assert "exists; --force" in err
    assert path.read_text("utf-8") == "mine"
    assert not (tmp_path / "data").exists()
    code, _, err = await process.run("init", str(path), *flags, "--force")
    assert code == 0, err
    assert load(path).sync[0].intercom.access_token.reveal() == TOKEN


@pytest.mark.parametrize("force", [True, False])
async def test_a_write_that_fails_leaves_the_files_that_were_there(
    tmp_path: Path, force: bool
) -> None:
    """The settings are longer than a file may be; the secrets are not."""
    if force:
        before = [*OFFLINE, "--amplitude-key", "old-key", "--intercom-token", "old-token"]
        assert (await process.run("init", str(tmp_path / NAME), *before))[0] == 0
    there = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    limited = ("sh", "-c", 'ulimit -f 1; exec "$@"', "sh")
    init = process.command("init", str(tmp_path / NAME), *OFFLINE, *SECRETS)
    ran = await asyncio.create_subprocess_exec(
        *limited, *init, *(["--force"] if force else []), stderr=asyncio.subprocess.PIPE
    )
    _, err = await ran.communicate()
    assert ran.returncode == 1
    assert f"{tmp_path / NAME}: File too large" in err.decode()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == there
    assert force or not list(tmp_path.iterdir())


async def test_a_secret_file_with_another_value_stays_unless_force_is_given(tmp_path: Path) -> None:
    path = tmp_path / NAME
    assert (await process.run("init", str(path), *OFFLINE, *SECRETS))[0] == 0
    path.unlink()
    other = ["--amplitude-key", KEY, "--intercom-token", "another-token"]
    code, _, err = await process.run("init", str(path), *OFFLINE, *other)
    assert code == 2
    assert "intercom-access-token: exists, with another value than --intercom-token" in err
    assert not path.exists()
    secret = tmp_path / "data/secrets/intercom-access-token"
    assert secret.read_text("utf-8") == f"{TOKEN}\n"
    assert (await process.run("init", str(path), *OFFLINE, *SECRETS))[0] == 0
    assert (await process.run("init", str(path), *OFFLINE, *other, "--force"))[0] == 0
    assert secret.read_text("utf-8") == "another-token\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--region (us, eu or au), and --amplitude-region (us or eu) or --no-relay"),
        (["--relay", "--region", "eu"], "give --amplitude-region (us or eu) or --no-relay"),
        (["--no-relay"], "give --region (us, eu or au)"),
        (["--region", "eu", "--intercom-url", "http://i.example"], "--region and --intercom-url"),
    ],
)
async def test_no_region_is_guessed_offline(tmp_path: Path, flags: list[str], said: str) -> None:
    code, _, err = await process.run("init", str(tmp_path / NAME), "--offline", *SECRETS, *flags)
    assert code == 2
    assert said in err
    assert not list(tmp_path.iterdir())


async def test_the_regions_that_are_given_are_written(tmp_path: Path) -> None:
    code, _, err = await process.run("init", str(tmp_path / NAME), *OFFLINE, *SECRETS)
    assert code == 0, err
    made = load(tmp_path / NAME)
    assert (made.relay[0].region, made.sync[0].intercom.region) == ("eu", "eu")


async def test_yes_on_a_terminal_does_not_say_that_there_is_none(tmp_path: Path) -> None:
    async with on_terminal(*process.command("init", "--yes"), cwd=tmp_path) as terminal:
        await terminal.sees("--yes asks nothing: give --amplitude-key")
        assert await terminal.process.wait() == 2


async def test_a_service_that_does_not_answer_costs_no_answers(tmp_path: Path) -> None:
    port = process.free_port()
    away = f"http://127.0.0.1:{port}"
    flags = ["--intercom-url", away, "--amplitude-url", away]
    async with on_terminal(*process.command("init", *flags), cwd=tmp_path) as terminal:
        await terminal.answers("Intercom access token", TOKEN)
        await terminal.sees("does not answer")
        local = Sandbox(latency_s=0, access_token=TOKEN)
        async with serve(local, port=port):
            await terminal.answers("other: type another", "")
            await terminal.answers("Pass requests on to Amplitude?", "")
        await terminal.answers("API key of the Amplitude project", "first-key")
        await terminal.answers("other: type another", "perhaps")
        await terminal.answers("please answer again, untried, other", "other")
        await terminal.answers("API key of the Amplitude project", KEY)
        await terminal.answers("other: type another", "untried")
        await terminal.answers("Sample (Enter: none)", "")
        await terminal.answers("Event types to send", "")
        await ends_well(terminal)
    assert load(tmp_path / NAME).sync[0].amplitude_api_keys[0].reveal() == KEY


async def test_a_region_is_asked_for_where_no_host_could_tell(tmp_path: Path) -> None:
    """Behind a proxy that is not there, nobody answers."""
    nobody = {"https_proxy": f"http://127.0.0.1:{process.free_port()}"}
    async with on_terminal(
        *process.command("init", "--no-relay", *SECRETS), cwd=tmp_path, env=nobody
    ) as terminal:
        await terminal.answers("other: type another", "untried")
        await terminal.answers("Region of the Intercom workspace", "")
        await terminal.answers("it is needed", "mars")
        await terminal.answers("there is no region mars", "au")
        await terminal.answers("Sample (Enter: none)", "")
        await terminal.answers("Event types to send", "")
        await ends_well(terminal)
    assert load(tmp_path / NAME).sync[0].intercom.region == "au"


async def test_a_sample_that_cannot_be_read_is_asked_for_again(tmp_path: Path) -> None:
    sample(tmp_path)
    (tmp_path / "empty").touch()
    flags = [*OFFLINE, *SECRETS, "--relay"]
    async with on_terminal(*process.command("init", *flags), cwd=tmp_path) as terminal:
        for wrong in ("missing.ndjson", ".", "empty"):
            await terminal.answers("Sample (Enter: none)", wrong)
            await terminal.sees("once more")
        terminal.types_bytes(b"\xff\xfe\n")
        await terminal.sees("once more")
        await terminal.answers("Sample (Enter: none)", "sample.ndjson")
        await terminal.answers("Enter for those with *", "9" * 4_000)
        await terminal.answers("expected numbers from 1 to 2", "")
        for _ in range(2):
            await terminal.answers("Enter for those with *", "")
        await ends_well(terminal)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("data", "data: is no folder; secrets"),
        ("data/secrets", "data/secrets: is no folder; secrets"),
        ("data/secrets/intercom-access-token/", "intercom-access-token: is a folder"),
        ("file", "file: is no folder"),
    ],
)
async def test_a_place_that_takes_no_file_is_said_before_any_question(
    tmp_path: Path, made: str, said: str
) -> None:
    place = tmp_path / made
    place.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir() if made.endswith("/") else place.touch()
    path = f"{made}/{NAME}" if made == "file" else NAME
    async with on_terminal(*process.command("init", path), cwd=tmp_path) as terminal:
        await terminal.sees(said)
        assert await terminal.process.wait() == 2


async def test_an_existing_secret_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / NAME
    flags = [*OFFLINE, "--amplitude-key", KEY, "--intercom-token", TOKEN]
    assert (await process.run("init", str(path), *flags))[0] == 0
    path.unlink()
    code, out, err = await process.run("init", str(path), *OFFLINE)
    assert code == 0, err
    assert "secrets" not in out
    assert load(path).sync[0].intercom.access_token.reveal() == TOKEN


async def test_a_folder_that_is_not_there_is_said_before_any_question(tmp_path: Path) -> None:
    async with on_terminal(*process.command("init", "a/b.toml"), cwd=tmp_path) as terminal:
        await terminal.sees("no such folder")
        assert await terminal.process.wait() == 2


@pytest.mark.parametrize(("key", "code"), [("\x03", 130), ("\x04", 2)])
async def test_ctrl_c_and_ctrl_d_leave_nothing_half_written(
    tmp_path: Path, key: str, code: int
) -> None:
    flags = ["--offline", "--intercom-token", TOKEN, "--amplitude-key", KEY]
    async with on_terminal(*process.command("init", *flags), cwd=tmp_path) as terminal:
        await terminal.answers("Region of the Intercom workspace", "eu")
        await terminal.sees("Pass requests on to Amplitude?")
        terminal.types(key)
        assert await terminal.process.wait() == code
    assert not list(tmp_path.iterdir())


async def test_user_ids_that_are_addresses_find_contacts_by_email(tmp_path: Path) -> None:
    events = [process.event(f"user-{n}@example.com", n, "Signed Up") for n in range(5)]
    path = tmp_path / "sample.ndjson"
    path.write_text("".join(json.dumps(event) + "\n" for event in events), "utf-8")
    flags = [*OFFLINE, "--yes", "--intercom-token", TOKEN, "--amplitude-key", KEY]
    made = tmp_path / NAME
    code, _, err = await process.run("init", str(made), *flags, "--sample", str(path))
    assert code == 0, err
    assert load(made).sync[0].mapping.identifier == "email"


async def test_what_waits_in_a_spool_is_a_sample_too(tmp_path: Path) -> None:
    folder = tmp_path / "before"
    folder.mkdir()
    nobody = f"http://127.0.0.1:{process.free_port()}"
    async with process.daemon(process.settings(folder, nobody)) as running:
        events = [process.event("ada-lovelace", n, "Signed Up") for n in range(3)]
        assert (await process.upload(f"{running.http}/2/httpapi", events))[0] == 200
    made = tmp_path / NAME
    flags = [*OFFLINE, "--intercom-token", TOKEN, "--amplitude-key", KEY]
    code, _, err = await process.run("init", str(made), *flags, "--sample", str(folder / "data"))
    assert code == 0, err
    (sync,) = load(made).sync
    assert [selector.types for selector in sync.events.select] == [["Signed Up"]]
    assert sync.events.metadata == ["n"]
