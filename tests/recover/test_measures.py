"""Measures on the way: the formulas, what a run leaves, and that it leaves the images alone."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models.checkpoints import load_network
from models.registry import build_network
from recover import recover
from recover.measures import (
    Measures,
    feature_cosine,
    information_score,
    measures_folder,
    pixel_entropy,
    read_measures,
    see,
)
from tests.conftest import GOLDEN
from tests.test_interruption import images_below, kill_when
from tests.test_many_processes import Turns
from utils import recipes
from utils.data.images import normalise
from utils.data.table import get_dataset
from utils.residual.residuals import merge_residual, resize
from utils.run.errors import UserError

FASHION = get_dataset("fashion_mnist")


def plain_entropy(weights):
    return -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights if w > 0)


# Formulas


def test_the_information_score_is_the_entropy_of_the_energy_over_positions():
    features = torch.randn(3, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    expected = [
        plain_entropy([sum(features[b, c, i, j].item() ** 2 for c in range(5)) for i in range(2) for j in range(4)])
        for b in range(3)
    ]
    assert information_score(features).item() == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_ends_of_the_information_score():
    one = torch.zeros(1, 2, 3, 3)
    assert information_score(one) == 0  # nothing is active
    one[0, 1, 2, 0] = -5
    assert information_score(one) == 0
    assert information_score(torch.full((2, 7, 3, 3), -2.0)).item() == pytest.approx(math.log(9))


def test_the_pixel_entropy_is_that_of_a_histogram_of_all_channels():
    pixels = torch.randint(0, 9, (3, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = [plain_entropy(list(Counter(image.flatten().tolist()).values())) for image in pixels]
    assert pixel_entropy(pixels).item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert pixel_entropy(torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)) == 0
    every_value = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    assert pixel_entropy(every_value).item() == pytest.approx(math.log(256))


def test_the_cosine_is_of_features_averaged_over_positions():
    before, after = torch.randn(2, 4, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    a, b = (np.asarray(maps.double()).mean(axis=(2, 3)) for maps in (before, after))
    expected = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    assert feature_cosine(before, after).item() == pytest.approx(np.mean(expected), abs=1e-6)


NETWORKS = ("ConvNetBN_W32", "ResNet18", "MobileNetV2", "ShuffleNetV2", "Densenet121", "WRN-16-2")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_map_is_what_the_classifier_sees(name):
    network = build_network(name, FASHION).eval()
    images = torch.randn(2, 3, 32, 32)
    features, logits = see(network, images)
    classifier = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    assert features.shape[2] > 1
    with torch.no_grad():
        torch.testing.assert_close(classifier(features.mean((2, 3))), logits)
        torch.testing.assert_close(network(images), logits)
    assert not any(layer._forward_hooks for layer in network.modules())


def test_a_network_without_maps_is_refused():
    with pytest.raises(UserError, match="no feature map of more than one position: name another --reference"):
        see(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2))


def test_both_sides_of_a_merge_are_seen_at_the_datasets_size():
    reference = load_network("ShuffleNetV2", FASHION, GOLDEN / "teacher_a.safetensors")
    pixels = torch.randint(0, 256, (2, 4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images, patches = resize(normalise(pixels[0], FASHION), 24), normalise(pixels[1], FASHION)
    labels = torch.arange(4)
    measures = Measures({"every": 5}, reference, images, labels, 9, FASHION)
    residual = measures.around(lambda images, stage, size: merge_residual(images, patches, 0.5, size))
    merged = residual(images.requires_grad_(), 1, 28)
    torch.testing.assert_close(merged, merge_residual(images, patches, 0.5, 28), rtol=0, atol=0)
    assert merged.requires_grad
    line = measures.lines[-1]
    maps = [see(reference, resize(its.detach(), 32)) for its in (images, merged)]
    assert (line["iteration"], line["merge"]) == (0, 1)
    assert line["cosine"] == pytest.approx(feature_cosine(maps[0][0], maps[1][0]).item())
    for side, (features, logits) in zip(("before", "after"), maps, strict=True):
        assert line[side]["information"] == pytest.approx(information_score(features).item())
        right = sum(int(row.argmax()) == label for row, label in zip(logits, labels, strict=True))
        assert line[side]["top1"] == 25 * right


# Runs


def measure(world, every, *extra, name="images"):
    recover.main(world.recover("--measure-every", str(every), *extra, name=name))
    folder = measures_folder(world.root / "syn" / name)
    return {path.stem: read_measures(path) for path in sorted(folder.iterdir())}


def test_a_run_leaves_the_measures_of_each_batch(world):
    """Two batches of two image indices, two stages of 3 iterations."""
    files = measure(world, 2)
    assert list(files) == ["0_0", "0_5", "1_0", "1_5"]
    about, *lines = files["0_5"]
    assert (about["batch"], about["images"], about["every"]) == ("image 0, classes 5 to 9", 5, 2)
    assert about["reference"] == "ShuffleNetV2"
    assert [line["iteration"] for line in lines] == [0, 2, 3, 4, 6]
    assert [line.get("merge") for line in lines] == [None, None, 1, None, None]
    entropies = []
    for index in range(5, 10):
        image = Image.open(world.root / "syn/images" / f"new{index:03d}/class{index:03d}_id000.png")
        entropies.append(plain_entropy(list(Counter(np.asarray(image).flatten().tolist()).values())))
    assert lines[-1]["pixel_entropy"] == pytest.approx(sum(entropies) / 5, rel=1e-5)


def test_terms_are_means_over_the_iterations_in_between(world):
    every = {n: measure(world, n, name=f"every{n}")["0_0"] for n in (1, 4)}
    terms = {n: {ln["iteration"]: ln["terms"] for ln in lines[1:] if "merge" not in ln} for n, lines in every.items()}
    assert list(terms[1]) == [0, 1, 2, 3, 4, 5, 6] and list(terms[4]) == [0, 4, 6]
    for name in ("cross_entropy", "r_bn"):
        values = [terms[1][i][name] for i in range(1, 7)]
        assert min(values) > 0
        assert terms[4][4][name] == pytest.approx(sum(values[:4]) / 4, rel=1e-5)
        assert terms[4][6][name] == pytest.approx(sum(values[4:]) / 2, rel=1e-5)


def test_measuring_changes_no_image_and_no_record(world, contents):
    recover.main(world.recover(name="plain"))
    measure(world, 1)
    assert contents(world.root / "syn/images") == contents(world.root / "syn/plain")
    assert not measures_folder(world.root / "syn/plain").exists()


def test_without_a_stage_only_the_start_is_measured(world):
    files = measure(world, 5, "--input-size-lis", "--optimization-budgets")
    assert [line["iteration"] for line in files["0_0"][1:]] == [0]


def test_without_a_reference_the_losses_alone_are_measured(world, contents, monkeypatch):
    """Those that are there with one, and nothing looks."""
    seen = measure(world, 2, name="seen")
    monkeypatch.delattr("recover.measures.see")
    alone = measure(world, 2, "--reference", "none", name="alone")
    assert contents(world.root / "syn/alone") == contents(world.root / "syn/seen")
    for name, (about, *lines) in seen.items():
        del about["reference_sha256"]
        places = [{key: line[key] for key in ("iteration", "terms", "merge") if key in line} for line in lines]
        assert alone[name] == [about | {"reference": "none"}, *places]
        assert len(places[1]["terms"]) == 2 and places[2] == {"iteration": 3, "merge": 1}


def test_losses_that_are_not_there_are_named_once(world, capsys):
    recover.main(world.recover("--ipc-end", "1"))
    measure(world, 2, "--reference", "none")
    assert "already, without measures every 2 iterations, of the loss alone: move" in capsys.readouterr().out
    measure(world, 2, "--reference", "none", "--ipc-start", "1")
    assert "note:" not in capsys.readouterr().out


def test_no_loss_is_measured_where_there_is_no_stage(world, refusal):
    words = world.recover("--measure-every", "2", "--reference", "none", "--input-size-lis", "--optimization-budgets")
    assert "--reference none measures losses alone, and --optimization-budgets has" in refusal(recover.main, words)


def test_images_that_were_there_already_are_named(world, capsys):
    recover.main(world.recover("--ipc-end", "1"))
    assert list(measure(world, 3)) == ["1_0", "1_5"]
    note = "note: 2 of the batches were there already, without measures every 3 iterations by ShuffleNetV2: move "
    assert note + str(world.root / "syn/images") in capsys.readouterr().out
    measure(world, 2)
    assert "note: 4 of the batches were there already, without measures every 2 " in capsys.readouterr().out
    measure(world, 3, "--ipc-start", "1")
    assert "note:" not in capsys.readouterr().out


def test_measures_of_other_images_do_not_stay(world):
    measure(world, 3)
    (world.root / "syn/images/new007/class007_id001.png").unlink()
    recover.main(world.recover())
    left = measures_folder(world.root / "syn/images").iterdir()
    assert sorted(path.stem for path in left) == ["0_0", "0_5", "1_0"]


def test_a_reference_that_is_not_there_is_refused_first(world, refusal):
    words = world.recover("--measure-every", "2", "--reference", "ResNet18")
    assert "no checkpoint of ResNet18" in refusal(recover.main, words)
    assert not (world.root / "syn").exists()


def test_two_processes_leave_the_measures_of_one(world, contents):
    measure(world, 2, name="one")
    settings = recipes.parse("recover", world.recover("--measure-every", "2", name="two"))
    Turns(2).run(lambda member: recover.recover(settings, member))
    one, two = (contents(measures_folder(world.root / "syn" / name)) for name in ("one", "two"))
    assert one == two and len(one) == 4


def test_a_killed_run_ends_with_the_same_measures(world, processes, contents):
    words = ("--optimization-budgets", "4", "4")
    measure(world, 1, *words, name="whole")
    killed = world.root / "syn/killed"
    process = processes.start("-m", "recover.recover", *world.recover(*words, "--measure-every", "1", name="killed"))
    kill_when(process, lambda: images_below(killed))
    assert len(images_below(killed)) < 20
    measure(world, 1, *words, name="killed")
    for folder in (killed, measures_folder(killed)):
        assert contents(folder) == contents(folder.with_name(folder.name.replace("killed", "whole")))


ABOUT = '{"batch": "b", "images": 1, "reference": "r", "every": 1, "made_with": "m"}'


NO_LOOK = ABOUT + '\n{"iteration": 0, "terms": {}}\n'


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]\n", '{"batch": "b"}\n', NO_LOOK, NO_LOOK.replace('"r"', '"none"') + '{"iteration": 0}'],
)
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "0_0.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"0_0\.jsonl is damaged \(.*run recover again"):
        read_measures(path)
