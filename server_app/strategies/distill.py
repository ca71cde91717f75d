"""MH-pFedHNG and MH-pFedHNGD (paper, section 3.3, Algorithm 2): MH-pFedHN with a global model.

A public model of K_g parameters has an embedding v_g of its own, and the head of tau_g. Each round has two steps:

1. w_g is generated and sent; the clients that deploy the global model train it and return delta_{g,i}; the server takes
   one step with sum_i (m_i / M) delta_{g,i}, which moves the trunk, the head of tau_g and v_g alone.
2. MH-pFedHN's exchange from the updated phi, in which the clients of GD distil from w_g as they received it.

HNG is GD without the distillation.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, WARNING

import torch
from flwr.app import Message
from flwr.common import log
from flwr.serverapp import Grid

from common.errors import UserError
from common.protocol import DELTA, GLOBAL, THETA, Instructions
from server_app.hypernetwork import Member
from server_app.optim import mean_delta
from server_app.registry import Client
from server_app.strategies.base import Run, Update
from server_app.strategies.hypernet import HyperNetStrategy

GLOBAL_KEY = "(global model)"  # no client can have this key: it holds characters that a client key may not


class GlobalModelStrategy(HyperNetStrategy):
    """Two exchanges a round: the global model's, then the personal one."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._teacher_rounds: dict[str, int] = {}  # client -> the round whose w_g it was sent and kept
        self._unanswered: set[str] = set()  # clients of the last cohort that brought no good update
        if run.start and not self._has_global_model() and not self.is_global_model_trained:
            raise UserError(
                f"{run.start.path} has no global model: it is of a run with method "
                f"{run.start.config.get('method')!r}; adapt it with that method."
            )

    @property
    def global_model(self) -> str:
        """Told to clients when they register, so that those who deploy it can answer with K_g."""
        return self.config.global_model

    def admit(self, clients: Sequence[Client]) -> None:
        """Add the clients, and the global model with the first of them that deploy it."""
        sizes = Counter(client.global_num_params for client in clients if client.global_num_params)
        members = {client.key: Member(client.num_params, client.group) for client in clients}
        if sizes and not self._has_global_model():
            members[GLOBAL_KEY] = Member(min(sizes, key=lambda size: (-sizes[size], size)))
        self.add_members(members)
        for client in clients:
            if client.global_num_params and client.global_num_params != self.hn.num_params(GLOBAL_KEY):
                log(
                    WARNING,
                    "Client %s has no part in the global model: it has %d parameters there, elsewhere %d.",
                    client.key,
                    client.global_num_params,
                    self.hn.num_params(GLOBAL_KEY),
                )
                client.global_num_params = 0

    def prepare(self, server_round: int, cohort: Sequence[Client], grid: Grid) -> None:
        """Steps 1 to 5 of the paper's Figure 2: generate w_g, have it trained, learn from what comes back."""
        for key in self._unanswered:
            self._teacher_rounds.pop(key, None)  # it may have lost what it kept
        self._unanswered = {client.key for client in cohort}
        deploying = [client for client in cohort if client.global_num_params]
        learns = self.is_global_model_trained
        if not learns:
            # A frozen w_g is the same in every round: once is enough, and only as a teacher.
            deploying = [client for client in deploying if client.key not in self._teacher_rounds and self._distils]
        if not deploying:
            return
        with self.timed("generate"), torch.no_grad():
            (w_g,) = self.hn.generate([GLOBAL_KEY])
        instructions = self.instructions(server_round, evaluate=False)
        if not learns:
            instructions = dataclasses.replace(instructions, local_epochs=0)
        told, vectors = [instructions] * len(deploying), [{THETA: w_g.cpu()}] * len(deploying)
        requests = self.requests(GLOBAL, deploying, told, vectors)
        self.exchange(requests, deploying, self._aggregate_global, grid, self.config.quorum)

    def update(self, updates: Mapping[str, Update]) -> None:
        """Algorithm 2's second update, which is Algorithm 1's."""
        self._unanswered -= updates.keys()
        super().update(updates)

    def instructions(self, server_round: int, evaluate: bool) -> Instructions:
        """HNG does not distil, so its clients need not keep w_g."""
        instructions = super().instructions(server_round, evaluate)
        return instructions if self._distils else dataclasses.replace(instructions, distillation_coefficient=0.0)

    @property
    def is_global_model_trained(self) -> bool:
        """Not in mode adapt, where all that was trained before is frozen."""
        return self.config.mode == "train"

    def instruct(self, client: Client, instructions: Instructions) -> Instructions:
        """Have a client distil, if it has a teacher: this round's w_g, or in mode adapt the one that never changes."""
        teacher_round = self._teacher_rounds.get(client.key, 0)
        usable = teacher_round == instructions.server_round or not self.is_global_model_trained
        return dataclasses.replace(instructions, teacher_round=teacher_round if usable and self._distils else 0)

    @property
    def _distils(self) -> bool:
        return self.config.method == "mh-pfedhn-gd" and self.config.distillation_coefficient > 0

    def _has_global_model(self) -> bool:
        return hasattr(self, "hn") and GLOBAL_KEY in self.hn.members

    def _aggregate_global(self, replies: Iterable[Message]) -> None:
        """Algorithm 2's first update of phi and v_g, with all good replies."""
        num_params = self.hn.num_params(GLOBAL_KEY)
        learns = self.is_global_model_trained
        updates = self.collect(
            replies,
            lambda client: {DELTA: num_params} if learns else {},
            self.record.extra_losses.setdefault("global", {}) if learns else {},
        )
        self._teacher_rounds |= dict.fromkeys(updates, self.record.round)
        if learns and updates:
            delta = mean_delta([(update.vectors[DELTA], update.num_examples) for update in updates.values()])
            with self.timed("update"):
                self.begin_update()
                if not self.optimizer.apply({GLOBAL_KEY: delta}):
                    log(WARNING, "The global step's gradient overflowed: the step was left out.")
        elif learns:
            log(INFO, "Round %d: no client trained the global model; it stays as it is.", self.record.round)
