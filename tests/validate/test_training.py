"""The training of one student: how it starts, one epoch of it, what it leaves."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tqdm import tqdm

from models.registry import build_network
from models.testing import LabelledImages
from recover import recover
from relabel import relabel
from tests.plain import plain_train_epoch
from utils.data.distilled import read_distilled
from utils.data.images import list_images, load_images, normalise
from utils.data.table import get_dataset
from utils.fkd import dsa
from utils.fkd import store as fkd
from utils.fkd.losses import distillation_loss
from utils.fkd.views import render_views
from utils.run.errors import UserError
from validate import training, validate
from validate.training import (
    Run,
    build_optimiser,
    build_student,
    is_tested,
    mean_loss,
    parameter_groups,
    prepare_student,
    train_student,
    write_metrics,
)

FASHION = get_dataset("fashion_mnist")
CPU = torch.device("cpu")


@pytest.fixture
def labelled(world):
    """The world with distilled images and their label store."""
    recover.main(world.recover())
    relabel.main(world.relabel())
    return world


def settings_of(world, *words):
    (settings,) = validate.parse_cells(world.validate(*words))
    return settings


def run_of(world, *words, **changes):
    """The run of seed 0 and its test images. changes: of settings, beside those that the words give."""
    settings = replace(settings_of(world, *words), **changes)
    store = fkd.open_store(settings.fkd_path)
    (run,) = validate.runs_of(settings, read_distilled(settings.original_data_path, FASHION), store, "0" * 64)
    run.place.mkdir(parents=True)
    paths, labels = list_images(world.val, FASHION)
    return run, LabelledImages(load_images(paths, FASHION), labels)


def run_of_whole_images(world, augment):
    """The same with a label for each image, in place of one for each view."""
    words = world.relabel("--labels", "fixed", "--eval-mode", "T", labels="whole")
    mix = words.index("--mix-type")
    relabel.main(words[:mix] + words[mix + 2 :])
    return run_of(world, "--fkd-path", f"{world.root}/fkd/whole_bs8_ipc2", labels="fixed", augmentation=augment)


def test_weight_decay_is_for_weights_of_more_than_one_dimension():
    network = build_network("ShuffleNetV2", FASHION)
    decayed, rest = parameter_groups(network, 0.01)
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

    decayed, rest = parameter_groups(Tokens(), 0.01)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(2, 8)]
    assert {tuple(parameter.shape) for parameter in rest["params"]} == {(1, 4, 8), (2,)}


def test_a_student_starts_from_its_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_student("ConvNetBN_W32", FASHION, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = (build_student("ConvNetBN_W32", FASHION, seed) for seed in (0, 1))
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_optimisers_have_what_the_settings_say(world):
    network = build_student("ConvNetBN_W32", FASHION, 0)
    adamw = build_optimiser(network, settings_of(world, "--adamw-lr", "0.003", "--adamw-weight-decay", "0.2"))
    assert type(adamw) is torch.optim.AdamW
    assert [(group["lr"], group["weight_decay"]) for group in adamw.param_groups] == [(0.003, 0.2), (0.003, 0.0)]
    words = ("--sgd", "--sgd-lr", "0.5", "--momentum", "0.25", "--weight-decay", "0.125")
    (group,) = build_optimiser(network, settings_of(world, *words)).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.25, 0.125)


def test_a_learner_is_a_student_with_all_that_trains_it(world):
    learner = prepare_student(settings_of(world), 0, FASHION, CPU)
    network = learner.student.network
    expected = build_student("ConvNetBN_W32", FASHION, 0).state_dict()
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    known = {id(parameter) for group in learner.optimiser.param_groups for parameter in group["params"]}
    assert known == {id(parameter) for parameter in network.parameters()}
    assert (learner.forward, learner.dtype, learner.device) == (learner.student, None, CPU)
    assert not learner.scaler.is_enabled()
    assert learner.at_once >= 1


@pytest.mark.parametrize(
    ("simple", "epochs"), [(False, [9, 19, 29, 39, 49]), (True, [49])], ids=["every tenth", "late ones"]
)
def test_which_epochs_are_tested(world, simple, epochs):
    settings = settings_of(world, "--epochs", "50", "--test-every", "10", *(["--simple"] if simple else []))
    assert [epoch for epoch in range(50) if is_tested(epoch, settings)] == epochs


def test_one_epoch_is_the_plain_training_loop(labelled):
    """The plain version: whole epochs rendered at once, one forward a half, one AdamW step a batch."""
    settings = settings_of(labelled)
    store = fkd.open_store(settings.fkd_path)
    images, classes, _ = read_distilled(settings.original_data_path, FASHION)
    learner = prepare_student(settings, 0, FASHION, images.device)
    plain = build_student("ConvNetBN_W32", FASHION, 0)
    plain_optimiser = build_optimiser(plain, settings)
    bar = tqdm(disable=True)
    epoch, labels = fkd.read_epoch(store, 0)
    learner.student.train()
    losses = training.train_epoch(learner, settings, 0, (epoch, labels), store.settings, images, classes, FASHION, bar)
    loss = mean_loss(losses, 0)
    views = render_views(images, epoch, 0, 3, store.settings, FASHION)
    total = 0.0
    plain.train()
    for batch, batch_labels in zip(views.split(8), labels.float().split(8), strict=True):
        plain_optimiser.zero_grad()
        for half, half_labels in zip(batch.chunk(2), batch_labels.chunk(2), strict=True):
            teacher, own = (half_labels / 20).softmax(1), (plain(half) / 20).softmax(1)
            divergence = (teacher * (teacher.log() - own.log())).sum() / len(batch)
            divergence.backward()
            total += divergence.item()
        plain_optimiser.step()
    assert loss == pytest.approx(total / 3, rel=1e-4)
    for got, expected in zip(learner.student.network.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.allclose(got.float(), expected.float(), atol=2e-4)


def test_a_loss_sees_the_classes_the_epoch_and_the_size_of_its_batch(labelled):
    settings = settings_of(labelled)
    store = fkd.open_store(settings.fkd_path)
    images, classes, _ = read_distilled(settings.original_data_path, FASHION)
    seen = []

    def loss(logits, target):
        seen.append(target)
        return distillation_loss(logits, target.soft, 20.0, target.batch)

    learner = prepare_student(settings, 0, FASHION, CPU)._replace(loss=loss)
    epoch, labels = fkd.read_epoch(store, 2)
    learner.student.train()
    training.train_epoch(
        learner, settings, 2, (epoch, labels), store.settings, images, classes, FASHION, tqdm(disable=True)
    )
    assert [(target.epoch, target.batch, len(target.soft)) for target in seen] == [(2, 8, 8), (2, 8, 8), (2, 4, 4)]
    assert torch.equal(torch.cat([target.soft for target in seen]), labels)
    assert torch.equal(torch.cat([target.hard for target in seen]), classes[epoch.order.long()])


def test_a_loss_sees_the_weight_of_each_views_own_image(labelled):
    settings = settings_of(labelled)
    store = fkd.open_store(settings.fkd_path)
    images, classes, _ = read_distilled(settings.original_data_path, FASHION)
    weights, seen = torch.rand(20), []

    def loss(logits, target):
        seen.append(target.weights)
        return distillation_loss(logits, target.soft, 20.0, target.batch, weights=target.weights)

    learner = prepare_student(settings, 0, FASHION, CPU)._replace(loss=loss)
    stored = fkd.read_epoch(store, 1)
    learner.student.train()
    bar = tqdm(disable=True)
    training.train_epoch(learner, settings, 1, stored, store.settings, images, classes, FASHION, bar, weights=weights)
    assert [len(its) for its in seen] == [8, 8, 4]
    assert torch.cat(seen).tolist() == [weights[place].item() for place in stored[0].order.tolist()]


def test_the_mean_of_losses_names_the_first_that_is_not_finite():
    assert mean_loss(torch.tensor([1.0, 2.0, 6.0]), 4) == 3.0
    for bad in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="epoch 4, batch 1: the loss is not finite; lower the learning rate"):
            mean_loss(torch.tensor([1.0, bad, bad]), 4)


def test_metrics_of_a_file_are_those_given_and_no_others(tmp_path):
    write_metrics(tmp_path, [{"epoch": 0}, {"epoch": 1, "top1": 5.0}])
    write_metrics(tmp_path, [{"epoch": 0}])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 0}\n'
    write_metrics(tmp_path, [])
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_run_knows_its_work_and_whether_it_is_done(world, tmp_path):
    images = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    store = SimpleNamespace(settings=SimpleNamespace(batches=3))
    run = Run(settings_of(world), 0, images, torch.zeros(20), store, tmp_path, {})
    assert run.work == (3 * 3 * 20 * 32 * 32, 3 * 3)  # three passes' worth, three epochs of three batches
    assert not run.is_done
    (tmp_path / "result.json").write_text("{}")
    assert run.is_done


def test_a_student_leaves_its_metrics_and_a_checkpoint(labelled):
    run, test_set = run_of(labelled, "--test-every", "2")
    metrics, compiled = train_student(run, test_set, FASHION, CPU, quiet=True)
    assert compiled == "off"
    assert [line["epoch"] for line in metrics] == [0, 1, 2]
    assert [("top1" in line, "top5" in line) for line in metrics] == [(False, False), (True, True), (True, True)]
    assert [line["lr"] for line in metrics] == pytest.approx([0.001, 0.00075, 0.00025])
    assert [json.loads(line) for line in (run.place / "metrics.jsonl").read_text().splitlines()] == metrics
    assert (run.place / training.CHECKPOINT).exists()


def test_what_is_tested_is_the_running_mean_of_the_weights(labelled, monkeypatch):
    """Against a loop over copies, one for each step; the weights themselves learn as without."""
    run, test_set = run_of(labelled, "--epochs", "2", "--ema", "0.75")
    learners, copies, tested = keep_learners(monkeypatch), [], []
    update = training.AveragedModel.update_parameters

    def update_and_note(averaged, network):
        copies.append([parameter.detach().clone() for parameter in network.parameters()])
        update(averaged, network)

    def accuracy(network, *_):
        tested.append([parameter.detach().clone() for parameter in network.parameters()])
        live = learners[-1].student.network
        assert all(map(torch.equal, network.buffers(), live.buffers())) and not network.training
        return 10.0, 50.0

    monkeypatch.setattr(training.AveragedModel, "update_parameters", update_and_note)
    monkeypatch.setattr(training, "accuracy", accuracy)
    train_student(run, test_set, FASHION, CPU, quiet=True)
    expected = [parameter.detach() for parameter in build_student("ConvNetBN_W32", FASHION, 0).parameters()]
    for number, weights in enumerate(copies := copies[1:]):
        expected = [0.75 * mean + 0.25 * weight for mean, weight in zip(expected, weights, strict=True)]
        if number + 1 == len(copies) // 2:
            after_one = expected
    for found, wanted in zip(tested, (after_one, expected), strict=True):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))
    plain, _ = run_of(labelled, "--epochs", "2", "--exp-name", "plain")
    train_student(plain, test_set, FASHION, CPU, quiet=True)
    ours, without = (learner.student.state_dict() for learner in learners)
    assert all(torch.equal(tensor, without[name]) for name, tensor in ours.items())


OPTIMISERS = {"adamw": (), "sgd": ("--sgd", "--momentum", "0.9"), "ema": ("--ema", "0.9")}


@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
def test_a_training_that_goes_on_ends_with_the_same_weights(labelled, monkeypatch, optimiser):
    check_going_on(*run_of(labelled, "--epochs", "3", *optimiser), monkeypatch)


def test_a_training_with_drawn_views_goes_on_likewise(labelled, monkeypatch):
    check_going_on(*run_of_whole_images(labelled, "dsa"), monkeypatch)


@pytest.mark.parametrize("replay", ["pool", "shuffled_pool", "soft_hard_soft", "mixed"])
@pytest.mark.parametrize("loss", ["kl", "lpqld"])
def test_a_training_on_fewer_stored_epochs_goes_on_likewise(labelled, monkeypatch, replay, loss):
    relabel.main(labelled.relabel("--stored-epochs", "1", "--no-store-draws", labels="few"))
    few = str(labelled.root / "fkd/few_bs8_ipc2")
    words = ["--fkd-path", few, "--replay", replay, "--loss", loss]
    check_going_on(*run_of(labelled, *words), monkeypatch)


def test_a_student_is_trained_on_what_the_replay_shows(labelled, monkeypatch):
    """Stored views with labels at the loss's temperature; fresh ones of the store's kind, hard at temperature 1."""
    run, test_set = run_of(labelled, "--replay", "soft_hard_soft", "--fresh-share", "0.34")
    replay, shown, train_epoch = training.REPLAYS["soft_hard_soft"], [], training.train_epoch
    monkeypatch.setattr(training, "train_epoch", lambda *words: shown.append(words) or train_epoch(*words))
    train_student(run, test_set, FASHION, CPU, quiet=True)
    expected = [replay(run.store, run.settings, 0, run.classes)(number) for number in range(3)]
    for words, played in zip(shown, expected, strict=True):
        assert all(map(torch.equal, words[3][0].tensors().values(), played.draws.tensors().values()))
        assert torch.equal(words[3][1], played.logits) and words[4] == run.store.settings
    assert [words[-1] for words in shown] == [None, 1.0, None]


def test_lpqlds_student_temperature_is_in_the_metrics(labelled):
    run, test_set = run_of(labelled, "--loss", "lpqld")
    metrics, _ = train_student(run, test_set, FASHION, CPU, quiet=True)
    assert all(0.01 <= line["student_temperature"] <= 1 for line in metrics)
    lines = (run.place / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == metrics


def check_going_on(run, test_set, monkeypatch):
    """To the last bit, from a checkpoint after each of three epochs."""
    learners = keep_learners(monkeypatch)
    train_student(run, test_set, FASHION, CPU, quiet=True)
    for epochs in (1, 2):
        (run.place / training.CHECKPOINT).unlink()
        train_epoch = training.train_epoch
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(training, "train_epoch", lambda *a, f=train_epoch, n=epochs: stop_or(f, n, *a))
            train_student(run, test_set, FASHION, CPU, quiet=True)
        train_student(run, test_set, FASHION, CPU, quiet=True)
        whole, resumed = learners[0].student.state_dict(), learners[-1].student.state_dict()
        assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())
        if learners[0].averaged:
            means = (learner.averaged.state_dict().values() for learner in (learners[0], learners[-1]))
            assert all(map(torch.equal, *means))


def stop_or(train_epoch, epochs, learner, settings, number, *others):
    if number == epochs:
        raise KeyboardInterrupt
    return train_epoch(learner, settings, number, *others)


def keep_learners(monkeypatch):
    learners, prepare = [], training.prepare_student
    monkeypatch.setattr(training, "prepare_student", lambda *words: learners.append(prepare(*words)) or learners[-1])
    return learners


@pytest.mark.parametrize("augment", ["views", "dsa", "none"])
def test_what_a_student_of_whole_images_sees(labelled, monkeypatch, augment):
    """The stored crops; the images in the stored order, augmented by what is drawn for the seed and the epoch; or these
    as they are."""
    run, test_set = run_of_whole_images(labelled, augment)
    run, seen, prepare = run._replace(seed=3), [], training.prepare_student

    def watched(*words):
        learner = prepare(*words)
        learner.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        return learner

    monkeypatch.setattr(training, "prepare_student", watched)
    train_student(run, test_set, FASHION, CPU, quiet=True)
    expected = []
    for number in range(3):
        epoch, _ = fkd.read_epoch(run.store, number)
        views = normalise(run.images[epoch.order.long()], FASHION)
        if augment == "views":
            views = render_views(run.images, epoch, 0, 3, run.store.settings, FASHION)
        elif augment == "dsa":
            views = dsa.augment_batches(views, dsa.draw_augmentation(20, 8, 3, number, CPU), 0, 8)
        expected.append(views)
    assert torch.equal(torch.cat(seen), torch.cat(expected))


def test_a_checkpoint_is_written_now_and_then_where_no_epoch_is_tested(labelled, monkeypatch):
    run, test_set = run_of(labelled, "--test-every", "50")
    saved, save = [], training.save_training
    monkeypatch.setattr(training, "save_training", lambda *words: saved.append(1) or save(*words))
    train_student(run, test_set, FASHION, CPU, quiet=True)
    assert len(saved) == 1  # after the last epoch, which is tested
    (run.place / training.CHECKPOINT).unlink()
    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)
    train_student(run, test_set, FASHION, CPU, quiet=True)
    assert len(saved) == 1 + 3


def test_an_epoch_is_that_of_the_plain_version_with_pils_views(labelled):
    """Within what PIL's rounding to 8 bits makes of the views."""
    settings = settings_of(labelled)
    store = fkd.open_store(settings.fkd_path)
    images, classes, _ = read_distilled(settings.original_data_path, FASHION)
    learner, plain = prepare_student(settings, 0, FASHION, CPU), build_student("ConvNetBN_W32", FASHION, 0)
    epoch, labels = fkd.read_epoch(store, 0)
    learner.student.train()
    got = training.train_epoch(
        learner, settings, 0, (epoch, labels), store.settings, images, classes, FASHION, tqdm(disable=True)
    )
    optimiser = build_optimiser(plain.train(), settings)
    expected = plain_train_epoch(plain, optimiser, epoch, labels, images, store.settings, FASHION, 20.0)
    assert got.tolist() == pytest.approx(expected, rel=0.02)
