"""The server's hypernetwork (paper, section 3.2, Equation 3): shared trunk, a head for each tau, an embedding a client.

Notation of the paper: K parameters of a client's model, N values a chunk, tau = ceil(K / N) chunks, E the size of an
embedding vector, H the hidden size. Pure PyTorch; nothing here knows about Flower or about a client's architecture.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from common.seeding import seeded_generator


class Head(nn.Module):
    """The output layers of all tau chunks, stacked, so that clients with the same tau share one batched product."""

    def __init__(self, num_chunks: int, hidden_dim: int, chunk_size: int) -> None:
        super().__init__()
        self.weight = Parameter(torch.empty(num_chunks, hidden_dim, chunk_size))  # [tau, H, N]
        self.bias = Parameter(torch.empty(num_chunks, chunk_size))  # [tau, N]

    def forward(self, features: Tensor) -> Tensor:
        """Map features [tau, n, H] of n clients to their chunks [tau, n, N]: features[j] @ W[j] + b[j]."""
        return torch.baddbmm(self.bias.unsqueeze(1), features, self.weight)


class HyperNetwork(nn.Module):
    """Generates every client's weights from its private embedding (Equation 3).

    Parameters
    ----------
    chunk_size: N, values generated a chunk.
    embedding_dim: E, size of one embedding vector; a client has tau of them.
    hidden_dim: H, width of the trunk.
    hidden_layers: number of Linear + ReLU pairs in the trunk.
    head_init_scale: factor on PyTorch's default initial weights and biases of a head.
    embedding_init_std: standard deviation of the initial embeddings.
    seed: initial values follow from the seed, a head's tau and a client's key alone, so the order in which clients
        arrive does not matter.
    """

    def __init__(
        self,
        chunk_size: int = 3072,
        embedding_dim: int = 64,
        hidden_dim: int = 128,
        hidden_layers: int = 3,
        head_init_scale: float = 0.1,
        embedding_init_std: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.embedding_dim = embedding_dim
        self.hidden_dim = hidden_dim
        self.head_init_scale = head_init_scale
        self.embedding_init_std = embedding_init_std
        self.seed = seed

        layers: list[nn.Module] = []
        for layer in range(hidden_layers):
            linear = nn.utils.skip_init(nn.Linear, embedding_dim if layer == 0 else hidden_dim, hidden_dim)
            self._init_linear(linear.weight, linear.bias, fan_in=linear.in_features, name=f"trunk/{layer}")
            layers += [linear, nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleDict()  # str(tau) -> Head
        self.embeddings = nn.ParameterDict()  # _name(client key) -> Parameter [tau, E]
        self._num_params: dict[str, int] = {}  # client key -> K

    def register(self, key: str, num_params: int) -> None:
        """Give a client its embedding, and its head when no client with the same tau came before.

        Raises ValueError when K is not positive, or when the key is known with another K.
        """
        if num_params < 1:
            raise ValueError(f"client {key!r}: num_params is {num_params}, but a model has at least 1 parameter")
        known = self._num_params.setdefault(key, num_params)
        if known != num_params:
            raise ValueError(f"client {key!r} is registered with num_params {known}, which cannot become {num_params}")
        tau = self.num_chunks(key)
        if _name(key) not in self.embeddings:
            embedding = torch.empty(tau, self.embedding_dim)
            embedding.normal_(0.0, self.embedding_init_std, generator=seeded_generator(self.seed, f"embedding/{key}"))
            self.embeddings[_name(key)] = Parameter(embedding.to(self.device))
        if str(tau) not in self.heads:
            head = Head(tau, self.hidden_dim, self.chunk_size)
            self._init_linear(head.weight, head.bias, self.hidden_dim, f"head/{tau}", scale=self.head_init_scale)
            self.heads[str(tau)] = head.to(self.device)

    def generate(self, keys: Sequence[str]) -> list[Tensor]:
        """Return theta_i [K_i] float32 of each client, with graph, in the order asked (Equation 3).

        Raises KeyError for a client that is not registered.
        """
        theta: dict[str, Tensor] = {}
        for members, vectors in self.generate_by_head(keys):
            for key, vector in zip(members, vectors.unbind(), strict=True):
                theta[key] = vector[: self.num_params(key)]  # [K_i]
        return [theta[key] for key in keys]

    def generate_by_head(self, keys: Iterable[str]) -> list[tuple[list[str], Tensor]]:
        """For each tau, its clients and their vectors [n, tau * N] before they are cut to K_i, with graph."""
        groups = []
        for tau, members in self._by_num_chunks(keys).items():
            embeddings = torch.stack([self.embedding(key) for key in members], dim=1)  # [tau, n, E]
            chunks: Tensor = self.head(tau)(self.trunk(embeddings))  # [tau, n, N]
            groups.append((members, chunks.transpose(0, 1).flatten(start_dim=1)))
        return groups

    def num_params(self, key: str) -> int:
        """K: the number of parameters that the client asked for. Raises KeyError for an unknown client."""
        return self._num_params[key]

    def num_chunks(self, key: str) -> int:
        """Tau = ceil(K / N). Raises KeyError for an unknown client."""
        return math.ceil(self.num_params(key) / self.chunk_size)

    def embedding(self, key: str) -> Parameter:
        """The client's embedding vectors, one row a chunk. Shape [tau, E]."""
        embedding: Parameter = self.embeddings[_name(key)]
        return embedding

    def head(self, num_chunks: int) -> Head:
        """The head shared by all clients with this tau, whatever the order in which they arrived."""
        head = self.heads[str(num_chunks)]
        assert isinstance(head, Head)
        return head

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.trunk.parameters()).device

    def _by_num_chunks(self, keys: Iterable[str]) -> dict[int, list[str]]:
        members: dict[int, list[str]] = {}
        for key in dict.fromkeys(keys):
            members.setdefault(self.num_chunks(key), []).append(key)
        return members

    def _init_linear(self, weight: Tensor, bias: Tensor, fan_in: int, name: str, scale: float = 1.0) -> None:
        """PyTorch's default for nn.Linear, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), times scale."""
        bound = scale / math.sqrt(fan_in)
        generator = seeded_generator(self.seed, name)
        with torch.no_grad():
            weight.uniform_(-bound, bound, generator=generator)
            bias.uniform_(-bound, bound, generator=generator)


def _name(key: str) -> str:
    # Module names may not hold dots, and client keys may hold anything.
    return key.encode().hex()
