"""What docker/ promises, read from its files; it needs no engine. docker/DEMO.md tells what was tried on one."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from common.config import load_config

DOCKER = Path(__file__).resolve().parents[2] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
SITES = ["site-a", "site-b", "site-c", "site-d"]
LONG_RUNNING = sorted(set(SERVICES) - {"certs"})
INSTRUCTION = re.compile(r"(?m)^([A-Z]+)\s+(.*)$")


def instructions(name):
    """The arguments of a Dockerfile's instructions of one kind."""
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    return [arguments for kind, arguments in INSTRUCTION.findall(text) if kind == name]


def mounts(service):
    """Source and target of everything that a service mounts, without `:ro`."""
    return [tuple(volume.split(":")[:2]) for volume in SERVICES[service].get("volumes", [])]


def test_there_are_a_server_four_sites_and_a_run():
    assert sorted(SERVICES) == sorted(["certs", "machine", "server", "run", *SITES])


def test_only_certs_is_root_and_it_ends_at_once_without_a_network():
    assert instructions("USER")[-1] not in ("root", "0")
    assert [name for name, service in SERVICES.items() if "user" in service] == ["certs"]
    assert SERVICES["certs"]["network_mode"] == "none"
    assert "restart" not in SERVICES["certs"]


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_what_runs_long_is_watched_restarted_and_limited(name):
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    # A run that cannot succeed is not tried for ever; the others are.
    assert re.fullmatch(r"on-failure:\d+" if name == "run" else "unless-stopped", service["restart"])
    assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_what_runs_long_has_no_privileges(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "pid", "ports"} & service.keys()


def test_no_service_without_tls():
    assert "--certs" in SERVICES["server"]["command"]
    for name in SITES:
        assert {"--ca", "--key"} <= set(shlex.split(SERVICES[name]["command"]))
    assert not any("insecure" in str(service) for service in SERVICES.values())


@pytest.mark.parametrize("name", ["server", "run", "machine", "certs"])
def test_no_site_folder_outside_of_its_site(name):
    assert not [source for source, _ in mounts(name) if re.search(r"sites/|site-.-state", source)]


@pytest.mark.parametrize("name", ["server", "run"])
def test_the_server_sees_no_key_of_a_site_and_no_authority(name):
    assert {source for source, _ in mounts(name) if "certs" in source} == {"server-certs"}
    assert "authority" not in dict(mounts(name))


@pytest.mark.parametrize("name", SITES)
def test_a_site_sees_its_own_folder_key_and_state_alone(name):
    sources = dict(mounts(name))
    letter = name.removeprefix("site-")
    assert [source for source in sources if (DOCKER / source).is_dir() and "sites" in source] == [f"./sites/{letter}"]
    assert {source for source in sources if source in COMPOSE["volumes"]} == {f"{name}-certs", f"{name}-state"}
    assert (sources[f"./sites/{letter}"], sources[f"{name}-certs"]) == ("/site", "/certs")


@pytest.mark.parametrize("name", [*SITES, "server"])
def test_only_state_and_results_can_be_written(name):
    writable = {volume.split(":")[1] for volume in SERVICES[name]["volumes"] if not volume.endswith(":ro")}
    assert writable <= {"/state", "/results"}


def test_every_mount_is_there():
    for name in SERVICES:
        for source, _ in mounts(name):
            assert source in COMPOSE["volumes"] or (DOCKER / source).exists(), source


def test_run_and_server_share_an_address_that_outlives_both():
    assert SERVICES["run"]["network_mode"] == SERVICES["server"]["network_mode"] == "service:machine"
    assert SERVICES["machine"]["networks"]["default"]["aliases"] == ["server"]


def test_the_sites_models_differ():
    models = {(DOCKER / "sites" / name[-1] / "nets.py").read_text() for name in SITES}
    assert len(models) == len(SITES)


def test_the_image_holds_the_project_and_nothing_else():
    allowed = {"constraints.txt", "pyproject.toml", "README.md"}
    allowed |= {"mh_pfedhn", "server_app", "client_app", "common", "conf"}
    copied = {source for arguments in instructions("COPY") for source in arguments.split()[:-1]}
    assert copied == allowed
    assert not instructions("ADD")


def test_what_is_sent_to_the_builder_is_what_the_image_holds():
    copied = {source for arguments in instructions("COPY") for source in arguments.split()[:-1]}
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
    packed = re.search(r"tar -c (.*?)\|", (DOCKER / "demo.sh").read_text().replace("\\\n", " "), re.DOTALL)
    assert packed
    words = {word for word in shlex.split(packed[1]) if not word.startswith("-")}
    assert words == copied | {"docker/Dockerfile"}


def test_the_run_can_do_without_one_site_and_keeps_checkpoints():
    config = load_config({"profile": str(DOCKER / "consortium.yaml")})
    assert (config.dataset, config.min_clients) == ("sites", len(SITES) - 1)
    assert 0 < config.checkpoint_every < config.num_rounds
    assert config.run_name
    assert "resume=latest" in SERVICES["run"]["command"]
    assert config.results_dir in dict(map(reversed, mounts("server")))
