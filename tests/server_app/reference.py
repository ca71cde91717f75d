"""An independent float64 calculation of the hypernetwork and of its updates (Algorithms 1 and 2), to compare with.

Nothing here uses autograd, batching or torch's optimizer: chunks are visited by a plain loop, the gradient is
back-propagated by hand, Adam and the norm clipping are written out. Starting values are copied from the
implementation under test; after that the two calculations go separate ways.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from server_app.hypernetwork import HyperNetwork
from server_app.optim import HyperNetworkOptimizer

Array = NDArray[np.float64]
Name = tuple[str | int, ...]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

CHUNK = 7
# tau 5 (last chunk partly cut), tau 2 (exact), tau 5 again with another K, tau 1 exact, tau 1 with K < N
CLIENTS = {"five": 33, "two": 14, "five-too": 30, "one": 7, "tiny": 3}


def build(
    clients: dict[str, int] = CLIENTS, groups: dict[str, str] | None = None, **overrides: float | str
) -> HyperNetwork:
    """The implementation under test, small, with these clients registered in this order."""
    options = {"chunk_size": CHUNK, "embedding_dim": 6, "hidden_dim": 8, "head_init_scale": 1.0, "seed": 3}
    hypernetwork = HyperNetwork(**(options | overrides))
    for key, num_params in clients.items():
        hypernetwork.register(key, num_params, (groups or {}).get(key, ""))
    return hypernetwork


def output_layer(heads: str, key: str, group: str, tau: int, chunk: int) -> Name:
    """Which output layer makes a chunk of a client: those with the same name share it (section 3.2, appendix C.5)."""
    if heads == "none":
        return "head", "everyone"
    if heads == "per-client":
        return "head", "of", key, chunk
    if heads == "by-architecture" and group:
        return "head", tau, group, chunk
    return "head", tau, chunk


def implementation_tensors(
    hypernetwork: HyperNetwork, clients: dict[str, int], chunk_size: int
) -> dict[Name, tuple[nn.Parameter, int | None]]:
    """Every trainable array under the reference's name: the implementation's parameter, and its row where stacked."""
    named: dict[Name, tuple[nn.Parameter, int | None]] = {}
    linears = [module for module in hypernetwork.trunk if isinstance(module, nn.Linear)]
    for layer, linear in enumerate(linears):
        named["trunk", layer, "weight"] = (linear.weight, None)
        named["trunk", layer, "bias"] = (linear.bias, None)
    for key, num_params in clients.items():
        named["embedding", key] = (hypernetwork.embedding(key), None)
        tau, heads = -(-num_params // chunk_size), hypernetwork.shared_by
        head = hypernetwork.heads[str(tau)] if heads == "by-tau" else hypernetwork.head(key)
        for chunk in range(tau):
            name = output_layer(heads, key, hypernetwork.members[key].group, tau, chunk)
            row = 0 if heads == "none" else chunk
            named[*name, "weight"] = (head.weight, row)
            named[*name, "bias"] = (head.bias, row)
    return named


def _as_array(tensor: Tensor, row: int | None) -> Array:
    return (tensor if row is None else tensor[row]).detach().cpu().numpy().astype(np.float64)


class Reference:
    """The hypernetwork and its optimizer as one object, with one separate linear layer for every chunk of every head.

    `clients` maps a client key to its K; the global model of Algorithm 2 is one of them. `values` holds the parameters;
    `steps`, `first` and `second` hold Adam's state and have an entry only for what has been updated at least once.
    """

    def __init__(self, hypernetwork: HyperNetwork, clients: dict[str, int], chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.heads = hypernetwork.shared_by
        self.clients: dict[str, int] = {}
        self.groups: dict[str, str] = {}
        self.values: dict[Name, Array] = {}
        self.steps: dict[Name, int] = {}
        self.first: dict[Name, Array] = {}
        self.second: dict[Name, Array] = {}
        self.adopt(hypernetwork, clients)
        self.layers = len([name for name in self.values if name[0] == "trunk"]) // 2

    def adopt(self, hypernetwork: HyperNetwork, clients: dict[str, int]) -> None:
        """Copy what these clients need and the reference does not have yet."""
        self.clients |= clients
        self.groups |= {key: hypernetwork.members[key].group for key in clients}
        for name, (parameter, row) in implementation_tensors(hypernetwork, clients, self.chunk_size).items():
            if name not in self.values:
                self.values[name] = _as_array(parameter, row).copy()

    def tau(self, key: str) -> int:
        return -(-self.clients[key] // self.chunk_size)

    def layer(self, key: str, chunk: int) -> Name:
        """Name of the output layer of a chunk, without `weight` or `bias`."""
        return output_layer(self.heads, key, self.groups[key], self.tau(key), chunk)

    def _activations(self, key: str, chunk: int) -> list[Array]:
        """The embedding row of one chunk, then the output of every trunk layer."""
        activations = [self.values["embedding", key][chunk]]
        for layer in range(self.layers):
            before = self.values["trunk", layer, "weight"] @ activations[-1] + self.values["trunk", layer, "bias"]
            activations.append(np.where(before > 0, before, 0.0))
        return activations

    def generate(self, key: str) -> Array:
        """theta_i, [K_i]."""
        pieces = []
        for chunk in range(self.tau(key)):
            hidden, layer = self._activations(key, chunk)[-1], self.layer(key, chunk)
            pieces.append(hidden @ self.values[*layer, "weight"] + self.values[*layer, "bias"])
        return np.concatenate(pieces)[: self.clients[key]]

    def gradients(self, deltas: dict[str, Array]) -> dict[Name, Array]:
        """Gradient of sum_i <theta_i, delta_i>; only the parameters that these clients use have an entry."""
        gradients: dict[Name, Array] = {}

        def add(name: Name, gradient: Array) -> None:
            gradients[name] = gradients.get(name, np.zeros_like(self.values[name])) + gradient

        for key, delta in deltas.items():
            tau = self.tau(key)
            padded = np.zeros(tau * self.chunk_size)  # what is cut off theta_i has no influence
            padded[: self.clients[key]] = np.asarray(delta, dtype=np.float64)
            embedding_gradient = np.zeros_like(self.values["embedding", key])
            for chunk in range(tau):
                upstream = padded[chunk * self.chunk_size : (chunk + 1) * self.chunk_size]
                activations = self._activations(key, chunk)
                layer_name = self.layer(key, chunk)
                add((*layer_name, "weight"), np.outer(activations[-1], upstream))
                add((*layer_name, "bias"), upstream)
                flowing = self.values[*layer_name, "weight"] @ upstream
                for layer in reversed(range(self.layers)):
                    flowing = flowing * (activations[layer + 1] > 0)
                    add(("trunk", layer, "weight"), np.outer(flowing, activations[layer]))
                    add(("trunk", layer, "bias"), flowing)
                    flowing = self.values["trunk", layer, "weight"].T @ flowing
                embedding_gradient[chunk] = flowing
            add(("embedding", key), embedding_gradient)
        return gradients

    def step(self, gradients: dict[Name, Array], lr: float, max_grad_norm: float) -> float:
        """One clipped Adam step on exactly the parameters in `gradients`; returns the norm before clipping."""
        norm = float(np.sqrt(sum(np.sum(gradient**2) for gradient in gradients.values())))
        scale = min(1.0, max_grad_norm / (norm + 1e-6))
        for name, unclipped in gradients.items():
            gradient = unclipped * scale
            count = self.steps.get(name, 0) + 1
            first = BETA1 * self.first.get(name, np.zeros_like(gradient)) + (1 - BETA1) * gradient
            second = BETA2 * self.second.get(name, np.zeros_like(gradient)) + (1 - BETA2) * gradient**2
            first_unbiased = first / (1 - BETA1**count)
            second_unbiased = second / (1 - BETA2**count)
            self.values[name] = self.values[name] - lr * first_unbiased / (np.sqrt(second_unbiased) + EPSILON)
            self.steps[name], self.first[name], self.second[name] = count, first, second
        return norm

    def apply(
        self,
        deltas: dict[str, Array],
        lr: float,
        schedule: str = "joint",
        reduction: str = "sum",
        max_grad_norm: float = 50.0,
    ) -> list[float]:
        """One call of the optimizer under test; returns the gradient norm of every step made."""
        if schedule == "joint":
            gradients = self.gradients(deltas)
            if reduction == "mean":
                gradients = {name: gradient / len(deltas) for name, gradient in gradients.items()}
            return [self.step(gradients, lr, max_grad_norm)]
        return [self.step(self.gradients({key: delta}), lr, max_grad_norm) for key, delta in deltas.items()]

    def apply_global(
        self, key: str, replies: dict[str, tuple[Array, int]], lr: float, max_grad_norm: float = 50.0
    ) -> float:
        """The global step of Algorithm 2: `replies` holds (delta_{g,i}, m_i) of each client; `key` is the model's."""
        total = sum(num_examples for _, num_examples in replies.values())
        mean = np.zeros(self.clients[key])
        for delta, num_examples in replies.values():
            mean += num_examples / total * delta
        return self.step(self.gradients({key: mean}), lr, max_grad_norm)


