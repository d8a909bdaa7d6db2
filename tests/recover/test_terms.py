"""Terms of the loss, and how they are named and weighed."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from recover.terms import Seen, build_terms, classes_by_size, flatness_loss, spectrum_loss
from utils.recipes.settings import RecoverSettings
from utils.run.errors import UserError

IMAGES, LOGITS = torch.zeros(2, 3, 4, 4), torch.tensor([[0.0, 2.0], [1.0, 3.0]])
SEEN = Seen(IMAGES, torch.tensor([1, 0]), LOGITS, torch.tensor(7.0), IMAGES, 0, lambda images: LOGITS)


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
        ("gram", "unknown term 'gram'; there are: cross_entropy r_bn gram_spectrum flatness"),
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


def test_flatness_is_the_mean_divergence_from_the_logits_of_the_mean():
    logits, of_mean = (torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    total = 0.0
    for row, wanted in zip(logits, of_mean, strict=True):
        share, target = torch.exp(row / 4), torch.exp(wanted / 4)
        share, target = share / share.sum(), target / target.sum()
        total += (target * (target / share).log()).sum()
    torch.testing.assert_close(flatness_loss(logits, of_mean), total / 15)


def test_the_mean_of_flatness_takes_up_an_iteration_once_and_begins_anew_with_a_batch():
    (_, term) = build_terms(RecoverSettings(terms=("flatness",)))["flatness"]
    asked = []

    def ask(images):
        asked.append(images.clone())
        return LOGITS, None

    def see(iteration, value, size=4):
        term(SEEN._replace(images=torch.full((2, 3, size, size), value), iteration=iteration, ask=ask))
        return asked[-1].mean().item()

    for _ in range(2):
        assert see(0, 8.0) == see(0, 8.0) == 8  # two teachers
        assert see(1, 9.0) == see(1, 9.0) == 8
        assert see(2, 0.0) == pytest.approx(8.01)
        assert see(3, 0.0, size=6) == pytest.approx(0.99 * 8.01) and asked[-1].shape[-1] == 6


def test_paired_is_the_distance_to_the_patch_in_the_same_view():
    settings = RecoverSettings(terms=("paired=2",), start="Patches", patch_dir=Path("patches"))
    (share, term) = build_terms(settings)["paired"]
    asked = []

    def ask(images):
        asked.append(images)
        return LOGITS, torch.tensor(0.0), torch.tensor([[1.0, 5.0]])

    seen = SEEN._replace(map=torch.tensor([[2.0, 2.0]]), patches=torch.ones(2, 3, 8, 8), ask=ask)
    assert share == 2 and term(seen) == 2
    assert torch.equal(asked[0], torch.ones(2, 3, 4, 4))  # at the size of the images


def test_paired_needs_patches():
    with pytest.raises(UserError, match="--terms paired compares with patches: name --patch-dir, and start"):
        build_terms(RecoverSettings(terms=("paired",)))  # from noise, and merging takes all of the image
