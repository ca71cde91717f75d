"""The server's hypernetwork (paper, section 3.2, Equation 3): shared trunk, a head for each tau, an embedding a client.

The global model of MH-pFedHNGD (section 3.3, Equation 5) is one more client here, with an embedding v_g of its own.

Notation of the paper: K parameters of a client's model, N values a chunk, tau = ceil(K / N) chunks, E the size of an
embedding vector, H the hidden size. Pure PyTorch; nothing here knows about Flower or about a client's architecture.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from common.seeding import seeded_generator

HEADS = ("by-tau", "by-architecture", "per-client", "none")

_LARGEST_CHUNK = 3072  # the paper's N (appendix D.4)
_FEWEST_CHUNKS = 64


class Member(NamedTuple):
    """What the hypernetwork knows about a client."""

    num_params: int  # K
    group: str = ""  # opaque label of its architecture, if it gave one; matters to heads `by-architecture` only


class Head(nn.Module):
    """The output layers of all tau chunks, stacked, so that clients with the same tau share one batched product.

    With `num_chunks` 1 it is one output layer for any number of chunks.
    """

    def __init__(self, num_chunks: int, hidden_dim: int, chunk_size: int) -> None:
        super().__init__()
        self.weight = Parameter(torch.empty(num_chunks, hidden_dim, chunk_size))  # [tau, H, N]
        self.bias = Parameter(torch.empty(num_chunks, chunk_size))  # [tau, N]

    def forward(self, features: Tensor) -> Tensor:
        """Map features [tau, n, H] of n clients to their chunks [tau, n, N]: features[j] @ W[j] + b[j]."""
        return torch.baddbmm(self.bias.unsqueeze(1), features, self.weight.expand(len(features), -1, -1))


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
    heads: who shares a head: `by-tau` all clients with the same tau (section 3.2); `by-architecture` those among them
        that also gave the same group label (appendix C.5); `per-client` nobody; `none` means that there are no heads:
        one output layer H -> N serves every chunk of every client (section 4.5, Table 3).
    seed: initial values follow from the seed, a head's tau and a client's key alone, so the order in which clients
        arrive does not matter.

    Raises ValueError for `heads` that are not listed above.
    """

    def __init__(
        self,
        chunk_size: int = 3072,
        embedding_dim: int = 64,
        hidden_dim: int = 128,
        hidden_layers: int = 3,
        head_init_scale: float = 0.1,
        embedding_init_std: float = 1.0,
        heads: str = "by-tau",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if heads not in HEADS:
            raise ValueError(f"heads is {heads!r}, but must be one of {', '.join(HEADS)}")
        self.chunk_size = chunk_size
        self.embedding_dim = embedding_dim
        self.hidden_dim = hidden_dim
        self.hidden_layers = hidden_layers
        self.head_init_scale = head_init_scale
        self.embedding_init_std = embedding_init_std
        self.shared_by = heads
        self.seed = seed

        layers: list[nn.Module] = []
        for layer in range(hidden_layers):
            linear = nn.utils.skip_init(nn.Linear, embedding_dim if layer == 0 else hidden_dim, hidden_dim)
            self._init_linear(linear.weight, linear.bias, fan_in=linear.in_features, name=f"trunk/{layer}")
            layers += [linear, nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleDict()  # _head_name(...) -> Head
        self.embeddings = nn.ParameterDict()  # _name(client key) -> Parameter [tau, E]
        self.members: dict[str, Member] = {}  # client key -> what is known about it, in the order of registration

    @property
    def settings(self) -> dict[str, int | float | str]:
        """The arguments that make another one of the same shape."""
        return {
            "chunk_size": self.chunk_size,
            "embedding_dim": self.embedding_dim,
            "hidden_dim": self.hidden_dim,
            "hidden_layers": self.hidden_layers,
            "head_init_scale": self.head_init_scale,
            "embedding_init_std": self.embedding_init_std,
            "heads": self.shared_by,
            "seed": self.seed,
        }

    def register(self, key: str, num_params: int, group: str = "") -> None:
        """Give a client its embedding, and its head when no client that shares it came before.

        Raises ValueError when K is not positive, or when the key is known with another K.
        """
        if num_params < 1:
            raise ValueError(f"client {key!r}: num_params is {num_params}, but a model has at least 1 parameter")
        known = self.members.setdefault(key, Member(num_params, group)).num_params
        if known != num_params:
            raise ValueError(f"client {key!r} is registered with num_params {known}, which cannot become {num_params}")
        tau = self.num_chunks(key)
        if _name(key) not in self.embeddings:
            embedding = torch.empty(tau, self.embedding_dim)
            embedding.normal_(0.0, self.embedding_init_std, generator=seeded_generator(self.seed, f"embedding/{key}"))
            self.embeddings[_name(key)] = Parameter(embedding.to(self.device))
        name = self._head_name(key, self.members[key])
        if name not in self.heads:
            head = Head(self._head_chunks(tau), self.hidden_dim, self.chunk_size)
            self._init_linear(head.weight, head.bias, self.hidden_dim, f"head/{name}", scale=self.head_init_scale)
            self.heads[name] = head.to(self.device)

    def count_new_values(self, members: Mapping[str, Member]) -> int:
        """How many values the embeddings and heads would hold that these clients need and nobody has brought yet."""
        embeddings, heads = 0, {}
        for key, member in members.items():
            tau = self._tau(member)
            if key not in self.members:
                embeddings += tau * self.embedding_dim
            if self._head_name(key, member) not in self.heads:
                chunks = self._head_chunks(tau)
                heads[self._head_name(key, member)] = chunks * (self.hidden_dim + 1) * self.chunk_size
        return embeddings + sum(heads.values())

    def freeze(self) -> None:
        """Keep trunk, heads and embeddings as they are; what is registered from now on learns (section 4.4)."""
        self.requires_grad_(False)

    def start_at_mean(self, key: str, others: Iterable[str]) -> None:
        """Give a client the mean of the embeddings of those of the others that share its head and tau, if any do."""
        alike: list[Tensor] = [
            self.embedding(other)
            for other in others
            if self.head(other) is self.head(key) and self.num_chunks(other) == self.num_chunks(key)
        ]
        if alike:
            with torch.no_grad():
                self.embedding(key).copy_(torch.stack(alike).mean(dim=0))

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
        """For each head and tau, its clients and their vectors [n, tau * N] before they are cut to K_i, with graph."""
        groups = []
        for members in self._by_head(keys):
            embeddings = torch.stack([self.embedding(key) for key in members], dim=1)  # [tau, n, E]
            chunks: Tensor = self.head(members[0])(self.trunk(embeddings))  # [tau, n, N]
            groups.append((members, chunks.transpose(0, 1).flatten(start_dim=1)))
        return groups

    def num_params(self, key: str) -> int:
        """K: the number of parameters that the client asked for. Raises KeyError for an unknown client."""
        return self.members[key].num_params

    def num_chunks(self, key: str) -> int:
        """Tau = ceil(K / N). Raises KeyError for an unknown client."""
        return self._tau(self.members[key])

    def embedding(self, key: str) -> Parameter:
        """The client's embedding vectors, one row a chunk. Shape [tau, E]."""
        embedding: Parameter = self.embeddings[_name(key)]
        return embedding

    def head(self, key: str) -> Head:
        """The head that generates this client's weights, whatever the order in which clients arrived."""
        head = self.heads[self._head_name(key, self.members[key])]
        assert isinstance(head, Head)
        return head

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.trunk.parameters()).device

    def _by_head(self, keys: Iterable[str]) -> list[list[str]]:
        """The clients in groups that have head and tau in common."""
        groups: dict[tuple[str, int], list[str]] = {}
        for key in dict.fromkeys(keys):
            group = self._head_name(key, self.members[key]), self.num_chunks(key)
            groups.setdefault(group, []).append(key)
        return list(groups.values())

    def _tau(self, member: Member) -> int:
        return math.ceil(member.num_params / self.chunk_size)

    def _head_name(self, key: str, member: Member) -> str:
        tau = str(self._tau(member))
        if self.shared_by == "none":
            return "shared"
        if self.shared_by == "per-client":
            return f"{tau}/{_name(key)}"
        if self.shared_by == "by-architecture" and member.group:
            return f"{tau}/{_name(member.group)}"
        return tau

    def _head_chunks(self, tau: int) -> int:
        return 1 if self.shared_by == "none" else tau

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


def choose_chunk_size(sizes: Iterable[int]) -> int:
    """N for clients of these K, for `chunk-size: auto`.

    The paper asks for more chunks than the client's model has layers (section 3.2), which the server does not know:
    the smallest client but one gets 64 chunks or more, and so do all that are larger. The smallest alone does not
    decide, since a K is its client's own word. N is at most the paper's 3072, and at least 1.
    """
    second_smallest = sorted(sizes)[:2][-1]  # or the only one
    return max(1, min(_LARGEST_CHUNK, second_smallest // _FEWEST_CHUNKS))
