"""MH-pFedHNGD (paper, section 3.3, Algorithm 2): MH-pFedHNG whose clients distil from the global model.

The teacher is w_g as it was sent in the global exchange; the client keeps it, and it is never sent twice.
"""

from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor

from common.arrays import Arrays
from common.config import Config
from server_app.client import Client
from server_app.methods.base import Exchange, Replies
from server_app.methods.mh_pfedhn_g import MHpFedHNG

_TEACHER_ROUND = "teacher-round"  # [1] int64, the round whose w_g a client distils from; 0: none


class MHpFedHNGD(MHpFedHNG):
    """Tells each client which w_g to distil from: this round's, or in mode adapt the one that never changes."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._teachers: dict[str, int] = {}  # client -> the round whose w_g it was sent and kept
        self._unanswered: set[str] = set()  # clients of the last cohort that brought no good update

    def global_step(self, cohort: Sequence[Client]) -> Generator[Exchange, Replies, Replies]:
        """The global step also hands out the teachers."""
        for key in self._unanswered:
            self._teachers.pop(key, None)  # it may have lost what it kept
        self._unanswered = {client.key for client in cohort}
        if self.config.mode == "adapt":
            # A frozen w_g is the same in every round: once is enough.
            lacking = [client for client in self.with_global_model(cohort) if client.key not in self._teachers]
            replies = Replies()
            if lacking:
                replies = yield Exchange("keep_teacher", to=lacking, send=self.w_g, losses="")
        else:
            replies = yield from super().global_step(cohort)
        self._teachers |= dict.fromkeys(replies, self.server_round)
        return replies

    def for_training(self, clients: Sequence[Client]) -> Mapping[str, Arrays]:
        """Theta_i, and the round of the teacher; 0: do not distil."""
        return {
            key: {**theta, _TEACHER_ROUND: torch.tensor([self._teacher_of(key)])}
            for key, theta in self.generate(clients).items()
        }

    def learn(self, deltas: Mapping[str, Tensor]) -> None:
        """Algorithm 2's second update, which is Algorithm 1's; who brought a delta has kept its teacher."""
        self._unanswered -= deltas.keys()
        super().learn(deltas)

    def _teacher_of(self, key: str) -> int:
        teacher_round = self._teachers.get(key, 0)
        return teacher_round if teacher_round == self.server_round or self.config.mode == "adapt" else 0
