"""One principle for everything random: it depends on the seed and on what is being made, never on what came before."""

import hashlib

import torch


def seed_for(*what: int | str) -> int:
    """A 32-bit seed for the thing that `what` names, e.g. (seed, "recover", "cifar100", image index, first class)."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return int.from_bytes(digest[:4], "little")  # torch's CPU generator takes 32 bits of its seed


def generator_for(*what: int | str) -> torch.Generator:
    """A CPU generator of its own for the thing that `what` names: every device and every process draws the same."""
    return torch.Generator().manual_seed(seed_for(*what))
