"""The relabel entry: what it stores, how it goes on, what it refuses."""

import json

import pytest
import torch

from models.checkpoints import load_network, save_state
from models.registry import build_network
from recover import recover
from relabel import relabel
from utils import fkd
from utils.batch_statistics import forget_running_statistics, group_sizes
from utils.datasets import get_dataset
from utils.distilled import read_distilled

FASHION = get_dataset("fashion_mnist")


@pytest.fixture
def distilled(world):
    """The world with 20 distilled images and a second teacher."""
    recover.main(world.recover())
    torch.manual_seed(0)
    save_state(world.pool / "ConvNetBN_W32.safetensors", build_network("ConvNetBN_W32", FASHION), {})
    return world


def store_of(world, name="labels"):
    return world.root / "fkd" / f"{name}_bs8_ipc2"


@torch.no_grad()
def plain_labels(world, names, epoch, settings, batch_statistics=True, weights=None):
    """The plain version: batch by batch, half by half, teacher by teacher."""
    images, _, _ = read_distilled(world.root / "syn/images", FASHION)
    weights = weights or [1 / len(names)] * len(names)
    teachers = [load_network(name, FASHION, world.pool / f"{name}.safetensors") for name in names]
    if batch_statistics:
        teachers = [forget_running_statistics(teacher) for teacher in teachers]
    labels = []
    for batch in range(settings.batches):
        views = fkd.render_views(images, epoch, batch, batch + 1, settings, FASHION)
        for half in views.split(group_sizes(len(views))):
            labels.append(sum(w * teacher(half) for w, teacher in zip(weights, teachers, strict=True)))
    return torch.cat(labels)


def test_a_store_has_every_epoch_and_says_what_it_is(distilled, capsys):
    relabel.main(distilled.relabel())
    assert "3 epochs" in capsys.readouterr().out
    store = fkd.open_store(store_of(distilled), verify=True)
    manifest = store.manifest
    assert (manifest["dataset"], manifest["num_classes"], manifest["ipc"]) == ("fashion_mnist", 10, 2)
    assert (store.settings.images, store.settings.batch_size, store.settings.epochs) == (20, 8, 3)
    assert store.settings.seed == store.settings.fkd_seed == 42
    assert manifest["batch_statistics"] is True
    assert [teacher["name"] for teacher in manifest["teachers"]] == ["ShuffleNetV2"]
    assert len(manifest["teachers"][0]["sha256"]) == len(manifest["images_sha256"]) == 64
    epoch, logits = fkd.read_epoch(store.folder, 2)
    assert logits.dtype == torch.float16
    assert sorted(epoch.order.tolist()) == list(range(20))


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_labels_are_for_the_mixed_views_with_the_statistics_of_their_half(distilled, relative, mix):
    relabel.main(distilled.relabel("--mix-type", mix))
    store = fkd.open_store(store_of(distilled))
    epoch, logits = fkd.read_epoch(store.folder, 1)
    expected = plain_labels(distilled, ["ShuffleNetV2"], epoch, store.settings)
    assert relative(logits, expected) < 1e-3  # stored in float16


def test_several_teachers_are_averaged(distilled, relative):
    names = ["ShuffleNetV2", "ConvNetBN_W32"]
    several = distilled.relabel("--multi-model", "--model-choice", *names)
    several.remove("--use-fp16")
    relabel.main(several)
    store = fkd.open_store(store_of(distilled))
    epoch, logits = fkd.read_epoch(store.folder, 0)
    assert logits.dtype == torch.float32
    assert relative(logits, plain_labels(distilled, names, epoch, store.settings)) < 1e-5


def test_scores_weigh_the_teachers(distilled, relative):
    names = ["ShuffleNetV2", "ConvNetBN_W32"]
    relabel.main(distilled.relabel("--multi-model", "--model-choice", *names, "--model-weight", "90", "80"))
    store = fkd.open_store(store_of(distilled))
    epoch, logits = fkd.read_epoch(store.folder, 0)
    weights = torch.softmax(torch.tensor([9.0, 8.0]), 0).tolist()
    assert relative(logits, plain_labels(distilled, names, epoch, store.settings, weights=weights)) < 1e-3
    assert [teacher["weight"] for teacher in store.manifest["teachers"]] == pytest.approx(weights)


def test_eval_mode_labels_with_running_statistics(distilled, relative):
    relabel.main(distilled.relabel("--eval-mode", "T"))
    store = fkd.open_store(store_of(distilled))
    epoch, logits = fkd.read_epoch(store.folder, 0)
    expected = plain_labels(distilled, ["ShuffleNetV2"], epoch, store.settings, batch_statistics=False)
    assert relative(logits, expected) < 1e-3
    assert store.manifest["batch_statistics"] is False


