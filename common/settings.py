"""Settings of methods that several files read, in groups: a half of a method inherits those that it uses.

A method owns its settings: each half declares what it reads in a frozen dataclass, by fields of its own and these
groups. Config keys, profiles, what is sent to clients and what a resumed run must agree on all follow from that.
"""

from dataclasses import dataclass

from common.options import option

DOWNLOADS = ("dense", "half", "int8")
UPLOADS = (*DOWNLOADS, "topk")
MIN_NOISE_MULTIPLIER = 1e-3  # with less, epsilon is no number that says anything


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings; a half without any uses it as it is."""


@dataclass(frozen=True, kw_only=True)
class LocalTraining(Settings):
    """A client's SGD on its own samples (paper, section 4.1; where it differs, the default is measured here)."""

    local_epochs: int = option(
        2, "passes over its training data that a client makes in a round", minimum=1, source="section 4.1"
    )
    batch_size: int = option(64, "samples in a client's mini-batch", minimum=1, source="section 4.1")
    client_lr: float = option(5e-3, "learning rate of a client's SGD", above=0, source="authors' code")
    client_momentum: float = option(0.9, "momentum of a client's SGD", minimum=0, maximum=1, source="section 4.1")
    client_weight_decay: float = option(5e-4, "weight decay of a client's SGD", minimum=0, source="authors' code")
    client_max_grad_norm: float = option(
        50.0, "largest norm of a client's gradient; a larger one is shortened to it", above=0, source="authors' code"
    )


@dataclass(frozen=True, kw_only=True)
class Anchored(Settings):
    """For methods whose clients may add what they receive to a seeded initialisation."""

    anchor: bool = option(
        True,
        "clients add the generated weights to their architecture's seeded initialisation",
        fixed="always",
        source="ours; the paper has none",
    )


@dataclass(frozen=True, kw_only=True)
class Compressed(Settings):
    """Wire forms of the arrays for which a method allows a codec (appendix C.7)."""

    upload: str = option("dense", "wire form of what clients send", choices=UPLOADS)
    download: str = option("dense", "wire form of what the server sends", choices=DOWNLOADS)
    topk_fraction: float = option(
        0.3, "share of the values, the largest, that upload topk sends", above=0, maximum=1, source="Table 12"
    )
    error_feedback: bool = option(False, "clients keep what a lossy upload left out and add it to their next one")


@dataclass(frozen=True, kw_only=True)
class Bounded(Settings):
    """What the server refuses of otherwise sound arrays."""

    max_delta_norm: float = option(
        10_000.0, "refuse an array whose Euclidean norm is above this: enormous values would spoil a step", above=0
    )


@dataclass(frozen=True, kw_only=True)
class Noised(Settings):
    """Differential privacy of what simulated clients send; real sites decide for themselves, in their own file."""

    clipping_norm: float = option(
        0.0,
        "C: simulated clients clip what they send to this norm and add Gaussian noise; 0: neither (sites decide for "
        "themselves)",
        minimum=0,
    )
    noise_multiplier: float = option(
        1.0, "z: standard deviation of that noise in multiples of its sensitivity 2C", minimum=MIN_NOISE_MULTIPLIER
    )
    privacy_delta: float = option(1e-5, "delta at which the epsilon of that noise is reported", above=0, maximum=0.5)
