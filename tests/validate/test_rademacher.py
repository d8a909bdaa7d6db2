"""The empirical Rademacher complexity: what is maximised, and the table."""

import copy
import json

import pytest
import torch
from torch import nn

from tests.validate.test_report import config  # noqa: F401 (a fixture)
from utils.data.distilled import distilled_path, write_distilled
from utils.data.table import get_dataset
from utils.patches.patches import write_class_patches
from utils.run.randomness import generator_for
from validate import rademacher
from validate.rademacher import fit_signs, mean_and_error

FASHION = get_dataset("fashion_mnist")


def linear_case(images=6):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    signs = torch.randint(2, (images,), generator=generator) * 2 - 1
    return network, torch.randn(images, 3, 2, 2, generator=generator), signs


def test_the_best_epoch_counts():
    """Against Adam written out, on all images at once, where the last epoch is worse than the one before."""
    network, images, signs = linear_case(30)  # more than a plane can part
    weight, bias = (p.detach().double().clone() for p in network[1].parameters())
    pixels, moments, values = images.flatten(1).double(), [0.0, 0.0, 0.0, 0.0], []
    for step in range(1, 11):
        h = (pixels @ weight[0] + bias).tanh()
        values.append(2.0 * (signs * h).mean().item())
        slope = -2.0 * signs * (1 - h**2) / len(signs)
        for place, (its, gradient) in enumerate(((weight, (slope @ pixels)[None]), (bias, slope.sum()[None]))):
            moments[place] = 0.9 * moments[place] + 0.1 * gradient
            moments[place + 2] = 0.999 * moments[place + 2] + 0.001 * gradient**2
            its -= 1.0 * (moments[place] / (1 - 0.9**step)) / ((moments[place + 2] / (1 - 0.999**step)).sqrt() + 1e-8)
    assert values[9] < values[8] - 0.01
    got = fit_signs(network, images, signs, 2.0, 10, 1.0, 100, torch.Generator())
    assert got == pytest.approx(max(values), rel=1e-4)


def test_an_epoch_is_the_mean_over_all_images_whatever_the_batches():
    network, images, signs = linear_case(7)
    with torch.no_grad():
        expected = (5 * signs * network(images)[:, 0].tanh()).mean().item()
    for batch_size in (1, 3, 7):
        still = fit_signs(copy.deepcopy(network), images, signs, 5.0, 1, 1e-12, batch_size, torch.Generator())
        assert still == pytest.approx(expected, rel=1e-5)


def test_signs_of_few_images_are_fitted_up_to_the_bound():
    network, images, signs = linear_case()
    assert 2.9 < fit_signs(network, images, signs, 3.0, 300, 0.1, 2, torch.Generator()) <= 3.0


def test_the_standard_error():
    assert mean_and_error([1.0, 2.0, 3.0]) == {"mean": 2.0, "error": pytest.approx(1 / 3**0.5)}
    assert mean_and_error([1.0]) == {"mean": 1.0, "error": None}


@pytest.fixture
def images(tmp_path):
    """Patches of fashion_mnist and images of fadrm at IPC 1, the same but for what `change` makes of them."""
    pixels = torch.randint(0, 256, (10, 3, 32, 32), generator=generator_for("pixels")).to(torch.uint8)
    pixels = pixels // 64 * 64
    for label in range(10):
        write_class_patches(tmp_path / "patch_dir/fashion_mnist/easy", label, pixels[label][None])

    def write(change):
        folder = tmp_path / "all/generated_data/syn_data/fashion_mnist/fadrm_ipc1"
        paths = [distilled_path(folder, 10, label, 0) for label in range(10)]
        write_distilled(paths, change(rademacher.load_patches(tmp_path / "patch_dir/fashion_mnist", "easy",
                        [(label, 0) for label in range(10)], FASHION)), "digest")  # fmt: skip

    return write


WORDS = ["fashion_mnist", "fadrm", "1", "ConvNetBN_W32", "ShuffleNetV2", "--epochs", "2", "--draws", "2"]


def test_the_same_images_have_the_same_complexity(images, tmp_path, capsys):
    images(lambda patches: patches)
    rademacher.main([*WORDS, "--device", "cpu"])
    content = json.loads((tmp_path / "all/generated_data/reports/fashion_mnist_fadrm_ipc1_rademacher.json").read_text())
    assert [row["network"] for row in content["rows"]] == ["ConvNetBN_W32", "ShuffleNetV2"]
    assert (content["bound"], content["epochs"], content["draws"]) == (5.0, 2, 2)
    for row in content["rows"]:
        assert row["original"] == row["optimised"]
        assert len(set(row["original"]["values"])) == 2  # each draw has signs and weights of its own
        assert all(-5 < value < 5 for value in row["original"]["values"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert lines[0].startswith("| fashion_mnist, fadrm, IPC 1: B = 5, 2 epochs, 2 draws | original patches ")
    assert lines[2].endswith(" | 4.72 ± 0.02 | 4.75 ± 0.01 |") and lines[1].endswith(" |  |  |")


def test_other_images_have_another(images, tmp_path):
    images(lambda patches: 255 - patches)
    rademacher.main([*WORDS[:4], "--epochs", "1", "--draws", "1", "--device", "cpu"])
    content = json.loads((tmp_path / "all/generated_data/reports/fashion_mnist_fadrm_ipc1_rademacher.json").read_text())
    (row,) = content["rows"]
    assert row["original"]["values"] != row["optimised"]["values"] and row["original"]["error"] is None


def test_patches_and_images_are_in_the_same_order(images):
    images(lambda patches: patches)
    kinds = rademacher.both_kinds(FASHION, "fadrm", 1)
    assert torch.equal(kinds["original"], kinds["optimised"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fashion_mnist fadrm", "the following arguments are required: IPC"),
        ("fashion_mnist fadrm 1 ResNet999", "unknown network 'ResNet999'"),
        ("fashion_mnist none 1", "no recipe for the method 'none'"),
        ("fashion_mnist g-vbsm 1", "g-vbsm starts from noise"),
        ("fashion_mnist fadrm 1", "fadrm_ipc1 is missing"),
        ("fashion_mnist fadrm 1 --draws 0", "--draws 0: it must be above 0"),
        ("fashion_mnist fadrm 1 --bound nan", "--bound nan: it must be above 0"),
        ("fashion_mnist fadrm 1 --device tpu", "--device tpu: there are auto cpu cuda mps"),
    ],
)
def test_what_cannot_be_is_refused(refusal, words, message):
    assert message in refusal(rademacher.main, words.split())