def test_seeds_of_order_and_views_are_apart(distilled):
    relabel.main(distilled.relabel())
    relabel.main(distilled.relabel("--seed", "1", labels="views"))
    relabel.main(distilled.relabel("--fkd_seed", "1", labels="both"))
    first, views, both = (fkd.read_epoch(store_of(distilled, name), 0)[0] for name in ("labels", "views", "both"))
    assert torch.equal(first.order, views.order)
    assert not torch.equal(first.crop, views.crop)
    assert not torch.equal(first.order, both.order)
    assert not torch.equal(first.crop, both.crop)


def test_a_second_run_makes_what_is_missing_and_nothing_else(distilled, contents, capsys):
    relabel.main(distilled.relabel())
    folder = store_of(distilled)
    before = contents(folder)
    untouched = fkd.epoch_path(folder, 2).stat().st_mtime_ns
    fkd.epoch_path(folder, 0).unlink()
    damaged = fkd.epoch_path(folder, 1)
    damaged.write_bytes(damaged.read_bytes()[:-7])
    (folder / fkd.MANIFEST).unlink()
    relabel.main(distilled.relabel())
    assert "2 epochs" in capsys.readouterr().out
    assert contents(folder) == before
    assert fkd.epoch_path(folder, 2).stat().st_mtime_ns == untouched
    relabel.main(distilled.relabel())
    assert "everything was there already" in capsys.readouterr().out


def test_other_images_under_the_same_name_are_refused(distilled, refusal):
    relabel.main(distilled.relabel())
    recover.main(distilled.recover("--seed", "5", name="others"))
    line = refusal(relabel.main, distilled.relabel(images="others"))
    assert "images_sha256" in line


def test_a_folder_without_as_many_images_in_every_class_is_refused(distilled, refusal):
    (distilled.root / "syn/images/new004/class004_id001.png").unlink()
    assert "1 in class 4" in refusal(relabel.main, distilled.relabel())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--multi-model"], "--multi-model needs"),
        (["--fkd-path", "/"], "--fkd-path /: it ends in the name"),
        (["--model-weight", "1", "2"], "--model-weight has 2 scores for 1 teachers"),
        (["--min-scale-crops", "0.9", "--max-scale-crops", "0.5"], "--min-scale-crops 0.9"),
        (["--epochs", "0"], "--epochs 0"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--cutmix", "0"], "--cutmix 0"),
        (["--teacher-model-name", "ResNet999"], "ResNet999"),
        (["--teacher-model-name", "ResNet50"], "ResNet50"),
        (["--online"], "online"),
        (["--ipc", "3"], "--ipc 3"),
        (["--syn-data-path", "nowhere"], "nowhere"),
        (["--rank", "0"], "torchrun"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(distilled, refusal, extra, message):
    assert message in refusal(relabel.main, distilled.relabel(*extra))
    assert not list((distilled.root / "fkd").rglob("*.safetensors"))


def test_no_teacher_is_refused(distilled, refusal):
    arguments = distilled.relabel()
    cut = arguments.index("--teacher-model-name")
    assert "no teacher" in refusal(relabel.main, arguments[:cut] + arguments[cut + 2 :])


def test_labels_that_are_not_finite_stop_the_run(distilled, refusal):
    teacher = build_network("ConvNetBN_W32", FASHION)
    with torch.no_grad():
        teacher.classifier.bias.fill_(1e6)  # beyond float16
    save_state(distilled.pool / "ConvNetBN_W32.safetensors", teacher, {})
    line = refusal(relabel.main, distilled.relabel("--teacher-model-name", "ConvNetBN_W32"))
    assert "epoch 0: a soft label is not finite in float16" in line
    assert not list(store_of(distilled).glob("epoch*"))


def test_teachers_that_are_named_win_over_the_recipes(world):
    arguments = world.relabel("--recipe", "fadrm+", "--ipc", "10")
    one = relabel.flags.parse([*arguments, "--teacher-model-name", "ResNet18"])
    assert relabel.flags.teacher_names(one) == ["ResNet18"]
    several = relabel.flags.parse([*arguments, "--model-choice", "ResNet18", "Densenet121"])
    assert relabel.flags.teacher_names(several) == ["ResNet18", "Densenet121"]


@pytest.mark.parametrize(
    "flag", ["--workers 4", "-j 4", "--mode fkd_save", "--keep-topk 5", "--start-epoch 0", "--gpu 0"]
)
def test_old_flags_without_effect_say_so(world, capsys, flag):
    relabel.flags.parse(world.relabel(*flag.split()))
    assert f"note: {flag.split()[0]} has no effect here" in capsys.readouterr().out


def test_the_manifest_is_plain_json_with_a_checksum_an_epoch(distilled):
    relabel.main(distilled.relabel())
    manifest = json.loads((store_of(distilled) / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert len(manifest["epoch_sha256"]) == 3
