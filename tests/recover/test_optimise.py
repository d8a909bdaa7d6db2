"""The recover loop against runs of the published implementation."""

import copy
import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.checkpoints import load_network
from models.registry import build_network
from recover.augmentation import sample_batch_augmentations
from recover.batches import valid_range_of
from recover.optimise import Plan, Stage, adaptive_size, recover_batch
from recover.terms import build_terms
from tests.plain import PlainMatchedTeacher, plain_augmentation
from utils.bn_matching.matching import MatchedTeacher
from utils.bn_matching.probes import BatchNormInput
from utils.data.images import channel_tensors, normalise
from utils.data.table import get_dataset
from utils.recipes.settings import RecoverSettings
from utils.residual.residuals import mix
from utils.run.precision import Trusted
from utils.run.randomness import generator_for

GOLDEN = Path(__file__).parents[1] / "golden"
FASHION = get_dataset("fashion_mnist")


def golden_teacher(name):
    return load_network("ShuffleNetV2", FASHION, GOLDEN / f"{name}.safetensors")


def metadata_of(name):
    with (GOLDEN / f"{name}.safetensors").open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        return json.loads(stream.read(length))["__metadata__"]


def plan_of(sizes, budgets, settings, lr=0.1, jitter=0):
    stages = [Stage(size, budget) for size, budget in zip(sizes, budgets, strict=True)]
    return Plan(stages, lr, build_terms(settings), jitter, crop_and_flip=False)


def test_the_work_of_a_plan():
    plan = plan_of((24, 32), (3, 5), RecoverSettings())
    assert plan.iterations == 8
    assert plan.pixels(10) == 3 * 10 * (3 * 24**2 + 5 * 32**2)


@pytest.mark.parametrize(
    ("step", "size"),
    [
        (0.0, 179),  # flat: 0.8 x 224, rounded down
        (0.25, 179),  # TV 0.5, and 0.5 / 0.5 is more than 0.8
        (0.35, 160),  # 224 x 0.5 / 0.7
        (2.0, 128),  # the least
    ],
)
def test_the_total_variation_decides_on_an_adaptive_size(step, size):
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    images = (step * (rows + columns)).expand(2, 3, 16, 16)  # neighbours differ by `step` in both directions
    assert adaptive_size(images, 224) == size


def test_only_stages_below_the_last_size_are_adaptive():
    plan = replace(plan_of((200, 224, 180, 224), (1,) * 4, RecoverSettings()), adaptive=True)
    images = torch.zeros(1, 3, 8, 8)
    assert [plan.size_of(stage, images) for stage in plan.stages] == [179, 224, 179, 224]
    assert replace(plan, adaptive=False).size_of(plan.stages[0], images) == 200


def matched_teacher(name):
    return MatchedTeacher(golden_teacher(name), BatchNormInput, 10.0, size=32)


def run(plan, ask, patches, settings, watch=lambda step: None):
    return recover_batch(
        start=patches,
        labels=torch.arange(len(patches)),
        plan=plan,
        committee=ask,
        residual=mix(settings, patches),
        valid_range=valid_range_of(FASHION, torch.device("cpu")),
        generator=generator_for(0, "test"),
        watch=watch,
    )


def test_one_step_agrees_with_the_published_loss_and_gradient(golden, relative):
    expected = golden("recover_step")
    images = expected["input"].clone().requires_grad_(True)
    logits, bn_loss = matched_teacher("teacher_a")(images)
    ce_loss = F.cross_entropy(logits, torch.arange(10))
    (ce_loss + 0.01 * bn_loss).backward()
    assert relative(logits, expected["logits"]) < 1e-4
    assert relative(ce_loss, expected["ce_loss"]) < 1e-4
    assert relative(bn_loss, expected["bn_loss"]) < 1e-4
    assert relative(images.grad, expected["grad"]) < 1e-4


def test_each_layer_agrees_with_the_published_statistics(golden, relative):
    expected = golden("recover_step")
    plain = PlainMatchedTeacher(golden_teacher("teacher_a"), 1.0)
    plain(expected["input"])
    assert relative(torch.stack(plain.terms), expected["bn_loss_per_layer"]) < 1e-4


