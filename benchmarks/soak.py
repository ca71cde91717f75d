"""Half an hour of what can go wrong in a deployment: does anybody have to help, and is an honest site hurt?

    python benchmarks/soak.py --minutes 30

One server over TLS and eight sites with registered keys, all on this machine. Four are honest: two that nothing
happens to, one whose processes are killed with -9 again and again, one that is stopped (SIGSTOP). Four are not: a liar
(false counts), a thief (another site's client key), a giant (K = 1e8) and a silent one (never answers). What systemd
would restart is restarted here, and a run that has failed is begun again with `resume=latest`, as docs/operator.md
says; nothing else is touched. After runs with the honest four alone, to compare with, three acts:

    attacked   mh-pfedhn, all attacks, no faults: the models of all honest sites must be those of the reference
    alone      local, attacks and faults: the untouched sites' models must be those of the reference, bit for bit
    battered   mh-pfedhn, attacks and faults, also of the server: all rounds are completed, nobody is in them who lies

Prints and writes results/soak.json: the acts, what was done when, and the verdicts. Exit status 1 when one is false.
"""

import argparse
import contextlib
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from soak_sites import HOSTILE_MODULE, MODULE

from mh_pfedhn.processes import flower_environment, free_port

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-P", "-m", "mh_pfedhn"]
CALM, TOUCHED = ("calm-1", "calm-2"), ("killed", "stopped")
HONEST = CALM + TOUCHED
HOSTILE = ("liar", "thief", "giant", "silent")
PAUSE = 25.0  # seconds between two events
SHARES = {"attacked": 0.08, "alone": 0.1}  # of the time, at the pace of a round without attacks; the rest is battered
ACTS = (*SHARES, "battered")
PILOT_ROUNDS = 5
SETTINGS = {"deadline": 60, "checkpoint-every": 1, "hidden-dim": 16, "min-clients": 2, "local-epochs": 1}


class Service:
    """A command that is started again whenever it ends, as systemd would; its output is added to a log."""

    def __init__(self, name: str, words: list[str], home: Path) -> None:
        self.name = name
        self.starts = 0
        self._words, self._home = words, home
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        environment = flower_environment(os.environ) | {"FLWR_HOME": str(self._home / f"flwr-{self.name}")}
        while not self._stop.is_set():
            with (self._home / f"{self.name}.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [*COMMAND, *self._words], cwd=self._home, env=environment, stdout=log, stderr=log
                )
            self.starts += 1
            self._process.wait()
            self._stop.wait(2)

    def family(self) -> list[psutil.Process]:
        """The command's process, and all that it has started."""
        try:
            parent = psutil.Process(self._process.pid) if self._process else None
            return [parent, *parent.children(recursive=True)] if parent else []
        except psutil.NoSuchProcess:
            return []

    def signal(self, words: str, number: int) -> bool:
        """Send a signal to the first of the family whose command line matches; whether there was one."""
        for each in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if re.search(words, " ".join(each.cmdline())):
                    each.send_signal(number)
                    return True
        return False

    def restart(self) -> None:
        """End the command in an orderly way; it is started again."""
        if self._process:
            self._process.terminate()

    def end(self) -> None:
        """End the command for good."""
        self._stop.set()
        family = self.family()
        self.restart()
        _, left = psutil.wait_procs(family, timeout=40)
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._thread.join(timeout=10)


