"""Student loss, learning rate and parameter groups against the published values."""

import pytest
import torch

from models.registry import build_network
from utils import distillation
from utils.datasets import get_dataset


def test_the_loss_agrees_with_the_published_one(golden, relative):
    expected = golden("student_loss")
    logits = expected["student_logits"].clone().requires_grad_(True)
    parts = zip(logits.split(8), expected["soft_label_logits"].split(8), strict=True)
    loss = sum(distillation.distillation_loss(part, labels, 20.0, 16) for part, labels in parts)
    loss.backward()
    assert relative(loss.detach(), expected["loss"]) < 1e-5
    assert relative(logits.grad, expected["grad"]) < 1e-5


@pytest.mark.parametrize("eta", [1, 2])
@pytest.mark.parametrize("epochs", [300, 1000])
def test_the_rate_agrees_with_the_published_one(golden, relative, eta, epochs):
    rates = [distillation.epoch_rate(0.001, epoch, epochs, eta) for epoch in range(epochs)]
    expected = golden("lr_schedule")[f"lr_eta{eta}_epochs{epochs}"]
    assert relative(torch.tensor(rates, dtype=torch.float64), expected) < 1e-9


def test_a_straight_line_falls_to_zero():
    assert [distillation.epoch_rate(1.0, epoch, 4, 2.0, cosine=False) for epoch in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_weight_decay_is_for_weights_of_more_than_one_dimension():
    network = build_network("ShuffleNetV2", get_dataset("fashion_mnist"))
    decayed, rest = distillation.parameter_groups(network, 0.01)
    assert decayed["weight_decay"] == 0.01
    assert rest["weight_decay"] == 0.0
    assert all(parameter.dim() > 1 for parameter in decayed["params"])
    assert all(parameter.dim() == 1 for parameter in rest["params"])
    assert len(decayed["params"]) + len(rest["params"]) == len(list(network.parameters()))


def test_tokens_of_a_transformer_get_no_weight_decay():
    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.position = torch.nn.Parameter(torch.zeros(1, 4, 8))
            self.head = torch.nn.Linear(8, 2)

    decayed, rest = distillation.parameter_groups(Tokens(), 0.01)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(2, 8)]
    assert {tuple(parameter.shape) for parameter in rest["params"]} == {(1, 4, 8), (2,)}


def test_committee_weights_are_a_softmax_of_scores_over_ten():
    assert distillation.committee_weights(None, 4).tolist() == [0.25] * 4
    weights = distillation.committee_weights([63.0, 65.3, 68.5, 67.6, 67.4], 5)  # CV-DD's cifar10 priors
    assert weights.tolist() == pytest.approx([0.140, 0.177, 0.243, 0.222, 0.218], abs=5e-4)


def test_accuracy_counts_the_first_and_the_first_five():
    logits = torch.eye(10)[[0, 1, 2, 3]] + torch.linspace(0, 0.01, 10)
    labels = torch.tensor([0, 1, 9, 4])  # two right, one among the first five, one not
    batches = [(logits[:2], labels[:2]), (logits[2:], labels[2:])]
    assert distillation.top_accuracy(torch.nn.Identity(), iter(batches)) == (50.0, 75.0)
