"""The one principle for random numbers: they follow from what is made, and from nothing else."""

import hashlib

import torch

from utils.run.randomness import generator_for, seed_for

WHAT = (0, "recover", "cifar100", 3, 100)


def test_the_same_thing_draws_the_same_numbers_whatever_came_before():
    first = torch.rand(5, generator=generator_for(*WHAT))
    torch.rand(7)
    torch.rand(7, generator=generator_for("something else"))
    assert torch.equal(torch.rand(5, generator=generator_for(*WHAT)), first)


def test_nothing_of_the_global_generator_is_used():
    before = torch.get_rng_state()
    torch.rand(5, generator=generator_for(*WHAT))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_word_counts():
    others = [(1, *WHAT[1:]), (*WHAT[:4], 101), ("0", *WHAT[1:]), WHAT[:4], (*WHAT, 0), tuple(reversed(WHAT))]
    seeds = {seed_for(*what) for what in (WHAT, *others)}
    assert len(seeds) == 7
    assert seed_for("ab", "c") != seed_for("a", "bc")


def test_seeds_are_as_they_were_recorded():
    """Else every distilled image and label of an earlier version would be another."""
    text = "(0, 'recover', 'cifar100', 3, 100)"
    assert seed_for(*WHAT) == int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    assert seed_for(0, "recover", "fashion_mnist", 0, 0) == 1810986464
    assert torch.randperm(10, generator=generator_for("order", 42, 0)).tolist() == [2, 6, 3, 8, 4, 0, 9, 5, 7, 1]