class Soak:
    """The deployment, what is done to it, and what is noted of that."""

    def __init__(self, home: Path, stack: contextlib.ExitStack) -> None:
        self.home = home
        self.port = free_port()
        self.services: dict[str, Service] = {}
        self.events: list[dict[str, Any]] = []
        self.attempts: dict[str, list[int]] = {}
        self._stack = stack
        self._began = time.monotonic()
        self._random = random.Random(0)
        names = [word for name in HONEST + HOSTILE for word in ("--site", name)]
        subprocess.run([*COMMAND, "certs", home / "certs", "--host", "127.0.0.1", *names], check=True, cwd=home)
        words = ["server", "--state", "state", "--certs", "certs", "--host", "127.0.0.1"]
        self._serve("server", [*words, "--command-port", str(free_port())])
        self._until("the server is up", functools.partial(_says, home / "server.log", "The server is up"))

    def start_sites(self, names: tuple[str, ...]) -> None:
        """Set up sites and start them. Their keys are chosen, so that every run draws the same numbers."""
        for place, name in enumerate(names):
            folder = self.home / name
            folder.mkdir(exist_ok=True)
            (folder / "site_code.py").write_text(HOSTILE_MODULE if name in HOSTILE else MODULE)
            key = "calm-1-key" if name == "thief" else f"{name}-key"
            (folder / "site.yaml").write_text(
                f'model: {{factory: "site_code:build", args: {{width: {24 + 8 * place}}}}}\n'
                f'data: {{factory: "site_code:load", args: {{ward: {place}}}}}\n'
                f"state-dir: state\nclient-key: {key}\ndevice: cpu\n"
            )
            words = ["site", "run", f"{name}/site.yaml", "--server", f"127.0.0.1:{self.port}", "--ca", "certs/ca.crt"]
            self._serve(name, [*words, "--key", f"certs/sites/{name}"])

    def _serve(self, name: str, words: list[str]) -> None:
        port = self.port if name == "server" else free_port()
        self.services[name] = Service(name, [*words, "--port", str(port)], self.home)
        self._stack.callback(self.services[name].end)

    def run(self, name: str, method: str, rounds: int, event: Callable[[], str] | None = None) -> None:
        """A run to its end, begun again while it fails; `event` happens every few seconds meanwhile."""
        settings = SETTINGS | {"method": method, "num-rounds": rounds, "run-name": name, "resume": "latest"}
        if method == "local":
            del settings["hidden-dim"]
        words = ["run", "consortium", "--superlink", "consortium", "-c"]
        words += [f"{key}={value}" for key, value in settings.items()] + [f"results-dir={self.home / 'results'}"]
        environment = flower_environment(os.environ) | {"FLWR_HOME": str(self.home / "flwr-server")}
        self.attempts[name] = []
        while not self.attempts[name] or self.attempts[name][-1] == 1:  # 2 is a mistake, and stays one
            with (self.home / f"run-{name}.log").open("ab") as log:
                process = subprocess.Popen([*COMMAND, *words], cwd=self.home, env=environment, stdout=log, stderr=log)
                while process.poll() is None:
                    time.sleep(PAUSE)
                    if event and process.poll() is None:
                        self.note(name, event())
            self.attempts[name].append(process.returncode)
            print(f"{time.monotonic() - self._began:6.0f} s  {name}: exit {process.returncode}", flush=True)

    def note(self, act: str, what: str) -> None:
        """Write down an event."""
        self.events.append({"second": round(time.monotonic() - self._began), "act": act, "event": what})
        print(f"{self.events[-1]['second']:6.0f} s  {act}: {what}", flush=True)

    def attack(self) -> str:
        """A hostile site comes once more."""
        name = self._random.choice(HOSTILE)
        self.services[name].signal("client_app.resident", signal.SIGKILL)
        self.services[name].restart()
        return f"{name} starts anew"

    def fault(self, server_too: bool) -> str:
        """Something is killed or stopped."""
        kinds = 2 * ["killed: trainer", "killed: supernode", "killed: all", "stopped: trainer", "stopped: supernode"]
        kinds += ["server: serverapp", "server: superlink"] if server_too else ["server: serverapp"]
        kind = self._random.choice([*kinds, *4 * ["attack"]])
        if kind == "attack":
            return self.attack()
        name, what = kind.split(": ")
        if what == "all":
            for each in self.services[name].family():
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            return "kill -9 of all processes of killed"
        words = {"trainer": "client_app.resident", "supernode": "flower-supernode", "serverapp": "flwr-serverapp"}
        number = signal.SIGSTOP if name == "stopped" else signal.SIGKILL
        found = self.services[name].signal(words.get(what, "deployment.guard"), number)
        if found and name == "stopped" and what == "supernode":  # nobody watches this one: it goes on by itself
            threading.Timer(40, lambda: self.services[name].signal(words[what], signal.SIGCONT)).start()
        return f"{'SIGSTOP' if name == 'stopped' else 'kill -9'} of {name}'s {what}{'' if found else ' (not there)'}"

    def model(self, site: str, run: str) -> dict[str, torch.Tensor]:
        """What a site has at the end of a run, as its operator exports it."""
        output = self.home / f"{site}-{run}.pt"
        words = ["site", "export", f"{site}/site.yaml", "--run", run, "--output"]
        subprocess.run([*COMMAND, *words, str(output)], check=True, cwd=self.home, capture_output=True)
        state: dict[str, torch.Tensor] = torch.load(output, weights_only=True)
        return state

    def lines(self, run: str) -> list[dict[str, Any]]:
        """The lines of a run's metrics."""
        return [json.loads(line) for line in (self.home / "results" / run / "metrics.jsonl").read_text().splitlines()]

    def _until(self, what: str, condition: Callable[[], bool], within: float = 120.0) -> None:
        ends = time.monotonic() + within
        while not condition():
            if time.monotonic() > ends:
                raise SystemExit(f"{what}: not within {within:g} s; see {self.home}")
            time.sleep(0.5)

    def until_connected(self, names: tuple[str, ...]) -> None:
        """Wait until SuperNodes have come."""
        for name in names:
            log = self.home / f"{name}.log"
            self._until(f"{name} is connected", functools.partial(_says, log, "SuperNode ID: "))


