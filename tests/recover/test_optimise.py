"""The recover loop against runs of the published implementation."""

import json
import struct
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.checkpoints import load_network
from recover.optimise import Plan, recover_batch
from utils.bn_matching import MatchedTeacher, bn_matching_terms, channel_statistics
from utils.datasets import channel_tensors, get_dataset, normalise
from utils.plain import PlainMatchedTeacher
from utils.randomness import generator_for

GOLDEN = Path(__file__).parents[1] / "golden"
FASHION = get_dataset("fashion_mnist")


def golden_teacher(name):
    return load_network("ShuffleNetV2", FASHION, GOLDEN / f"{name}.safetensors")


def metadata_of(name):
    with (GOLDEN / f"{name}.safetensors").open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        return json.loads(stream.read(length))["__metadata__"]


def test_the_work_of_a_plan():
    plan = Plan(sizes=(24, 32), budgets=(3, 5), alpha=0.5, lr=0.1, r_bn=0.0, jitter=0, crop_and_flip=False)
    assert plan.iterations == 8
    assert plan.pixels(10) == 3 * 10 * (3 * 24**2 + 5 * 32**2)


def run(plan, teachers, patches, watch=lambda step: None, first_bn_multiplier=10.0):
    mean, std = channel_tensors(FASHION)
    return recover_batch(
        start=patches,
        patches=patches,
        labels=torch.arange(len(patches)),
        teachers=[MatchedTeacher(teacher, first_bn_multiplier) for teacher in teachers],
        plan=plan,
        valid_range=(-mean / std, (1 - mean) / std),
        generator=generator_for(0, "test"),
        watch=watch,
    )


def test_one_step_agrees_with_the_published_loss_and_gradient(golden, relative):
    expected = golden("recover_step")
    teacher = golden_teacher("teacher_a")
    images = expected["input"].clone().requires_grad_(True)
    matched = MatchedTeacher(teacher, first_multiplier=10.0)
    logits, bn_loss = matched(images)
    ce_loss = F.cross_entropy(logits, torch.arange(10))
    (ce_loss + 0.01 * bn_loss).backward()
    assert relative(logits, expected["logits"]) < 1e-4
    assert relative(ce_loss, expected["ce_loss"]) < 1e-4
    assert relative(bn_loss, expected["bn_loss"]) < 1e-4
    assert relative(images.grad, expected["grad"]) < 1e-4


def test_each_layer_agrees_with_the_published_statistics(golden, relative):
    expected = golden("recover_step")
    teacher = golden_teacher("teacher_a")
    seen = []
    for module in teacher.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda layer, inputs: seen.append(channel_statistics(inputs[0])))
    teacher(expected["input"])
    running = PlainMatchedTeacher(teacher, 1.0).running
    assert relative(bn_matching_terms(seen, running), expected["bn_loss_per_layer"]) < 1e-4


@pytest.mark.parametrize(("name", "steps", "tolerance"), [("recover_single", 3, 0.05), ("recover_multi", 6, 0.005)])
def test_a_whole_run_agrees_with_the_published_one(golden, relative, name, steps, tolerance):
    expected, settings = golden(name), metadata_of(name)
    plan = Plan(
        sizes=tuple(map(int, settings["sizes"].split())),
        budgets=tuple(map(int, settings["budgets"].split())),
        alpha=float(settings["alpha"]),
        lr=float(settings["lr"]),
        r_bn=float(settings["r_bn"]),
        jitter=int(settings["jitter"]),
        crop_and_flip=False,
    )
    teachers = [golden_teacher(teacher) for teacher in settings["teachers"].split()]
    ce_losses, bn_losses = [], []

    def watch(step):
        ce_losses.append(step.ce_loss)
        bn_losses.append(step.bn_loss)

    images = run(plan, teachers, normalise(expected["patches"], FASHION), watch)
    mean, std = channel_tensors(FASHION)
    assert len(ce_losses) == plan.iterations
    assert relative(torch.stack(ce_losses[:steps]), expected["ce_loss"][:steps]) < 1e-3
    assert relative(torch.stack(bn_losses[:steps]), expected["bn_loss"][:steps]) < 1e-3
    assert (images * std + mean - expected["images"]).abs().mean() < tolerance
