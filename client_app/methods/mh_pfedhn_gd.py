"""MH-pFedHNGD's client (paper, Algorithm 2, ClientUpdate1 and ClientUpdate2): MH-pFedHNG's, which distils.

In the global exchange it keeps w_g as it came; in the personal one it trains theta_i and distils from it.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from client_app.methods.base import Outcome, Task, exchange
from client_app.methods.mh_pfedhn_g import GLOBAL_KEPT, GlobalTraining, MHpFedHNG
from client_app.site import Site
from client_app.training import Criterion, predict
from common.errors import ProtocolError
from common.options import option
from common.protocol import THETA
from common.schema import Array, Schema

_TEACHER = "teacher"  # name in the client's store
_TEACHER_ROUND = "teacher-round"  # [1] int64, the round whose w_g to distil from; 0: none


@dataclass(frozen=True, kw_only=True)
class Distillation(GlobalTraining):
    """How much is learned from the teacher."""

    temperature: float = option(
        15.0, "T: temperature of the distillation", above=0, source="section 4.1, CIFAR-100; others in the profiles"
    )
    distillation_coefficient: float = option(
        0.01,
        "c: weight of the distillation; 1 - c is that of the cross-entropy",
        minimum=0,
        maximum=1,
        source="section 4.1, CIFAR-100; others in the profiles",
    )


class MHpFedHNGD(MHpFedHNG):
    """The teacher is this round's w_g; in mode adapt the one that never changes."""

    Settings = Distillation
    settings: Distillation

    def receives(self, exchange: str, site: Site) -> Schema:
        """With theta_i for training, the round of the teacher."""
        if exchange == "keep_teacher":
            return super().receives("global_step", site)
        schema = super().receives(exchange, site)
        return {**schema, _TEACHER_ROUND: Array((1,), "int64")} if exchange == "personal" else schema

    @exchange
    def global_step(self, task: Task) -> Outcome:
        """ClientUpdate1: keep w_g as teacher, then train it."""
        self.keep_teacher(task)
        return super().global_step(task)

    @exchange
    def keep_teacher(self, task: Task) -> Outcome:
        """Keep w_g and no more, where it is frozen."""
        if self.settings.distillation_coefficient > 0:
            task.store.save(_TEACHER, {THETA: task.arrays[THETA]})
        return Outcome()

    @exchange
    def personal(self, task: Task) -> Outcome:
        """ClientUpdate2: train theta_i, with distillation where the server says that there is a teacher."""
        settings, teacher_round = self.settings, int(task.arrays[_TEACHER_ROUND])
        if teacher_round == 0 or settings.distillation_coefficient == 0:
            return self.train_personal(task)
        teacher = self._teacher_logits(task, teacher_round)

        def loss(outputs: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
            if outputs.shape != (len(indices), teacher.shape[1]):
                # Without the shape, which is nobody else's business.
                raise ProtocolError(
                    "not-distillable",
                    f"this client's model cannot learn from the global model: distillation needs {teacher.shape[1]} "
                    "outputs a sample, one a class",
                )
            return distillation_loss(
                outputs,
                targets,
                teacher[indices],
                settings.temperature,
                settings.distillation_coefficient,
                task.site.loss,
            )

        return self.train_personal(task, loss)

    def _teacher_logits(self, task: Task, teacher_round: int) -> Tensor:
        """What w_g, as received, says of each training sample. Shape [n, classes].

        The samples are not augmented and w_g stays the same, so once a round is enough.
        """
        teacher = task.store.newest(_TEACHER)
        generated = self.global_model(task.site)
        if teacher.round != teacher_round:
            raise ProtocolError("no-teacher", f"this client has not kept the global model of round {teacher_round}")
        # With the batch-norm statistics of its last training here; in mode adapt it has had none.
        generated.load(teacher.state[THETA], self.settings.anchor, task.store.newest(GLOBAL_KEPT).state)
        return predict(generated.model, task.site.train)


def distillation_loss(
    student: Tensor,
    targets: Tensor,
    teacher: Tensor,
    temperature: float,
    coefficient: float,
    criterion: Criterion = functional.cross_entropy,
) -> Tensor:
    """(1 - c) CE + c T^2 KL( softmax(teacher / T) || softmax(student / T) ), mean over the batch (Equation 8).

    `student` and `teacher` are logits [b, classes] float32, `targets` [b] int64 as a rule; CE is the site's own loss,
    `criterion`, which is cross-entropy unless the site says otherwise. The authors' code weighs the terms so;
    the equation's lambda is 1 - c, without the T^2 that keeps gradients of the same size at any T (Hinton et al. 2015).
    """
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - coefficient) * criterion(student, targets) + coefficient * temperature**2 * divergence