def _says(log: Path, text: str) -> bool:
    return log.exists() and text in log.read_text()


def soak(home: Path, minutes: float, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Play it all, and judge."""
    deployment = Soak(home, stack)
    deployment.start_sites(HONEST)
    deployment.until_connected(HONEST)
    deployment.run("pilot", "mh-pfedhn", PILOT_ROUNDS)
    seconds_a_round = sum(line["seconds"]["total"] for line in deployment.lines("pilot")[1:]) / (PILOT_ROUNDS - 1)
    rounds = {act: max(3, round(share * 60 * minutes / seconds_a_round)) for act, share in SHARES.items()}
    deployment.run("reference-attacked", "mh-pfedhn", rounds["attacked"])
    deployment.run("reference-alone", "local", rounds["alone"])

    began = time.monotonic()
    brazen = home / "liar" / "brazen"  # while it is there, the liar lies at its registration, later in its replies
    brazen.parent.mkdir()
    brazen.touch()
    deployment.start_sites(HOSTILE)
    deployment.until_connected(HOSTILE)
    deployment.run("attacked", "mh-pfedhn", rounds["attacked"], deployment.attack)
    brazen.unlink()
    deployment.services["liar"].restart()
    alone_began = time.monotonic()
    deployment.run("alone", "local", rounds["alone"], lambda: deployment.fault(server_too=False))
    left = 60 * minutes - (time.monotonic() - began)
    rounds["battered"] = max(3, round(left * rounds["alone"] / (time.monotonic() - alone_began)))
    deployment.run("battered", "mh-pfedhn", rounds["battered"], lambda: deployment.fault(server_too=True))
    minutes_taken = (time.monotonic() - began) / 60
    verdicts = judge(deployment, rounds)
    starts = {name: service.starts for name, service in deployment.services.items()}
    return {
        "minutes": round(minutes_taken, 1),
        "rounds": rounds,
        "exit-codes": deployment.attempts,
        "starts": starts,
        "verdicts": verdicts,
        "failures": {act: _failures(deployment.lines(act)) for act in ACTS},
        "last-accuracy-mean": {act: deployment.lines(act)[-1]["accuracy-mean"] for act in deployment.attempts},
        "events": deployment.events,
    }


def judge(deployment: Soak, rounds: dict[str, int]) -> dict[str, bool]:
    """What must hold."""

    def same(site: str, act: str) -> bool:
        one, other = deployment.model(site, act), deployment.model(site, f"reference-{act}")
        return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    lines = {act: deployment.lines(act) for act in ACTS}
    trained = {act: set().union(*(line["client-train-loss"] for line in lines[act])) for act in ACTS}
    failed = {failure["client"] for act in ACTS for line in lines[act] for failure in line["failure-list"]}
    verdicts = {
        f"{act}: all rounds were completed, by the run that was begun": [line["round"] for line in lines[act]]
        == list(range(1, rounds[act] + 1))
        for act in ACTS
    }
    verdicts |= {f"attacked: the model of {site} is that of the reference": same(site, "attacked") for site in HONEST}
    verdicts |= {f"alone: the model of {site} is that of the reference": same(site, "alone") for site in CALM}
    # With `local` the server learns nothing from anybody, and a K of any size costs it nothing.
    learning = [act for act in ACTS if act != "alone"]
    verdicts["nobody but the honest sites was learned from"] = all(trained[act] <= set(HONEST) for act in learning)
    verdicts["all honest sites were learned from"] = all(trained[act] >= set(HONEST) for act in ACTS)
    verdicts["no untouched site ever failed"] = not failed & set(CALM)
    verdicts["the liar, the giant and the thief were refused by name"] = {"liar", "giant", "thief"} <= failed
    return verdicts


def _failures(lines: list[dict[str, Any]]) -> dict[str, int]:
    """How often a client failed for a reason, as "client: reason"."""
    names = [f"{failure['client']}: {failure['reason']}" for line in lines for failure in line["failure-list"]]
    return {name: names.count(name) for name in sorted(set(names))}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Half an hour of what can go wrong in a deployment.")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the three acts together (default 30)")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "soak.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as home, contextlib.ExitStack() as stack:
        results = soak(Path(home), options.minutes, stack)
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({key: value for key, value in results.items() if key != "events"}, indent=2))
    return 0 if all(results["verdicts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
