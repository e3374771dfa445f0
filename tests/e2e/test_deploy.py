"""``deploy``: its files are what their own tools accept, and agree with the program."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from amplitude_intercom.engine import config
from amplitude_intercom.engine.console import access
from amplitude_intercom.engine.deploy.adapting import settings_of
from amplitude_intercom.engine.deploy.targets import TARGETS, _unit_word, stop_s, storage_gib
from amplitude_intercom.engine.settings import Admin, Http, Settings
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

ROOT = Path(__file__).parents[2]
PORTS = [int(address.rpartition(":")[2]) for address in (Http().listen, Admin().listen)]
SECRETS = {"AMPLITUDE_API_KEY": "key-1", "INTERCOM_ACCESS_TOKEN": "tok", "ADMIN_TOKEN": "adm"}


async def tool(*command: str, **env: str) -> tuple[int, str]:
    """Run a program; return its exit code and all that it says."""
    ran = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **env},
    )
    said, _ = await ran.communicate()
    assert ran.returncode is not None
    return ran.returncode, said.decode()


async def written(folder: Path, target: str, *more: str) -> dict[str, str]:
    code, _, err = await process.run("deploy", target, "--to", str(folder), *more)
    assert code == 0, err
    return {path.name: path.read_text("utf-8") for path in folder.iterdir()}


def values(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)


def deadline_s(text: str) -> float:
    return settings_of(text).drain_deadline_s


# --- systemd ------------------------------------------------------------------------------


async def test_systemd_accepts_the_unit_and_its_socket_and_finds_it_hardened(
    tmp_path: Path,
) -> None:
    files = await written(tmp_path, "systemd")
    unit = tmp_path / "amplitude-intercom.service"
    start = values(files[unit.name], "ExecStart")[0].split()
    unit.write_text(files[unit.name].replace(start[0], shutil.which("true") or ""), "utf-8")
    verified = await tool("systemd-analyze", "verify", *map(str, tmp_path.glob("*.s*")))
    assert verified == (0, "")
    code, said = await tool(
        "systemd-analyze", "security", "--offline=yes", "--threshold=20", str(unit)
    )
    assert code == 0, said


@pytest.mark.parametrize("name", ["a b", "100%n", "$HOME", ";", "ü"])
async def test_systemd_finds_the_program_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    program = tmp_path / name / "amplitude-intercom"
    program.parent.mkdir()
    shutil.copy(shutil.which("true") or "", program)
    unit = tmp_path / "ours.service"
    start = f"[Service]\nExecStart={_unit_word(str(program))} run\n"
    unit.write_text(start, "utf-8")
    assert await tool("systemd-analyze", "verify", str(unit)) == (0, "")


async def test_the_unit_agrees_with_the_settings(tmp_path: Path) -> None:
    files = await written(tmp_path, "systemd")
    unit, text = files["amplitude-intercom.service"], files["amplitude-intercom.toml"]
    settings = settings_of(text)
    assert int(values(unit, "TimeoutStopSec")[0]) == stop_s(settings) > deadline_s(text)
    assert settings.data_dir == f"/var/lib/{values(unit, 'StateDirectory')[0]}"
    assert settings.http is not None
    assert settings.admin is not None
    listen = [settings.http.listen, settings.admin.listen]
    assert values(files["amplitude-intercom.socket"], "ListenStream") == listen
    loaded = [name.partition(":")[0] for name in values(unit, "LoadCredential")]
    assert loaded[0] == values(unit, "ExecStart")[0].rpartition("/")[2]
    assert loaded[1:] == re.findall(r'"file:([^"]+)"', text)


async def test_a_service_starts_from_its_credentials(tmp_path: Path) -> None:
    """The settings and the secrets are copies in a folder of their own (systemd.exec(5))."""
    files = await written(tmp_path, "systemd")
    text = files["amplitude-intercom.toml"].replace("/var/lib/amplitude-intercom", "state")
    path = tmp_path / "amplitude-intercom.toml"
    for port in PORTS:
        text = text.replace(f":{port}", ":0")
    path.write_text(text, "utf-8")
    for name in re.findall(r'"file:([^"]+)"', text):
        (tmp_path / name).write_text("secret-1\n", "utf-8")
    async with process.daemon(path) as running:
        assert (await running.ready())[0] == 200


# --- container ----------------------------------------------------------------------------


async def test_a_linter_of_container_files_has_nothing_to_say(tmp_path: Path) -> None:
    await written(tmp_path, "container")
    hadolint = str(Path(sys.executable).with_name("hadolint"))
    assert await tool(hadolint, "--strict-labels", str(tmp_path / "Containerfile")) == (0, "")


async def test_the_container_file_agrees_with_the_settings_and_the_server(tmp_path: Path) -> None:
    files = await written(tmp_path, "container")
    made, text = files["Containerfile"], files["amplitude-intercom.toml"]
    settings = settings_of(text)
    assert re.findall(r"^EXPOSE (.*)$", made, re.MULTILINE) == [" ".join(map(str, PORTS))]
    assert f"VOLUME {settings.data_dir}\n" in made
    assert deadline_s(text) < 10, "docker stop kills after 10 s"
    path = re.search(rf"http://127\.0\.0\.1:{PORTS[1]}(/\w+)'", made)
    assert path is not None
    assert path[1] in access.OPEN_PATHS
    names = re.findall(r"-e (\w+)", made)
    assert names == sorted(SECRETS)
    assert set(re.findall(r'"env:(\w+)"', text)) == set(names)
    user = re.findall(r"^USER (\d+):(\d+)$", made, re.MULTILINE)
    assert user
    assert int(user[0][0]) >= 1_000


@pytest.mark.parametrize("target", ["container", "kubernetes"])
async def test_only_open_ports_are_published_and_all_are_reached(
    tmp_path: Path, target: str
) -> None:
    """Addresses of this machine do not exist in a container."""
    secret = {"access_token": "env:SHOP_TOKEN"}
    admin = {"admin": {"listen": "192.168.1.5:9002", "token": "env:ADMIN_TOKEN"}}
    for top, ports in (
        (admin, [9002]),
        ({**admin, "http": {"listen": "192.168.1.5:9001"}}, [9001, 9002]),
    ):
        path = process.settings(tmp_path, "http://i.example", top=top, intercom_more=secret)
        text = path.read_text("utf-8")
        if "http" not in top:
            path.write_text(re.sub(r"\[http\]\n(.+\n)*", "", text), "utf-8")
        code, out, err = await process.run("deploy", target, "-c", str(path))
        assert code == 0, err
        assert "192.168.1.5" not in out
        if target == "container":
            assert re.findall(r"^EXPOSE (.*)$", out, re.MULTILINE) == [" ".join(map(str, ports))]
            assert re.findall(r"-p 127\.0\.0\.1:(\d+):", out) == [str(port) for port in ports]
            continue
        found = documents(out)
        (container,) = found["StatefulSet"]["spec"]["template"]["spec"]["containers"]
        assert [port["containerPort"] for port in container["ports"]] == ports
        assert [port["port"] for port in found["Service"]["spec"]["ports"]] == ports


async def test_the_health_check_asks_where_the_server_listens(tmp_path: Path) -> None:
    path = process.settings(
        tmp_path,
        "http://i.example",
        top={
            "http": {"listen": "127.0.0.1:9001"},
            "admin": {"listen": "[::]:9002", "token": "env:ADMIN_TOKEN"},
        },
        intercom_more={"access_token": "env:SHOP_TOKEN"},
    )
    code, out, err = await process.run("deploy", "container", "-c", str(path))
    assert code == 0, err
    assert "urlopen('http://[::1]:9002/healthz'" in out
    assert "-p [::1]:9002:9002" in out


async def test_the_image_is_built_of_what_the_container_file_copies(tmp_path: Path) -> None:
    """Its own steps, without a container: copy, install, and ask the installed program."""
    source, target = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    made = (await written(tmp_path / "files", "container"))["Containerfile"]
    for line in re.findall(r"^COPY (?!--from)(.*)$", made, re.MULTILINE):
        *names, _ = line.split()
        for name in names:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    code, said = await tool(*pip, str(source))
    assert code == 0, said
    program = (sys.executable, "-P", "-m", "amplitude_intercom.engine", "deploy")
    for name in TARGETS:
        code, said = await tool(*program, name, PYTHONPATH=str(target))
        assert code == 0, said
        assert len(said.splitlines()) > 50
    where = "import amplitude_intercom.engine.deploy as d; print(d.__file__)"
    _, found = await tool(sys.executable, "-P", "-c", where, PYTHONPATH=str(target))
    assert found.startswith(str(target))


async def test_the_health_check_of_the_container_tells_whether_the_daemon_answers(
    tmp_path: Path,
) -> None:
    made = (await written(tmp_path / "files", "container"))["Containerfile"]
    check = re.search(r'CMD \["python", "-c", "(.*)"\]', made)
    assert check is not None
    async with serve(Sandbox(latency_s=0)) as url:
        async with process.daemon(process.settings(tmp_path, url)) as running:
            port = running.admin.rpartition(":")[2]
            code = check[1].replace(str(PORTS[1]), port)
            assert await tool(sys.executable, "-c", code) == (0, "")
        assert (await tool(sys.executable, "-c", code))[0] == 1


# --- Kubernetes ---------------------------------------------------------------------------


def documents(text: str) -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


async def test_the_manifest_is_what_the_schemas_of_kubernetes_describe(tmp_path: Path) -> None:
    await written(tmp_path, "kubernetes")
    validate = str(Path(sys.executable).with_name("kubernetes-validate"))
    code, said = await tool(validate, "--strict", str(tmp_path / "kubernetes.yaml"))
    assert code == 0, said
    assert said.count("passed for resource") == 3


async def test_the_manifest_agrees_with_the_settings_and_the_server(tmp_path: Path) -> None:
    found = documents((await written(tmp_path, "kubernetes"))["kubernetes.yaml"])
    text = found["ConfigMap"]["data"]["amplitude-intercom.toml"]
    spec = found["StatefulSet"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    settings = settings_of(text)
    assert spec["replicas"] == 1
    assert pod["terminationGracePeriodSeconds"] == stop_s(settings) > settings.drain_deadline_s
    assert [port["containerPort"] for port in container["ports"]] == PORTS
    assert [port["port"] for port in found["Service"]["spec"]["ports"]] == PORTS
    probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    assert {probe["path"] for probe in probes} == access.OPEN_PATHS
    assert {probe["port"] for probe in probes} == {"admin"}
    names = [variable["name"] for variable in container["env"]]
    assert set(re.findall(r'"env:(\w+)"', text)) == set(names) == set(SECRETS)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert settings.data_dir.startswith(mounts["data"])
    assert container["args"][-1].startswith(mounts["settings"])
    storage = spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
    assert storage == f"{storage_gib(settings)}Gi"
    assert int(storage.removesuffix("Gi")) * 2**30 > settings.spool.max_bytes
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True


# --- the command --------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
async def test_the_settings_that_come_along_pass_check(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = await written(tmp_path / target, target)
    text = (
        files.get("amplitude-intercom.toml")
        or documents(files["kubernetes.yaml"])["ConfigMap"]["data"]["amplitude-intercom.toml"]
    )
    path = tmp_path / "settings.toml"
    path.write_text(re.sub("/var/lib/[a-z/-]+", "state", text), "utf-8")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
        (tmp_path / name.lower().replace("_", "-")).write_text(value, "utf-8")
    assert isinstance(config.load(path), Settings)
    code, out, err = await process.run("check", "--offline", "-c", str(path), env=SECRETS)
    assert code == 0, out + err


@pytest.mark.parametrize("target", TARGETS)
async def test_a_settings_file_is_followed_and_left_as_it_is(tmp_path: Path, target: str) -> None:
    path = process.settings(
        tmp_path,
        "http://intercom.example",
        top={
            "http": {"listen": "127.0.0.1:9001"},
            "admin": {"listen": "127.0.0.1:9002"},
            "drain_deadline_s": 90.0,
        },
        intercom_more={"access_token": "env:SHOP_TOKEN"},
    )
    before = path.read_bytes()
    code, out, err = await process.run("deploy", target, "-c", str(path))
    assert code == 0, err
    assert path.read_bytes() == before
    for word in ("9001", "9002"):
        assert word in out
    assert "SHOP_TOKEN" in out or "shop-token" in out
    assert "note: " in err
    if target != "container":
        assert "105" in out


async def test_files_are_not_written_over_unless_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text("mine", "utf-8")
    code, out, err = await process.run("deploy", "container", "--to", str(tmp_path))
    assert (code, out) == (2, "")
    assert "Containerfile: exists" in err
    assert (tmp_path / "Containerfile").read_text("utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["Containerfile"]
    files = await written(tmp_path, "container", "--force")
    assert "FROM" in files["Containerfile"]
    assert tomllib.loads(files["amplitude-intercom.toml"])


async def test_files_that_cannot_all_be_written_leave_those_that_were_there(tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text("mine", "utf-8")
    (tmp_path / "amplitude-intercom.toml").mkdir()
    code, out, err = await process.run("deploy", "container", "--to", str(tmp_path), "--force")
    assert (code, out) == (1, "")
    assert "amplitude-intercom.toml: Is a directory" in err
    assert (tmp_path / "Containerfile").read_text("utf-8") == "mine"


async def test_a_wrong_target_and_wrong_settings_are_wrong_usage(tmp_path: Path) -> None:
    code, out, err = await process.run("deploy", "kubernets")
    assert (code, out) == (2, "")
    assert "did you mean `kubernetes`?" in err
    code, out, err = await process.run("deploy", "nomad")
    assert code == 2
    assert ", ".join(TARGETS) in err
    path = process.settings(tmp_path, "http://intercom.example")
    code, out, err = await process.run("deploy", "systemd", "-c", str(path))
    assert (code, out) == (2, "")
    assert "access_token: it is spelled out" in err
    assert process.TOKEN not in err
    code, out, err = await process.run("deploy", "systemd", "-c", str(tmp_path / "none.toml"))
    assert (code, out) == (2, "")
    assert "none.toml: cannot be read" in err
