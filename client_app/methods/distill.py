"""MH-pFedHNG's and MH-pFedHNGD's client (paper, Algorithm 2, ClientUpdate1 and ClientUpdate2).

In the global exchange it trains w_g and keeps it as it came; in the personal one it trains theta_i and distils from it.
"""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from client_app.methods import hypernet
from client_app.methods.base import Task, Vectors
from client_app.site import Site
from client_app.training import Criterion, predict
from common.errors import ProtocolError
from common.protocol import THETA

incoming, load = hypernet.incoming, hypernet.load

_KEPT = "global-kept"
_TEACHER = "teacher"


def incoming_global(site: Site, global_model: str) -> Mapping[str, int]:
    """w_g [K_g]."""
    return {THETA: site.global_model(global_model).parameters.size}


def train_global(task: Task) -> tuple[float, Vectors]:
    """ClientUpdate1: keep w_g as teacher, train it, return delta_{g,i}; with 0 local epochs, keep it and no more."""
    told = task.instructions
    generated = task.site.global_model(told.global_model)
    if told.distillation_coefficient > 0:
        task.store.save(_TEACHER, {THETA: task.vectors[THETA]})
    if told.local_epochs == 0:
        return 0.0, {}
    generated.load(task.vectors[THETA], told.anchor, task.store.load(_KEPT))
    return hypernet.train_and_keep(task, generated, lambda: task.train(generated.model, purpose="/global"), _KEPT)


def train(task: Task) -> tuple[float, Vectors]:
    """ClientUpdate2: train theta_i, with distillation where the server says that there is a teacher."""
    told, personal = task.instructions, task.site.personal
    if told.teacher_round == 0:
        return hypernet.train(task)
    teacher = _teacher_logits(task)

    def loss(outputs: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        if outputs.shape != (len(indices), teacher.shape[1]):
            # Without the shape, which is nobody else's business.
            raise ProtocolError(
                "not-distillable",
                f"this client's model cannot learn from the global model: distillation needs {teacher.shape[1]} "
                "outputs a sample, one a class",
            )
        return distillation_loss(
            outputs, targets, teacher[indices], told.temperature, told.distillation_coefficient, task.site.loss
        )

    return hypernet.train_and_keep(task, personal, lambda: task.train(personal.model, loss), hypernet.KEPT)


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


def _teacher_logits(task: Task) -> Tensor:
    """What w_g, as received, says of each training sample. Shape [n, classes].

    The samples are not augmented and w_g stays the same, so once a round is enough.
    """
    told = task.instructions
    teacher = task.store.newest(_TEACHER)
    generated = task.site.global_model(told.global_model)
    if teacher.round != told.teacher_round:
        raise ProtocolError("no-teacher", f"this client has not kept the global model of round {told.teacher_round}")
    # With the batch-norm statistics of the training that it has just had here.
    generated.load(teacher.state[THETA], told.anchor, task.store.newest(_KEPT).state)
    return predict(generated.model, task.site.train)
