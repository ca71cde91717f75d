"""Differential privacy of what a site sends: every delta is clipped and gets Gaussian noise, and a ledger adds it up.

The Gaussian mechanism of Dwork and Roth (2014, appendix A), on the client, so that the server need not be trusted. Any
two data sets of a site, whether they differ in one sample or in all, lead to two vectors of norm C at most, which are
2C apart at most: that is the sensitivity. Rounds compose by Renyi differential privacy (Mironov 2017); Flower's
accountant does that. Its client mods do not fit: they clip the distance from the vector that was sent, where a delta
is sent back here, and draw their noise from NumPy's global generator, which anybody can seed.
"""

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock
from torch import Tensor

from common.errors import ProtocolError, UserError
from common.files import WriteError, make_folder, write_bytes
from common.protocol import PrivacySpent

if TYPE_CHECKING:
    from flwr.serverapp import RdpAccountant

# From n to n independent draws of the normal distribution with mean 0 and standard deviation 1. Shape [n] float64.
Normal = Callable[[int], Tensor]

_BITS = 53  # of a float64 below 1


@dataclass(frozen=True)
class Privacy:
    """How a site protects its uploads."""

    clipping_norm: float  # C: longer vectors are shortened to this Euclidean norm
    noise_multiplier: float  # z: standard deviation of the noise in multiples of the sensitivity 2C
    delta: float = 1e-5  # probability with which the guarantee may fail
    max_epsilon: float = math.inf  # nothing is sent that would cost more than this in all
    ledger: Path | None = None  # where releases are counted; None: in the client's folder of the run
    is_secret: bool = True  # noise from the operating system; else, in a simulation, from the run's seed

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each value: 2 C z."""
        return 2 * self.clipping_norm * self.noise_multiplier

    def protect(self, vector: Tensor, normal: Normal) -> Tensor:
        """v min(1, C / |v|) + 2 C z N(0, 1). Shape [K] float32 on the CPU.

        A vector with NaN or infinity counts as zero, since whether training diverged is private too.
        """
        vector = vector.detach().cpu().double()
        norm = float(torch.linalg.vector_norm(vector))
        if not math.isfinite(norm):
            logging.getLogger(__name__).warning("Training diverged: noise is sent in place of a delta.")
            vector, norm = torch.zeros_like(vector), 0.0
        clipped = vector * min(1.0, self.clipping_norm / norm) if norm else vector
        return (clipped + self.noise_std * normal(len(vector))).float()


def secret_normal(count: int) -> Tensor:
    """Normal draws that nobody can draw again: uniform ones of the operating system through the inverse of Phi."""
    whole = torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64) & ((1 << _BITS) - 1)
    draws: Tensor = torch.special.ndtri((whole.double() + 0.5) * 2.0**-_BITS)
    return draws


def seeded_normal(generator: torch.Generator) -> Normal:
    """Normal draws that follow from a seed, for simulations."""
    return lambda count: torch.randn(count, generator=generator, dtype=torch.float64)


class Ledger:
    """All releases of a site, over all runs, in a JSON file: {"releases": {noise multiplier: how many}}.

    Every question is answered by what is in the file then. All methods raise UserError when it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def spent(self, privacy: Privacy, more: int = 0) -> PrivacySpent:
        """What all releases cost together, and `more` of them with these settings."""
        return _spent(_with(self._read(), privacy, more), privacy)

    def check(self, privacy: Privacy, more: int = 1) -> None:
        """Raise ProtocolError when so many more releases would cost too much."""
        _check(self._read(), privacy, more)

    def charge(self, privacy: Privacy, count: int) -> PrivacySpent:
        """Count releases and return what all cost; call before they are sent, so that a crash cannot hide them.

        Others that charge the same file wait meanwhile, so that none is lost. Raises ProtocolError, and counts nothing,
        when they would cost too much, and WriteError when they cannot be written down.
        """
        self.check(privacy, count)  # so that a refusal leaves no folder behind
        make_folder(self._path.parent)
        with self._locked():
            releases = self._read()
            _check(releases, privacy, count)
            releases = _with(releases, privacy, count)
            write_bytes(self._path, (json.dumps({"releases": releases}, indent=2) + "\n").encode())
        return _spent(releases, privacy)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self._path.with_suffix(".lock"))
        try:
            lock.acquire()
        except OSError as error:
            raise WriteError(self._path, error) from error
        try:
            yield
        finally:
            lock.release()

    def _read(self) -> dict[str, int]:
        if not self._path.exists():
            return {}
        try:
            releases = json.loads(self._path.read_text())["releases"]
            for noise_multiplier, count in releases.items():
                if not (float(noise_multiplier) > 0 and type(count) is int and count > 0):
                    raise ValueError(f"{count!r} releases with noise multiplier {noise_multiplier!r}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self._path}, which counts what this site has sent, is damaged ({error}): restore it from a backup."
            ) from error
        return dict(releases)


def _with(releases: dict[str, int], privacy: Privacy, more: int) -> dict[str, int]:
    key = repr(privacy.noise_multiplier)
    return releases | ({key: releases.get(key, 0) + more} if more else {})


def _spent(releases: dict[str, int], privacy: Privacy) -> PrivacySpent:
    epsilon = _accountant(releases, privacy.delta).get_epsilon(privacy.delta) if releases else 0.0
    return PrivacySpent(epsilon, privacy.delta)


def _check(releases: dict[str, int], privacy: Privacy, more: int) -> None:
    if privacy.max_epsilon == math.inf:
        return
    epsilon = _spent(_with(releases, privacy, more), privacy).epsilon
    if epsilon > privacy.max_epsilon:
        raise ProtocolError(
            "privacy-budget",
            f"this client's privacy budget is spent: uploading {more} more would bring epsilon to {epsilon:.4g}, above "
            f"its max-epsilon of {privacy.max_epsilon:g}",
        )


def _accountant(releases: dict[str, int], delta: float) -> "RdpAccountant":
    # Imported where it is used: it brings SciPy with it.
    from flwr.serverapp import (
        GaussianPrivacyEvent,
        NeighboringRelation,
        PrivacyConfig,
        RdpAccountant,
        SamplingMethod,
    )

    # One party, which sends every time it is asked. The relation between neighbours is in the sensitivity already; this
    # one takes a noise multiplier as it is.
    config = PrivacyConfig(delta, 1, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION)
    accountant = RdpAccountant(config)
    for noise_multiplier, count in releases.items():
        accountant.compose(GaussianPrivacyEvent(float(noise_multiplier), 1, 1), count)
    return accountant