def assert_same_values(hypernetwork: HyperNetwork, reference: Reference, lr: float) -> None:
    """All parameters agree to a hundredth of one Adam step.

    Adam divides a gradient by its own size, so where a float32 gradient is small by cancellation its rounding error is
    a visible part of the step. A hundredth of a step allows for that; every mistake that matters here (sign, sum for
    mean under clipping, a wrong step count, a moved head) shows up as a good part of a step.
    """
    tensors = implementation_tensors(hypernetwork, reference.clients, reference.chunk_size)
    for name, (parameter, row) in tensors.items():
        np.testing.assert_allclose(
            _as_array(parameter, row), reference.values[name], rtol=1e-6, atol=0.01 * lr, err_msg=f"value of {name}"
        )


def assert_same_adam_state(optimizer: HyperNetworkOptimizer, hypernetwork: HyperNetwork, reference: Reference) -> None:
    """Adam's moments and step counts agree; a parameter that no step has touched has no state at all.

    The moments are plain sums of gradients, so they see what the normalised step hides: a factor on the gradient
    (mean for sum, clipping). float32 rounds to 6e-8 of the largest term of such a sum; the differences between the
    two calculations' parameters (see `assert_same_values`) feed back into later gradients, hence 1e-3 rather than 1e-6.
    """
    tensors = implementation_tensors(hypernetwork, reference.clients, reference.chunk_size)
    for name, (parameter, row) in tensors.items():
        state = optimizer.adam.state.get(parameter, {})
        if name not in reference.steps:
            assert not state, f"{name} has Adam state although no client of any step used it"
            continue
        assert int(state["step"]) == reference.steps[name], f"step count of {name}"
        for entry, expected in (("exp_avg", reference.first[name]), ("exp_avg_sq", reference.second[name])):
            np.testing.assert_allclose(
                _as_array(state[entry], row),
                expected,
                rtol=1e-3,
                atol=1e-4 * np.abs(expected).max(),
                err_msg=f"{entry} of {name}",
            )


def random_deltas(clients: dict[str, int], seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    """One float32 delta a client, in the order of `clients`; drawn from the seed and the client's name only."""
    deltas = {}
    for key, num_params in clients.items():
        generator = np.random.default_rng([seed, *key.encode()])
        deltas[key] = torch.from_numpy((scale * generator.standard_normal(num_params)).astype(np.float32))
    return deltas


def as_arrays(deltas: dict[str, Tensor]) -> dict[str, Array]:
    return {key: _as_array(delta, None) for key, delta in deltas.items()}