@pytest.mark.parametrize(("name", "steps", "tolerance"), [("recover_single", 3, 0.05), ("recover_multi", 6, 0.005)])
def test_a_whole_run_agrees_with_the_published_one(golden, relative, name, steps, tolerance):
    expected, settings = golden(name), metadata_of(name)
    sizes, budgets = (list(map(int, settings[name].split())) for name in ("sizes", "budgets"))
    ours = RecoverSettings(alpha=float(settings["alpha"]), r_bn=float(settings["r_bn"]))
    plan = plan_of(sizes, budgets, ours, float(settings["lr"]), int(settings["jitter"]))
    teachers = [matched_teacher(teacher) for teacher in settings["teachers"].split()]
    ce_losses, bn_losses = [], []

    def watch(step):
        ce_losses.append(step.losses["cross_entropy"])
        bn_losses.append(step.losses["r_bn"])

    def in_turn(iteration):
        return [(teachers[iteration % len(teachers)], 1.0)]

    images = run(plan, in_turn, normalise(expected["patches"], FASHION), ours, watch)
    mean, std = channel_tensors(FASHION)
    assert len(ce_losses) == plan.iterations
    assert relative(torch.stack(ce_losses[:steps]), expected["ce_loss"][:steps]) < 1e-3
    assert relative(torch.stack(bn_losses[:steps]), expected["bn_loss"][:steps]) < 1e-3
    assert (images * std + mean - expected["images"]).abs().mean() < tolerance


def test_no_stage_leaves_the_start(golden):
    patches = normalise(golden("recover_single")["patches"], FASHION)
    plan = plan_of((), (), RecoverSettings())
    assert torch.equal(run(plan, None, patches, RecoverSettings()), patches)


def test_a_committee_of_equal_weights_on_one_teacher_is_that_teacher(golden):
    patches, settings = normalise(golden("recover_single")["patches"], FASHION), RecoverSettings(r_bn=0.01)
    teacher, plan = matched_teacher("teacher_a"), plan_of((32,), (4,), settings)
    alone = run(plan, lambda iteration: [(teacher, 1.0)], patches, settings)
    together = run(plan, lambda iteration: [(teacher, 0.25), (teacher, 0.75)], patches, settings)
    assert (alone - together).abs().mean() < 1e-3


def test_teachers_asked_together_weigh_in_all_terms(golden, relative):
    """One iteration of a pair against cross-entropy and R_bn of each, by the plain hooks."""
    patches, settings = normalise(golden("recover_single")["patches"], FASHION), RecoverSettings(r_bn=0.01)
    pair = [(matched_teacher("teacher_a"), 0.7), (matched_teacher("teacher_b"), 0.3)]
    seen = []
    run(
        plan_of((32,), (1,), settings), lambda iteration: pair, patches, settings, lambda step: seen.append(step.losses)
    )
    plain = [PlainMatchedTeacher(golden_teacher(name), 10.0)(patches) for name in ("teacher_a", "teacher_b")]
    cross_entropy = sum(w * F.cross_entropy(a[0], torch.arange(10)) for w, a in zip((0.7, 0.3), plain, strict=True))
    assert relative(seen[0]["cross_entropy"], cross_entropy) < 1e-4
    assert relative(seen[0]["r_bn"], 0.7 * plain[0][1] + 0.3 * plain[1][1]) < 1e-4


def plain_flatness_run(patches, stages, lr, jitter, weight, asked):
    """Cross-entropy and EDC's flatness by a loop; the images, and the flatness of each iteration. asked: the teachers
    and weights of an iteration."""
    generator, (low, high) = generator_for(0, "test"), valid_range_of(FASHION, torch.device("cpu"))
    iterations, iteration, images, mean, found = sum(count for _, count in stages), 0, patches, patches, []
    for size, count in stages:
        images, mean = (F.interpolate(each, (size, size), mode="bilinear") for each in (images, mean))
        images = images.detach().clone().requires_grad_(True)
        optimiser = torch.optim.Adam([images], betas=(0.5, 0.9))
        for draw in sample_batch_augmentations(count, size, True, jitter, generator):
            loss, flatness = 0.0, 0.0
            for teacher, share in asked(iteration):
                logits = teacher(plain_augmentation(images, draw))[0]
                with torch.no_grad():
                    target = (teacher(plain_augmentation(mean, draw))[0] / 4).softmax(dim=1)
                apart = (target * (target.log() - (logits / 4).softmax(dim=1).log())).mean()
                loss = loss + share * (F.cross_entropy(logits, torch.arange(len(patches))) + weight * apart)
                flatness += share * apart.item()
            mean = 0.99 * mean + 0.01 * images.detach()
            optimiser.param_groups[0]["lr"] = 0.5 * lr * (1 + torch.tensor(torch.pi * iteration / iterations).cos())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            images.data.clamp_(low, high)
            found.append(flatness)
            iteration += 1
    return images.detach(), torch.tensor(found)


