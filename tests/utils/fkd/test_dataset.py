"""Distilled images and labels as a dataset: the batches are those that validate trains on."""

import operator
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.testing import LabelledImages
from recover import recover
from relabel import relabel
from tests.plain import plain_batch_views
from utils.data.distilled import read_distilled
from utils.data.images import list_images, load_images
from utils.data.table import get_dataset
from utils.fkd.dataset import DistilledBatches, Epochs
from utils.fkd.groups import group_sizes
from utils.fkd.losses import distillation_loss
from utils.fkd.store import epoch_path, open_store, read_epoch
from utils.run.errors import UserError
from validate import training, validate

FASHION = get_dataset("fashion_mnist")
EPOCHS, PER_EPOCH = 3, 3


@pytest.fixture(scope="module")
def labelled(lasting_world):
    """20 distilled images, and labels of three epochs of batches of 8, 8 and 4."""
    recover.main(lasting_world.recover())
    relabel.main(lasting_world.relabel())
    return lasting_world


def places_of(world):
    return world.root / "syn/images", world.root / "fkd/labels_bs8_ipc2"


@pytest.fixture
def batches(labelled):
    return DistilledBatches(*places_of(labelled))


def settings_of(world, *words):
    (settings,) = validate.parse_cells(world.validate(*words))
    return settings


def same(one, other):
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def test_batches_are_what_validate_trains_on(labelled, batches):
    """To the bit: what the student and its loss are given, an epoch after the other."""
    settings, store = settings_of(labelled), open_store(places_of(labelled)[1])
    images, classes, _ = read_distilled(places_of(labelled)[0], FASHION)
    learner, seen = training.prepare_student(settings, 0, FASHION, images.device), []
    student = learner.student

    def forward(views, groups):
        seen.append([views])
        return student(views, groups)

    def loss(logits, target):
        seen[-1] += [target.soft.float(), target.hard]
        return distillation_loss(logits, target.soft, 20.0, target.batch)

    learner, bar = learner._replace(forward=forward, loss=loss), tqdm(disable=True)
    student.train()
    for number in range(EPOCHS):
        stored = read_epoch(store, number)
        training.train_epoch(learner, settings, number, stored, store.settings, images, classes, FASHION, bar)
    assert [len(batch[0]) for batch in seen] == [8, 8, 4] * EPOCHS
    assert len(batches) == len(seen) == EPOCHS * PER_EPOCH
    assert all(same(batches[index], batch) for index, batch in enumerate(seen))


def test_batches_by_the_plain_way(labelled, batches):
    """An image at a time, cropped by PIL, and labels straight out of the file."""
    paths, _ = list_images(places_of(labelled)[0], FASHION)
    images = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths]).permute(0, 3, 1, 2)
    for number in range(EPOCHS):
        stored = safetensors.torch.load_file(epoch_path(places_of(labelled)[1], number))
        draws, _ = read_epoch(batches.store, number)
        for batch in range(PER_EPOCH):
            views, soft, hard = batches[PER_EPOCH * number + batch]
            places = range(8 * batch, min(8 * batch + 8, 20))
            expected = plain_batch_views(images, draws, batch, batches.settings, FASHION)
            assert (views - expected).abs().max() <= 1.01 / 255 / 0.5  # PIL rounds to 8 bits
            assert soft.tolist() == [stored["logits"][place].tolist() for place in places]
            names = [paths[stored["order"][place]].parent.name for place in places]
            assert [f"new{label:03d}" for label in hard] == names


def test_a_loader_gives_epoch_after_epoch(batches):
    whole = [batches[index] for index in range(len(batches))]
    loader = DataLoader(batches, batch_size=None, sampler=Epochs(batches), num_workers=2, persistent_workers=True)
    assert len(loader) == PER_EPOCH
    for number in range(EPOCHS):
        items = list(loader)
        assert len(items) == PER_EPOCH
        assert all(map(same, items, whole[PER_EPOCH * number :]))
    with pytest.raises(UserError, match="labels_bs8_ipc2 has labels of 3 epochs: none of 3"):
        next(iter(loader))
    loader.sampler.set_epoch(1)
    assert all(map(same, loader, whole[3:6]))
    assert all(map(same, DataLoader(batches, batch_size=None, sampler=Epochs(batches, 2)), whole[6:]))
    assert all(map(same, DataLoader(batches, batch_size=None, num_workers=2), whole))
    assert all(map(same, batches, whole))
    pairs = DataLoader(batches, batch_size=None, collate_fn=operator.itemgetter(0, 1))  # as timm's loop takes them
    assert all(map(same, pairs, [(views, soft) for views, soft, _ in whole]))


