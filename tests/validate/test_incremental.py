"""Class-incremental learning: the classes of a step, what it labels, trains on and is tested on, what is reported."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoints import load_network, save_state
from models.registry import build_network
from relabel import relabel
from tests.validate.test_validate import comparable
from utils import recipes
from utils.data.distilled import distilled_path, read_distilled, write_distilled
from utils.data.images import decode
from utils.data.table import get_dataset
from utils.fkd import store as fkd
from utils.fkd.groups import forget_running_statistics, group_sizes
from utils.fkd.views import render_views
from utils.recipes import fadrm
from utils.run.errors import UserError
from validate import incremental, training, validate
from validate.incremental import class_counts, class_order, of_classes

FASHION = get_dataset("fashion_mnist")
CELL = ("fashion_mnist", "small", "2")
DISTILLED, RESULTS = "generated_data/syn_data/fashion_mnist", "generated_data/validate_output/fashion_mnist"
LABELS, REPORTS = "generated_data/new_labels/fashion_mnist", "generated_data/reports"


def write_images(folder, seed):
    pixels = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    paths = [distilled_path(folder, 10, label, ipc_id) for label in range(10) for ipc_id in range(2)]
    write_distilled(paths, pixels, "anything")


@pytest.fixture
def root(world, monkeypatch):
    """The folder of everything, with images of a small method, as many random ones, and its teacher."""
    root = world.root / "data"
    save_state(
        root / "pretrained_models/fashion_mnist_pretrained_models/ConvNetBN_W32.safetensors",
        build_network("ConvNetBN_W32", FASHION),
        {},
    )
    write_images(root / DISTILLED / "small_ipc2", 0)
    write_images(root / DISTILLED / "random_ipc2", 1)
    (root / "val").mkdir()
    world.val.rename(root / "val/fashion_mnist")
    monkeypatch.setenv("Main_Data_Path", str(root))
    monkeypatch.setenv("val_dir", str(root / "val"))

    def recipe(dataset, ipc):
        return fadrm.recipe(dataset, ipc).set(teachers=("ConvNetBN_W32",), epochs=2, batch_size=8, test_every=1)

    monkeypatch.setitem(recipes.METHODS, "small", recipe)
    return root


def run(*words):
    incremental.main([*CELL, "--device", "cpu", "--workers", "0", *words])


def results_below(root):
    """The results by the name of their folder and seed, without times."""
    paths = (root / RESULTS).rglob("result.json")
    return {str(path.parent.relative_to(root / RESULTS)): comparable(json.loads(path.read_text())) for path in paths}


@pytest.mark.parametrize(("steps", "counts"), [(2, [5, 10]), (5, [2, 4, 6, 8, 10]), (10, list(range(1, 11)))])
def test_classes_come_in_equal_steps(steps, counts):
    assert class_counts(FASHION, steps) == counts


def test_the_seed_draws_the_order_of_the_classes():
    orders = [class_order(FASHION, seed) for seed in range(20)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(map(tuple, orders))) == 20 and orders[3] == class_order(FASHION, 3)


def test_images_of_some_classes():
    labels = torch.tensor([0, 2, 1, 2, 3, 0])
    images = torch.arange(6).view(6, 1, 1, 1).expand(6, 3, 2, 2)
    chosen, places = of_classes(images, labels, [0, 2])
    assert chosen[:, 0, 0, 0].tolist() == [0, 1, 3, 5] and places.tolist() == [0, 1, 1, 0]


@torch.no_grad()
def test_a_step_knows_of_its_classes_alone(root, monkeypatch):
    """Views, labels, student and test of the first of two steps, each beside a plain version."""
    seen = {}

    def record(run, test_set, dataset, device, quiet):
        seen[dataset.num_classes] = (run, test_set, training.prepare_student(run.settings, 0, dataset, device))

    monkeypatch.setattr(incremental, "make_result", record)
    monkeypatch.setattr(incremental, "report_steps", lambda settings, number: None)
    run("--steps", "2", "--seed", "7")
    classes = sorted(class_order(FASHION, 7)[:5])
    student, test_set, learner = seen[5]
    images, labels, _ = read_distilled(root / DISTILLED / "small_ipc2", FASHION)
    rows = [row for row in range(20) if labels[row] in classes]
    assert torch.equal(student.images, images[rows])
    assert student.classes.tolist() == [classes.index(labels[row]) for row in rows]
    folders = [sorted((root / "val/fashion_mnist").glob("*_class"))[label] for label in classes]
    assert test_set.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    real = [np.asarray(decode(path)) for folder in folders for path in sorted(folder.iterdir())]
    assert np.array_equal(test_set.images.permute(0, 2, 3, 1).numpy(), real)
    assert learner.student(student.images.float()[:2], [2]).shape == (2, 5)

    store = fkd.open_store(root / LABELS / "small_bs8_ipc2_incremental/classes0005_order7")
    assert store.manifest["classes"] == classes and store.settings.images == 10
    epoch, logits = fkd.read_epoch(store, 1)
    pool = root / "pretrained_models/fashion_mnist_pretrained_models"
    teacher = load_network("ConvNetBN_W32", FASHION, pool / "ConvNetBN_W32.safetensors")
    teacher, expected = forget_running_statistics(teacher), []
    for batch in range(2):
        views = render_views(images[rows], epoch, batch, batch + 1, store.settings, FASHION)
        expected += [teacher(half)[:, classes] for half in views.split(group_sizes(len(views)))]
    torch.testing.assert_close(logits.float(), torch.cat(expected), rtol=2e-3, atol=2e-3)


def test_the_last_step_is_what_validate_makes(root, contents):
    run("--steps", "2", "--seed", "1")
    ordinary = root / RESULTS / "small_ipc2_ConvNetBN_W32"
    found, labels = results_below(root)["small_ipc2_ConvNetBN_W32/seed1"], contents(root / LABELS / "small_bs8_ipc2")
    ordinary.rename(root / "away")
    (root / LABELS / "small_bs8_ipc2").rename(root / "labels away")
    flags = ["--dataset-name", "fashion_mnist", "--recipe", "small", "--ipc", "2", "--device", "cpu"]
    relabel.main(flags)
    validate.main([*flags, "--seed", "1", "--workers", "0"])
    assert contents(root / LABELS / "small_bs8_ipc2") == labels
    assert results_below(root)["small_ipc2_ConvNetBN_W32/seed1"] == found


def test_a_stopped_run_goes_on_in_its_step(root, monkeypatch):
    words = ("--steps", "2", "--seed", "0", "1")
    run(*words)
    whole = results_below(root)
    assert len(whole) == 4
    for name in ("generated_data/validate_output", LABELS):
        (root / name).rename(root / f"{name} whole")
    train_epoch, trained = training.train_epoch, []

    def stop_before_the_sixth(*arguments):
        trained.append(arguments[2])
        if len(trained) == 6:
            raise KeyboardInterrupt
        return train_epoch(*arguments)

    monkeypatch.setattr(training, "train_epoch", stop_before_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        run(*words)
    assert len(results_below(root)) == 2  # both steps of seed 0, as soon as they were done
    run(*words)
    assert trained == [0, 1, 0, 1, 0, 1, 1, 0, 1]
    assert results_below(root) == whole
    run(*words)
    assert len(trained) == 9


def test_rows_stand_beside_each_other(root, capsys):
    run("--steps", "2", "--seed", "0", "1")
    run("--steps", "5", "2", "--seed", "0", "--images", "random")
    results = results_below(root)
    capsys.readouterr()
    run("--steps", "2", "--seed", "0", "1")
    printed = capsys.readouterr().out
    first, last = (
        "small_ipc2_ConvNetBN_W32_incremental/classes0005_order{0}/seed{0}",
        "small_ipc2_ConvNetBN_W32/seed{0}",
    )
    top1 = {seed: [results[name.format(seed)]["top1"] for name in (first, last)] for seed in (0, 1)}
    path = Path(re.search("this table: (.*)", printed)[1])
    assert path == root / REPORTS / "fashion_mnist_incremental2_ipc2_ConvNetBN_W32.json"
    content = json.loads(path.read_text())
    assert (content["steps"], content["classes"]) == (2, [5, 10])
    assert content["orders"] == {"0": class_order(FASHION, 0), "1": class_order(FASHION, 1)}
    assert content["top1"]["small"] == {"0": top1[0], "1": top1[1]}
    assert content["top1"].keys() == {"small", "random_by_small"} and content["top1"]["random_by_small"].keys() == {"0"}
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert rows[0] == "| fashion_mnist, IPC 2, ConvNetBN_W32, 2 steps: top-1 % | 5 classes | 10 classes | seeds |"
    means = [(top1[0][place] + top1[1][place]) / 2 for place in range(2)]
    assert [cell.split(" ±")[0] for cell in rows[2].split(" | ")[1:3]] == [f"{mean:.2f}" for mean in means]
    assert rows[1].startswith("| random_by_small |") and rows[2].endswith("| 2 |")
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.width > 400
    five = json.loads((root / REPORTS / "fashion_mnist_incremental5_ipc2_ConvNetBN_W32.json").read_text())
    assert five["top1"].keys() == {"random_by_small"}


def test_other_settings_in_the_same_folder_are_refused(root, refusal):
    run("--steps", "2", "--seed", "0")
    line = refusal(incremental.main, [*CELL, "--device", "cpu", "--steps", "2", "--seed", "0", "--temperature", "3"])
    assert "settings.temperature (20.0 there, 3.0 here)" in line


def test_a_dry_run_writes_nothing(root, contents, capsys):
    before = contents(root)
    run("--steps", "2", "--seed", "0", "1", "--dry-run")
    assert contents(root) == before
    printed = capsys.readouterr().out
    assert re.search(r"students +4\n +views +120\n", printed)  # (10 + 20) images, 2 epochs, 2 seeds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*CELL, "--steps", "20"), "--steps 20: the 10 classes of fashion_mnist make 2 5 10 equal steps"),
        ((*CELL, "--steps", "5", "3"), "--steps 3: the 10 classes of fashion_mnist make 2 5 10 equal steps"),
        ((*CELL, "--steps", "1"), "--steps 1: "),
        ((*CELL, "--steps", "x"), "invalid int value"),
        (CELL[:2], "usage: python -m validate.incremental DATASET METHOD IPC"),
        ((*CELL, "--epochs", "3"), "--epochs 3: this cell's labels have 2"),
        ((*CELL, "--image-weights"), "--image-weights: they are of all classes together"),
        ((*CELL, "Nothing"), "unknown network 'Nothing'"),
        (
            (*CELL[:2], "3"),
            "small_ipc3 is missing: `bash run.sh fashion_mnist small 3 ConvNetBN_W32` makes it",
        ),
        (
            (*CELL, "--images", "herding"),
            "`python -m recover.choose_images --dataset-name fashion_mnist --ipc 2 --selector herding` makes it",
        ),
    ],
)
def test_what_cannot_be(root, refusal, words, message):
    assert message in refusal(incremental.main, list(words))


def test_the_defaults_are_those_of_the_paper(root):
    assert incremental.parse(list(CELL))[2] == [5, 10]
    with pytest.raises(UserError, match="cifar"):
        incremental.parse(["cifar", *CELL[1:]])