def sure_networks():
    """Two small networks with random weights and logits some units apart."""
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        networks.append(build_network("ConvNetBN_W32", FASHION).eval().requires_grad_(False))
        networks[-1].classifier.weight.mul_(300)
    return networks


@pytest.mark.parametrize("wrapped", [lambda teacher: teacher, lambda teacher: Trusted(teacher, teacher, False)])
@pytest.mark.parametrize(
    "weights", [lambda iteration: {iteration % 2: 1.0}, lambda iteration: {0: 0.7, 1: 0.3}], ids=["in turn", "pair"]
)
def test_flatness_is_the_plain_one(golden, relative, wrapped, weights):
    patches, networks = normalise(golden("recover_single")["patches"], FASHION), sure_networks()
    plain = [PlainMatchedTeacher(network, 1.0) for network in copy.deepcopy(networks)]
    expected, without = (
        plain_flatness_run(
            patches,
            ((24, 4), (32, 4)),
            0.1,
            4,
            weight,
            lambda i: [(plain[place], w) for place, w in weights(i).items()],
        )
        for weight in (100.0, 0.0)
    )
    teachers = [wrapped(MatchedTeacher(network, BatchNormInput, 1.0, size=32)) for network in networks]
    settings = RecoverSettings(terms=("cross_entropy", "flatness=100"), residual="none", alpha=1.0)
    plan = Plan([Stage(24, 4), Stage(32, 4)], 0.1, build_terms(settings), jitter=4, crop_and_flip=True)
    seen = []
    for _ in range(2):  # the second batch begins as the first
        images = run(
            plan,
            lambda iteration: [(teachers[place], weight) for place, weight in weights(iteration).items()],
            patches,
            settings,
            lambda step: seen.append(step.losses["flatness"]),
        )
        assert relative(torch.stack(seen[-8:]), expected[1]) < 0.01
        assert (images - expected[0]).abs().mean() < 1e-3 < (images - without[0]).abs().mean()


def test_flatness_in_16_bits_begins_at_nothing(golden):
    """As both sides are rounded alike."""
    patches = normalise(golden("recover_single")["patches"], FASHION)
    settings = RecoverSettings(terms=("cross_entropy", "flatness"))
    teacher, seen = MatchedTeacher(sure_networks()[0], BatchNormInput, 1.0, size=32), []
    recover_batch(
        patches,
        torch.arange(10),
        plan_of((32,), (2,), settings),
        lambda iteration: [(teacher, 1.0)],
        mix(settings, patches),
        valid_range_of(FASHION, torch.device("cpu")),
        generator_for(0, "test"),
        torch.bfloat16,
        lambda step: seen.append(step.losses["flatness"].item()),
    )
    assert abs(seen[0]) < 1e-7 < seen[1]


def test_a_plan_from_a_later_stage_goes_on_as_if_the_others_had_been():
    plan = replace(plan_of((24, 32, 32), (3, 5, 2), RecoverSettings()), narrowing=True, area=(0.1, 1.0))
    late = plan.from_stage(1)
    assert late.stages == plan.stages[1:] and late.iterations == 7
    assert [late.rate(iteration) for iteration in range(7)] == [plan.rate(iteration) for iteration in range(3, 10)]
    torch.testing.assert_close(late.areas(0, 5)[0], plan.areas(3, 5)[0])
    assert plan.from_stage(0) == plan


def test_crops_narrow_from_whole_images_along_half_a_cosine():
    plan = replace(plan_of((32, 32), (50, 50), RecoverSettings()), area=(0.2, 1.0))
    assert plan.areas(0, 50) == (0.2, 1.0)
    (first, most), (second, _) = (replace(plan, narrowing=True).areas(start, 50) for start in (0, 50))
    assert most == 1.0 and first[0] == 1 and second[0] == pytest.approx(0.6)
    assert first[25] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))
    assert second[-1] == pytest.approx(0.2, abs=1e-3)
