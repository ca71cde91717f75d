"""From the clients' deltas to optimizer steps on the hypernetwork (paper, Algorithm 1, lines "phi =" and "v_i =").

With delta_i = theta_sent - theta_trained held constant, phi descends <theta_i(phi), delta_i>: its gradient is the
vector-Jacobian product (d theta_i / d phi)^T delta_i. Pure PyTorch.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from server_app.hypernetwork import HyperNetwork

SCHEDULES = ("joint", "per-client", "sequential")
REDUCTIONS = ("sum", "mean")


class HyperNetworkOptimizer:
    """Adam on the trunk, the heads and the embeddings that the clients of a step touched.

    Parameters
    ----------
    hn: the hypernetwork; clients may be registered before or after.
    lr: learning rate of Adam (alpha in Algorithm 1).
    schedule: `joint` takes one step with the deltas of the whole cohort; `per-client` takes one step a client, each
        with its vector-Jacobian product at the phi that the step before left; `sequential` does the same, and its
        caller also generates each client's weights from that phi (the authors' code): one delta at a time.
    reduction: `sum` or `mean` over the clients of a joint step.
    max_grad_norm: clip the norm of all gradients of a step together.
    embedding_lr: learning rate of the embeddings, where it is not that of trunk and heads.

    Raises ValueError for a schedule or reduction that is not listed above.
    """

    def __init__(
        self,
        hn: HyperNetwork,
        lr: float = 2e-4,
        schedule: str = "joint",
        reduction: str = "sum",
        max_grad_norm: float = 50.0,
        embedding_lr: float | None = None,
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule is {schedule!r}, but must be one of {', '.join(SCHEDULES)}")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction is {reduction!r}, but must be one of {', '.join(REDUCTIONS)}")
        self.hn = hn
        self.schedule = schedule
        self.reduction = reduction
        self.max_grad_norm = max_grad_norm
        groups = [{"params": [], "lr": lr}, {"params": [], "lr": lr if embedding_lr is None else embedding_lr}]
        self.adam = torch.optim.Adam(groups, fused=True)
        self._adopt_new_parameters()

    def apply(self, deltas: Mapping[str, Tensor]) -> bool:
        """Move phi and the embeddings by the deltas [K_i] of these clients; everybody else's parameters stay.

        Returns False when a step was left out because its gradient overflowed float32; the other steps were taken.
        Raises KeyError for an unknown client and ValueError for a delta of another length than K_i; then nothing moved.
        """
        for key, delta in deltas.items():
            if delta.shape != (self.hn.num_params(key),):
                expected = self.hn.num_params(key)
                raise ValueError(f"client {key!r}: delta has shape {tuple(delta.shape)}, but must have ({expected},)")
        if not deltas:
            return True
        self._adopt_new_parameters()
        if self.schedule == "joint":
            # In sorted order, so that sums do not depend on which reply came first.
            return self._step({key: deltas[key] for key in sorted(deltas)})
        return all([self._step({key: delta}) for key, delta in deltas.items()])

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Adam's state by the name of the parameter, for those that have one; the tensors are not copied."""
        state = self.adam.state
        return {name: dict(state[parameter]) for name, parameter in self.hn.named_parameters() if parameter in state}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from such a state. Raises KeyError for a name that the hypernetwork does not have."""
        self._adopt_new_parameters()
        parameters = dict(self.hn.named_parameters())
        for name, values in state.items():
            self.adam.state[parameters[name]] = {
                key: value.to(parameters[name].device) for key, value in values.items()
            }

    def _step(self, deltas: Mapping[str, Tensor]) -> bool:
        # None, never zero: Adam would move a parameter with a zero gradient by its momentum.
        self.adam.zero_grad(set_to_none=True)
        thetas, constants = [], []
        for members, vectors in self.hn.generate_by_head(deltas):
            delta = torch.zeros_like(vectors)  # the values beyond K_i are cut off, so nothing came back for them
            for row, key in zip(delta, members, strict=True):
                row[: len(deltas[key])] = deltas[key]
            thetas.append(vectors)
            constants.append(delta / len(deltas) if self.reduction == "mean" else delta)
        torch.autograd.backward(thetas, grad_tensors=constants)
        finite = self._clip()
        if finite:
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)  # gradients are as large as the network: do not hold them between rounds
        return finite

    def _clip(self) -> bool:
        """Bring the norm of all gradients together below the limit; False when it is not finite."""
        touched = [parameter for _, parameter in sorted(self.hn.named_parameters()) if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in touched if parameter.grad is not None])
        # PyTorch scales by 1 below the limit too, which would cost a pass over gradients as large as the network.
        if norm > self.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(touched, self.max_grad_norm, norm)
        return bool(torch.isfinite(norm))

    def _adopt_new_parameters(self) -> None:
        shared, embeddings = self.adam.param_groups
        known = {id(parameter) for group in (shared, embeddings) for parameter in group["params"]}
        for name, parameter in self.hn.named_parameters():
            if id(parameter) not in known:
                group = embeddings if name.startswith("embeddings.") else shared
                group["params"].append(parameter)


def mean_delta(deltas: Sequence[tuple[Tensor, int | float]]) -> Tensor:
    """Weighted mean of deltas [K] of one model: sum_i (m_i / M) delta_i, with m_i the samples that each came from.

    The global step of Algorithm 2 (Equation 6) and FedAvg take it. `deltas` holds (delta_i, m_i) and is not empty.
    """
    total = sum(weight for _, weight in deltas)  # M
    return torch.stack([weight / total * delta for delta, weight in deltas]).sum(dim=0)
