"""deploy/: what runs several gateways, checked by its own program where there is one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from gsocks import config
from gsocks.units import parse_duration
from tests.support.fleet_programs import write_users
from tests.support.program import ROOT, gsocks, run

FLEET = ROOT / "deploy" / "fleet"


def test_haproxy_takes_its_config() -> None:
    checked = run("haproxy", "-c", "-f", FLEET / "haproxy.cfg")
    assert checked.returncode == 0, checked.stderr


def test_docker_compose_takes_its_file(tmp_path: Path) -> None:
    checked = run("docker-compose", "-f", FLEET / "compose.yaml", "config", "--quiet")
    assert checked.returncode == 0, checked.stderr
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((FLEET / "compose.yaml").read_text().replace("hostname:", "hostnam:"))
    assert run("docker-compose", "-f", wrong, "config", "--quiet").returncode != 0


def test_prometheus_takes_its_config(tmp_path: Path) -> None:
    text = (FLEET / "prometheus.yml").read_text()
    shutil.copy(ROOT / "deploy" / "prometheus" / "alerts.yml", tmp_path)
    (tmp_path / "token").write_text("token")
    path = tmp_path / "prometheus.yml"
    path.write_text(text.replace("/run/secrets/admin-token", str(tmp_path / "token")))
    checked = run("promtool", "check", "config", path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "rules found" in checked.stdout


def test_gsocks_takes_the_config_of_the_gateways(tmp_path: Path) -> None:
    gateway(tmp_path)
    write_users(tmp_path, ["alice"])
    (tmp_path / "exits.txt").write_text("http://proxy.example:8080\n")
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "token").write_text("0123456789abcdef0123456789abcdef\n")
    (tmp_path / "token").chmod(0o600)
    text = text.replace("/run/secrets/admin-token", "token").replace("valkey:6379", "127.0.0.1:9")
    (tmp_path / "config.yaml").write_text(text)
    checked = gsocks("check", "-c", tmp_path / "config.yaml")
    assert checked.returncode == 0, checked.stderr
    assert "each gateway goes on alone meanwhile" in checked.stdout


def test_each_gateway_has_the_secrets_that_its_config_names() -> None:
    compose = yaml.safe_load((FLEET / "compose.yaml").read_text())
    gateways = [each for name, each in compose["services"].items() if name.startswith("gateway")]
    of = yaml.safe_load((FLEET / "gateway.yaml").read_text())
    named = {of["state"]["shared_key_file"], of["admin"]["token_file"]}
    assert len(gateways) == 3
    for each in gateways:
        assert {f"/run/secrets/{name}" for name in each["secrets"]} == named
    assert compose["secrets"].keys() >= {"admin-token", "shared-key"}


def gateway(folder: Path) -> config.Config:
    assert gsocks("keygen", folder / "shared-key").returncode == 0
    text = (FLEET / "gateway.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("/run/secrets/shared-key", "shared-key"))
    for name in ("users", "exits.txt"):
        (folder / name).touch(0o600)
    return config.load(folder / "config.yaml")


def test_the_gateways_of_compose_are_those_of_the_balancer_and_of_prometheus(
    tmp_path: Path,
) -> None:
    services = yaml.safe_load((FLEET / "compose.yaml").read_text())["services"]
    names = [name for name in services if name.startswith("gateway")]
    assert len(names) == 3
    balancer = (FLEET / "haproxy.cfg").read_text()
    targets = yaml.safe_load((FLEET / "prometheus.yml").read_text())["scrape_configs"][0]
    assert targets["static_configs"][0]["targets"] == [f"{name}:9090" for name in names]
    settings = gateway(tmp_path)
    assert settings.local is not None
    assert settings.health is not None
    (address,) = settings.local.addresses
    (health,) = settings.health.listen
    assert str(address).endswith(":1080")
    assert str(health).endswith(":9091")
    assert "check port 9091 inter 1s fall 2" in balancer
    for name in names:
        assert f"server {name} {name}:1080\n" in balancer
        grace = parse_duration(services[name]["stop_grace_period"])
        notice = settings.health.drain_notice
        assert notice is not None
        assert 2 < notice < grace - settings.local.timeouts.drain
    for each in services.values():
        for volume in each.get("volumes", ()):
            path = volume.partition(":")[0]
            if path.startswith(".") and path not in ("./users", "./exits.txt"):
                assert (FLEET / path).exists(), path


def test_kubernetes_takes_its_manifests(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("kubernetes-validate")
    manifests = ROOT / "deploy" / "kubernetes" / "gsocks.yaml"
    checked = run(program, "--strict", manifests)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert (checked.stdout + checked.stderr).count(" passed for resource ") == 4
    wrong = tmp_path / "gsocks.yaml"
    wrong.write_text(manifests.read_text().replace("periodSeconds:", "periodSecond:"))
    assert run(program, "--strict", wrong).returncode != 0


def test_the_manifests_of_kubernetes_belong_together() -> None:
    text = (ROOT / "deploy" / "kubernetes" / "gsocks.yaml").read_text()
    found: dict[str, Any] = {each["kind"]: each for each in yaml.safe_load_all(text)}
    assert set(found) == {
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
    }
    pods = found["Deployment"]["spec"]["template"]
    labels = pods["metadata"]["labels"]
    for selector in (
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector == labels
    (container,) = pods["spec"]["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports["health"] == 9091
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    scaled = found["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    metric = scaled["metrics"][0]["pods"]["metric"]["name"]
    assert metric in (ROOT / "docs" / "operations.md").read_text()