def test_it_goes_to_a_process_that_is_spawned_and_an_item_goes_alone(batches):
    assert same(pickle.loads(pickle.dumps(batches))[7], batches[7])
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in batches[7])


def test_a_loop_of_ones_own_trains_the_student_of_validate(labelled, batches):
    """The same start, order and rates: losses and accuracy are those of validate."""
    settings = settings_of(labelled, "--exp-name", "own")
    store = open_store(settings.fkd_path)
    (run,) = validate.runs_of(settings, read_distilled(settings.original_data_path, FASHION), store, "0" * 64)
    run.place.mkdir(parents=True)
    paths, labels = list_images(labelled.val, FASHION)
    test_set = LabelledImages(load_images(paths, FASHION), labels)
    metrics, _ = training.train_student(run, test_set, FASHION, run.images.device, quiet=True)

    student = training.build_student("ConvNetBN_W32", FASHION, 0)
    optimiser = torch.optim.AdamW(training.parameter_groups(student, 0.01), lr=0.001)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    loader = DataLoader(batches, batch_size=None, sampler=Epochs(batches))
    for line in metrics:
        losses = []
        student.train()
        for views, soft, _ in loader:
            optimiser.zero_grad()
            sizes, total = group_sizes(len(views)), 0.0
            for half, target in zip(views.split(sizes), soft.split(sizes), strict=True):
                loss = distillation_loss(student(half), target, 20.0, len(views))
                loss.backward()
                total += loss.item()
            optimiser.step()
            losses.append(total)
        schedule.step()
        assert sum(losses) / len(losses) == pytest.approx(line["loss"], rel=1e-3)
        with torch.no_grad():
            right = (student.eval()((test_set.images / 255 - 0.5) / 0.5).argmax(dim=1) == labels).float().mean()
        assert abs(100 * right.item() - line["top1"]) <= 100 / len(labels)  # an image of the 20


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_what_does_not_belong_together_is_named(labelled, tmp_path):
    images, labels = places_of(labelled)
    with pytest.raises(UserError, match="no finished label store") as missing:
        DistilledBatches(images, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nothing is missing") as absent:
        DistilledBatches(tmp_path / "nothing", labels)
    other = shutil.copytree(images, tmp_path / "other")
    shutil.copy(other / "new001/class001_id000.png", other / "new002/class002_id001.png")
    with pytest.raises(UserError, match="are for images sha256") as others:
        DistilledBatches(other, labels)
    broken = shutil.copytree(labels, tmp_path / "broken")
    damage(epoch_path(broken, 1))
    with pytest.raises(UserError, match=r"epoch_00001.safetensors is missing or damaged") as damaged:
        DistilledBatches(images, broken, verify=True)
    late = DistilledBatches(images, broken)
    assert same(late[2], DistilledBatches(images, labels)[2])
    with pytest.raises(UserError, match=r"epoch_00001.safetensors is missing or damaged") as found:
        late[3]
    assert all("\n" not in str(error.value) for error in (missing, absent, others, damaged, found))


def test_the_readmes_loop_runs(labelled, tmp_path, monkeypatch):
    """As it stands there, over a tiny set where the README has that of the demo."""
    readme = Path(__file__).parents[3] / "relabel" / "README.md"
    data = tmp_path / "outputs/generated_data"
    images, labels = places_of(labelled)
    shutil.copytree(images, data / "syn_data/fashion_mnist/fadrm+_ipc10")
    shutil.copytree(labels, data / "new_labels/fashion_mnist/fadrm+_bs10_ipc10")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(re.search(r"## In a loop of your own.*?```python\n(.*?)```", readme.read_text(), re.DOTALL)[1], names)
    assert (names["epoch"], names["batches"].epochs) == (2, EPOCHS)
    student = torch.load("student.pth", weights_only=True)
    assert student["fc.weight"].shape == (10, 512) and int(student["bn1.num_batches_tracked"]) == 2 * 9
    assert names["schedule"].get_last_lr() == pytest.approx([0.0])
