"""How a teacher learns: where it starts, its optimiser, one epoch."""

import pytest
import torch
import torch.nn.functional as F
from tqdm import tqdm

from models.registry import build_network
from models.teacher_data import Part
from models.teacher_training import fresh_network, make_optimiser, shared, train_epoch
from utils.data.images import normalise
from utils.data.table import get_dataset
from utils.recipes.settings import PretrainSettings
from utils.run.errors import UserError
from utils.run.randomness import generator_for
from utils.run.team import ALONE

FASHION = get_dataset("fashion_mnist")
CPU = torch.device("cpu")
NAME = "ConvNetBN_W32"
SGD = PretrainSettings(optimizer="sgd", lr=1e-3, momentum=0.9, weight_decay=0.0)


def test_a_network_starts_by_seed_and_name_alone():
    def start(seed, name=NAME):
        return fresh_network(name, FASHION, seed, CPU).state_dict()["classifier.bias"]

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = start(0)
    torch.manual_seed(4)
    assert torch.equal(start(0), first) and not torch.equal(start(1), first)
    assert start(0, "ConvNetBN_W64").shape == first.shape and not torch.equal(start(0, "ConvNetBN_W64"), first)
    torch.manual_seed(3)
    start(0)
    assert torch.equal(torch.get_rng_state(), before)  # it costs no random numbers


def test_on_a_cpu_the_channels_are_last():
    weight = fresh_network(NAME, FASHION, 0, CPU).features[4].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_optimisers():
    network = build_network(NAME, FASHION)
    sgd = make_optimiser(network, SGD)
    assert isinstance(sgd, torch.optim.SGD)
    assert [sgd.defaults[key] for key in ("lr", "momentum", "weight_decay")] == [1e-3, 0.9, 0.0]
    adam = make_optimiser(network, PretrainSettings(optimizer="adam", lr=0.02, weight_decay=0.5))
    assert isinstance(adam, torch.optim.Adam) and not isinstance(adam, torch.optim.AdamW)
    assert [adam.defaults[key] for key in ("lr", "weight_decay")] == [0.02, 0.5]
    assert len(adam.param_groups) == 1 and len(adam.param_groups[0]["params"]) == len(list(network.parameters()))


def test_a_process_alone_trains_the_network_itself():
    network = build_network(NAME, FASHION)
    assert shared(network, ALONE, CPU) is network


def parts(count):
    generator = generator_for("parts")
    for _ in range(count):
        pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
        yield Part(pixels, torch.randint(0, 10, (4,), generator=generator), 0.5)


def test_an_epoch_is_a_step_of_cross_entropy_a_batch():
    fast, slow = (fresh_network(NAME, FASHION, 0, CPU) for _ in range(2))
    with tqdm(disable=True) as progress:
        mean = train_epoch(fast.eval(), make_optimiser(fast, SGD), parts(3), FASHION, 0, progress)
    optimiser, losses = make_optimiser(slow, SGD), []
    for pixels, labels, weight in parts(3):
        optimiser.zero_grad()
        loss = weight * F.cross_entropy(slow(normalise(pixels, FASHION)), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert fast.training and mean == pytest.approx(sum(losses) / 3)
    assert all(torch.equal(tensor, fast.state_dict()[name]) for name, tensor in slow.state_dict().items())


def test_the_first_iteration_that_is_not_finite_is_named():
    network = build_network(NAME, FASHION)

    def batches():
        for iteration, part in enumerate(parts(6)):
            if iteration == 3:
                torch.nn.init.constant_(next(network.parameters()), float("nan"))
            yield part

    with (
        tqdm(disable=True) as progress,
        pytest.raises(UserError, match="the loss became nan at epoch 7, iteration 3: lower --lr"),
    ):
        train_epoch(network, make_optimiser(network, SGD), batches(), FASHION, 7, progress)
