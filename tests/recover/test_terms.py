"""Terms of the loss, and how they are named and weighed."""

import pytest
import torch
import torch.nn.functional as F

from recover.terms import Seen, build_terms, classes_by_size, spectrum_loss
from utils.recipes.settings import RecoverSettings
from utils.run.errors import UserError

SEEN = Seen(torch.zeros(2, 3, 4, 4), torch.tensor([1, 0]), torch.tensor([[0.0, 2.0], [1.0, 3.0]]), torch.tensor(7.0))


def test_the_published_loss_is_cross_entropy_and_weighted_matching():
    terms = build_terms(RecoverSettings(r_bn=0.01))
    assert {name: weight for name, (weight, _) in terms.items()} == {"cross_entropy": 1.0, "r_bn": 0.01}
    assert terms["cross_entropy"][1](SEEN) == F.cross_entropy(SEEN.logits, SEEN.labels)
    assert terms["r_bn"][1](SEEN) == 7


def test_a_weight_stands_behind_the_name():
    assert build_terms(RecoverSettings(terms=("r_bn=0.5",), r_bn=0.01))["r_bn"][0] == 0.5


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("gram", "unknown term 'gram'; there are: cross_entropy r_bn gram_spectrum"),
        ("r_bn=much", "--terms r_bn=much: much is no number"),
        ("r_bn=nan", "--terms r_bn=nan: it must be from 0 to 1,000,000,000"),
        ("cross_entropy=inf", "--terms cross_entropy=inf: it must be from 0 to"),
        ("r_bn=-5", "--terms r_bn=-5: it must be from 0 to"),
    ],
)
def test_what_is_no_term_or_weight(word, message):
    with pytest.raises(UserError, match=message):
        build_terms(RecoverSettings(terms=(word,)))


def plain_spectrum_loss(views, labels):
    """One class after another, by the general eigenvalues of its Gram matrix."""
    total = 0.0
    for label in labels.unique():
        images = F.adaptive_avg_pool2d(views[labels == label], 32).flatten(1)
        spectrum = torch.linalg.eigvals(images @ images.T).real
        target = F.softmax(spectrum / 4, dim=0).detach()
        total = total + (target * (target.log() - F.log_softmax(spectrum, dim=0))).sum()
    return total


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 1], [2, 0, 2, 0, 2, 5], [1, 1, 1, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("side", [32, 40])
def test_the_spectrum_is_pulled_towards_a_flatter_one(labels, side):
    labels = torch.tensor(labels)
    views = 0.02 * torch.randn(6, 3, side, side, generator=torch.Generator().manual_seed(0))
    ours, plain = views.clone().requires_grad_(True), views.clone().requires_grad_(True)
    classes = list(classes_by_size(labels))
    found, expected = spectrum_loss(ours, classes), plain_spectrum_loss(plain, labels)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-3, atol=1e-7)
    assert ours.grad.abs().max() > 0


def test_the_term_follows_its_batch():
    (_, term) = build_terms(RecoverSettings(terms=("gram_spectrum",)))["gram_spectrum"]
    for labels in (torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])):
        for seed in range(2):
            views = 0.02 * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
            found = term(SEEN._replace(view=views, labels=labels))
            torch.testing.assert_close(found, plain_spectrum_loss(views, labels))


def test_a_class_of_one_image_has_no_spectrum_to_pull():
    views = torch.randn(3, 3, 8, 8, requires_grad=True)
    loss = spectrum_loss(views, list(classes_by_size(torch.tensor([0, 4, 2]))))
    loss.backward()
    assert loss == 0 and not views.grad.any()
