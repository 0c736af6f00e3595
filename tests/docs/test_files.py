"""What is in the repository beside code and pages is right: the recording, and the files of deployments."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import click
import pytest
import yaml

from durable_swarm.cli.app import app
from tests.docs.pages import ROOT, blocks_of, text_of

DEPLOY = ROOT / "deploy"
CONTAINER: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())["spec"]["template"]["spec"]


def command_of(name: str) -> list[str]:
    """Return the command that a file of a deployment starts."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    match name:
        case "Dockerfile":
            return re.findall(r'"([^"]+)"', text.rpartition("\nCMD ")[2])
        case "kubernetes.yaml":
            return list(CONTAINER["containers"][0]["args"])
        case _:
            return re.findall(r"^ExecStart=\S*/(.+)$", text, re.MULTILINE)[0].split()


@pytest.mark.parametrize("name", ["Dockerfile", "kubernetes.yaml", "durable-swarm-worker.service"])
def test_deployments_start_a_worker(name: str) -> None:
    """The command of each file is one that the command line accepts."""
    program, command, *arguments = command_of(name)
    assert (program, command) == ("durable-swarm", "worker")
    worker = app.get_command(click.Context(app), command)
    assert worker is not None
    given = worker.make_context(command, arguments, obj=None).params
    assert ":" in given["target"]


def test_images_copy_what_is_there() -> None:
    """Every file that the Dockerfile copies from the repository exists."""
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert copied
    assert [name for names in copied for name in names.split() if not (ROOT / name).exists()] == []


def test_compose_starts_two_workers_after_their_database() -> None:
    """The compose file starts PostgreSQL, and two workers of the image once it answers."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    worker = services["worker"]
    assert worker["deploy"]["replicas"] == 2
    assert worker["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert (DEPLOY / worker["build"]["context"] / worker["build"]["dockerfile"]).resolve().exists()
    assert "@database/" in worker["environment"]["DURABLE_SWARM_DATABASE_URL"]


def test_the_parts_of_the_kubernetes_deployment_fit() -> None:
    """Its selector finds its pods, its probes ask a port that it has, and the page makes the secret that it reads."""
    spec = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())["spec"]
    [container] = CONTAINER["containers"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {container[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")} <= set(ports)
    assert f"0.0.0.0:{ports['health']}" in container["args"]
    [secret] = [source["secretRef"]["name"] for source in container["envFrom"]]
    assert f"kubectl create secret generic {secret} " in text_of("docs/deploying.md")
    assert f"-t {container['image'].partition(':')[0]} " in (DEPLOY / "Dockerfile").read_text()


def test_the_page_names_what_is_there() -> None:
    """The commands of the page on deploying name files, a service and a program that the deployment has."""
    commands = "".join(block.text for block in blocks_of("docs/deploying.md", "sh"))
    named = re.findall(r"deploy/[\w.-]+", commands)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    [(service, program)] = re.findall(r"exec (\w+) python (\S+)", commands)
    assert service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert f"./{program}\n" in (DEPLOY / "Dockerfile").read_text()


def test_a_deployment_waits_longer_than_a_worker(tmp_path: Path) -> None:
    """Every file gives a worker more time to stop than its `--grace`."""
    grace = next(option.default for option in _options("worker") if option.name == "grace")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["worker"]["stop_grace_period"]
    service = re.findall(r"TimeoutStopSec=(\d+)", (DEPLOY / "durable-swarm-worker.service").read_text())[0]
    waits = [CONTAINER["terminationGracePeriodSeconds"], int(compose.removesuffix("s")), int(service)]
    assert min(waits) > grace


def _options(name: str) -> list[click.Parameter]:
    command = app.get_command(click.Context(app), name)
    assert command is not None
    return command.params


def test_the_picture_is_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script records the demo as it is today: killed in a step, and continued there."""
    monkeypatch.setenv("DURABLE_SWARM_DEMO_SECONDS", "1")
    script = ROOT / "scripts" / "record_demo.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "new.svg")], check=True, capture_output=True)
    for path in (tmp_path / "new.svg", ROOT / "docs" / "demo.svg"):
        text = "".join(ET.parse(path).getroot().itertext())
        killed = re.search(r"step (\d) of 5 \.\.\. Killed", text)
        assert killed is not None
        assert f"from step {killed[1]} of the refund" in text
        assert text.count("step 2 of 5") == 1
