"""Attacks by what is published: a model that is finite and properly signed, and a lie.

``scale`` None stands for the number beside each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from scenarios.attacks.attacker import Attacker, Make

if TYPE_CHECKING:
    from torch import Tensor


class SignFlip(Attacker):
    """−scale × the own model (1)."""

    def publish(self, own: Tensor, neighbours: Sequence[Tensor]) -> Tensor | None:
        return own * -(self.scale or 1.0)


class Zero(Attacker):
    """A model of zeros."""

    def publish(self, own: Tensor, neighbours: Sequence[Tensor]) -> Tensor | None:
        return own * 0


class Noise(Attacker):
    """The own model and Gaussian noise, scale times as strong (10)."""

    def publish(self, own: Tensor, neighbours: Sequence[Tensor]) -> Tensor | None:
        draws = np.random.default_rng(self.rng.getrandbits(64)).standard_normal(len(own), "f4")
        strength = (self.scale or 10.0) * float(own.square().mean().sqrt())
        return own + own.new_tensor(draws) * strength


class Huge(Attacker):
    """Every value is ``scale`` (10³⁰): finite, far outside any norm bound."""

    def publish(self, own: Tensor, neighbours: Sequence[Tensor]) -> Tensor | None:
        return own * 0 + (self.scale or 1e30)


class Copy(Attacker):
    """A neighbour's model as its own: it contributes nothing, and weighs that neighbour twice."""

    def publish(self, own: Tensor, neighbours: Sequence[Tensor]) -> Tensor | None:
        return neighbours[0].clone() if neighbours else None


class Alie(Attacker):
    """A little is enough (Baruch et al. 2019): the neighbours' mean less scale deviations (1.5)."""

    def publish(self, own: Tensor, neighbours: Sequence[Tensor]) -> Tensor | None:
        if not neighbours:
            return None
        mean, deviation = _moments(neighbours)
        return mean - deviation * (self.scale or 1.5)


class Ipm(Attacker):
    """Inner product manipulation (Xie et al. 2019): −scale × the neighbours' mean (0.5)."""

    def publish(self, own: Tensor, neighbours: Sequence[Tensor]) -> Tensor | None:
        return _moments(neighbours)[0] * -(self.scale or 0.5) if neighbours else None


def _moments(models: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n in the denominator) by coordinate."""
    mean = sum(models[1:], models[0].clone()) / len(models)
    square = sum(((model - mean) ** 2 for model in models), models[0] * 0) / len(models)
    return mean, square.sqrt()


MODELS: Final[Mapping[str, Make]] = {
    "sign-flip": SignFlip,
    "zero": Zero,
    "noise": Noise,
    "huge": Huge,
    "copy": Copy,
    "alie": Alie,
    "ipm": Ipm,
}
