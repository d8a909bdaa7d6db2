"""The relabel entry: what it stores, how it goes on, what it refuses."""

import json
import shutil

import pytest
import torch

from models.checkpoints import load_network, save_state
from models.registry import build_network
from models.teachers import write_record
from recover import recover
from relabel import relabel
from utils import recipes
from utils.data.distilled import read_distilled
from utils.data.images import normalise
from utils.data.table import get_dataset
from utils.fkd import store as fkd
from utils.fkd.groups import GroupedNetwork, forget_running_statistics, group_sizes
from utils.fkd.views import draw_epoch, render_views
from utils.run.team import ALONE, Team

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
        views = render_views(images, epoch, batch, batch + 1, settings, FASHION)
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
    epoch, logits = fkd.read_epoch(store, 2)
    assert logits.dtype == torch.float16
    assert sorted(epoch.order.tolist()) == list(range(20))


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_labels_are_for_the_mixed_views_with_the_statistics_of_their_half(distilled, relative, mix):
    relabel.main(distilled.relabel("--mix-type", mix))
    store = fkd.open_store(store_of(distilled))
    epoch, logits = fkd.read_epoch(store, 1)
    expected = plain_labels(distilled, ["ShuffleNetV2"], epoch, store.settings)
    assert relative(logits, expected) < 1e-3  # stored in float16


def test_several_teachers_are_averaged(distilled, relative):
    names = ["ShuffleNetV2", "ConvNetBN_W32"]
    several = distilled.relabel("--multi-model", "--model-choice", *names)
    several.remove("--use-fp16")
    relabel.main(several)
    store = fkd.open_store(store_of(distilled))
    epoch, logits = fkd.read_epoch(store, 0)
    assert logits.dtype == torch.float32
    assert relative(logits, plain_labels(distilled, names, epoch, store.settings)) < 1e-5


def test_scores_weigh_the_teachers(distilled, relative):
    names = ["ShuffleNetV2", "ConvNetBN_W32"]
    relabel.main(distilled.relabel("--multi-model", "--model-choice", *names, "--model-weight", "90", "80"))
    store = fkd.open_store(store_of(distilled))
    epoch, logits = fkd.read_epoch(store, 0)
    weights = torch.softmax(torch.tensor([9.0, 8.0]), 0).tolist()
    assert relative(logits, plain_labels(distilled, names, epoch, store.settings, weights=weights)) < 1e-3
    assert [teacher["weight"] for teacher in store.manifest["teachers"]] == pytest.approx(weights)


def test_eval_mode_labels_with_running_statistics(distilled, relative):
    relabel.main(distilled.relabel("--eval-mode", "T"))
    store = fkd.open_store(store_of(distilled))
    epoch, logits = fkd.read_epoch(store, 0)
    expected = plain_labels(distilled, ["ShuffleNetV2"], epoch, store.settings, batch_statistics=False)
    assert relative(logits, expected) < 1e-3
    assert store.manifest["batch_statistics"] is False


@torch.no_grad()
def test_fixed_labels_are_of_whole_images_in_every_view_of_theirs(distilled):
    words = distilled.relabel("--labels", "fixed", "--eval-mode", "T")
    at = words.index("--mix-type")
    relabel.main(words[:at] + words[at + 2 :])
    store = fkd.open_store(store_of(distilled))
    assert store.manifest["labels"] == "fixed"
    images, _, _ = read_distilled(distilled.root / "syn/images", FASHION)
    teacher = load_network("ShuffleNetV2", FASHION, distilled.pool / "ShuffleNetV2.safetensors")
    expected = teacher(normalise(images, FASHION))
    for number in range(3):
        epoch, logits = fkd.read_epoch(store, number)
        torch.testing.assert_close(logits.float(), expected[epoch.order.long()], rtol=2e-3, atol=2e-3)


def test_seeds_of_order_and_views_are_apart(distilled):
    relabel.main(distilled.relabel())
    relabel.main(distilled.relabel("--seed", "1", labels="views"))
    relabel.main(distilled.relabel("--fkd_seed", "1", labels="both"))
    stores = [fkd.open_store(store_of(distilled, name)) for name in ("labels", "views", "both")]
    first, views, both = (fkd.read_epoch(store, 0)[0] for store in stores)
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
    assert contents(folder) == before


def test_epochs_that_are_not_right_are_made_again_before_a_store_is_closed(distilled, contents, capsys):
    """Whole files of another epoch, or with a label changed, of a store that was not finished."""
    relabel.main(distilled.relabel())
    folder = store_of(distilled)
    before = contents(folder)
    change(folder)
    (folder / fkd.MANIFEST).unlink()
    relabel.main(distilled.relabel())
    assert "2 epochs" in capsys.readouterr().out
    assert contents(folder) == before


def test_epochs_of_a_finished_store_are_read_on_request(distilled, contents, capsys):
    relabel.main(distilled.relabel())
    folder = store_of(distilled)
    before = contents(folder)
    change(folder)
    relabel.main(distilled.relabel())
    assert "everything was there already" in capsys.readouterr().out
    relabel.main(distilled.relabel("--verify"))
    assert "2 epochs" in capsys.readouterr().out
    assert contents(folder) == before


def change(folder):
    """Put epoch 0 in place of epoch 1, and change a label of epoch 2."""
    shutil.copy(fkd.epoch_path(folder, 0), fkd.epoch_path(folder, 1))
    content = bytearray(fkd.epoch_path(folder, 2).read_bytes())
    content[-1] ^= 1
    fkd.epoch_path(folder, 2).write_bytes(content)


def test_a_store_of_fewer_epochs_has_the_first_ones(distilled, contents):
    relabel.main(distilled.relabel())
    relabel.main(distilled.relabel("--stored-epochs", "2", labels="few"))
    all_of_them, few = (contents(store_of(distilled, name)) for name in ("labels", "few"))
    epochs = {name: content for name, content in all_of_them.items() if name in few and name.startswith("epoch")}
    assert len(epochs) == 2 and epochs.items() <= few.items()
    assert fkd.open_store(store_of(distilled, "few")).manifest["format_version"] == 1


PACKED = ["--no-store-draws", "--codec", "top_k", "--top-k", "2"]


def test_a_packed_store_has_the_same_views_and_the_largest_logits(distilled, contents, capsys):
    for name, words in (("labels", []), ("few", PACKED)):
        relabel.main(distilled.relabel(*words, labels=name))
    plain, packed = (fkd.open_store(store_of(distilled, name), verify=True) for name in ("labels", "few"))
    for number in range(3):
        (draws, logits), (same, largest) = (fkd.read_epoch(store, number) for store in (plain, packed))
        assert all(map(torch.equal, draws.tensors().values(), same.tensors().values()))
        values, classes = logits.float().topk(2, dim=1)
        assert torch.equal(largest.gather(1, classes), values) and (largest > -1e6).sum() == 2 * len(logits)
    before = contents(store_of(distilled, "few"))
    victim = fkd.epoch_path(packed.folder, 1)
    victim.write_bytes(victim.read_bytes()[:-1] + b"0")
    capsys.readouterr()
    relabel.main(distilled.relabel(*PACKED, "--verify", labels="few"))
    assert "1 epochs" in capsys.readouterr().out
    assert contents(store_of(distilled, "few")) == before


def test_a_packed_store_takes_no_epochs_of_a_plain_one(distilled, refusal):
    relabel.main(distilled.relabel())
    line = refusal(relabel.main, distilled.relabel(*PACKED))
    assert 'codec (none there, "top_k" here)' in line and "store_draws (none there, false here)" in line


def test_the_record_appears_with_the_first_epoch(distilled, refusal, monkeypatch):
    """What made nothing claims nothing: other settings may go there."""
    with monkeypatch.context() as patch:
        patch.setattr(relabel, "label_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            relabel.main(distilled.relabel())
    assert not store_of(distilled).exists()
    relabel.main(distilled.relabel("--seed", "1"))
    assert (store_of(distilled) / "settings.json").exists()
    line = refusal(relabel.main, distilled.relabel("--seed", "2"))
    assert "soft labels made with other settings: views.seed (1 there, 2 here)" in line


def stop(*arguments):
    raise KeyboardInterrupt


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
        (["--fkd-path", "/"], "--fkd-path /: it ends in the name"),
        (["--model-weight", "1", "2"], "--model-weight has 2 scores for 1 teachers: give as many"),
        (["--min-scale-crops", "0.9", "--max-scale-crops", "0.5"], "--min-scale-crops 0.9 --max-scale-crops 0.5"),
        (["--min-scale-crops", "0"], "--min-scale-crops 0.0: it must be from 0.0001 to 1"),
        (["--epochs", "0"], "--epochs 0: it must be from 1 to 99,999"),
        (["--batch-size", "0"], "--batch-size 0: it must be from 1 to 32,768"),
        (["--cutmix", "0"], "--cutmix 0.0: it must be from 0.05 to 5"),
        (["--stored-epochs", "4"], "--stored-epochs 4: the training has 3, name no more"),
        (["--codec", "top_k"], "--codec top_k: name --top-k, how many logits of a view it keeps"),
        (["--top-k", "3"], "--top-k 3 is of --codec top_k: name it, too"),
        (["--codec", "top_k", "--top-k", "11"], "--top-k 11: fashion_mnist has 10 classes"),
        (["--codec", "zip"], "--codec zip: there are dense top_k"),
        (["--tiles", "3"], "--tiles 3 does not divide the 32 pixels of fashion_mnist"),
        (["--teacher-model-name", "ResNet999"], "ResNet999"),
        (["--teacher-model-name", "ResNet50"], "ResNet50"),
        (["--weighting", "prior"], "has no record of ShuffleNetV2 with its accuracy"),
        (["--online"], "online"),
        (["--ipc", "3"], "--ipc 3: "),
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
    none = arguments[:cut] + arguments[cut + 2 :]
    for words in (none, [*none, "--model-choice"]):
        assert "--model-choice is missing: their logits are averaged" in refusal(relabel.main, words)


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
    one = recipes.parse("relabel", [*arguments, "--teacher-model-name", "ResNet18"])
    assert one.teachers == ("ResNet18",)
    several = recipes.parse("relabel", [*arguments, "--model-choice", "ResNet18", "Densenet121"])
    assert several.teachers == ("ResNet18", "Densenet121")


@pytest.mark.parametrize(
    "flag",
    ["--workers 4", "-j 4", "--mode fkd_save", "--keep-topk 5", "--start-epoch 0", "--gpu 0", "--multi-model"],
)
def test_old_flags_without_effect_say_so(world, capsys, flag):
    recipes.parse("relabel", world.relabel(*flag.split()))
    assert f"note: {flag.split()[0]} has no effect here" in capsys.readouterr().out


def test_the_manifest_is_plain_json_with_a_checksum_an_epoch(distilled):
    relabel.main(distilled.relabel())
    manifest = json.loads((store_of(distilled) / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert len(manifest["epoch_sha256"]) == 3


# The parts of it


def test_views_follow_the_settings(world):
    words = ["--mix-type", "mixup", "--mixup", "0.7", "--min-scale-crops", "0.2", "--max-scale-crops", "0.9"]
    views = relabel.view_settings(recipes.parse("relabel", world.relabel(*words, "--tiles", "2")), 20, FASHION)
    assert (views.images, views.size, views.batch_size, views.epochs) == (20, 32, 8, 3)
    assert (views.min_scale, views.max_scale, views.mix, views.mix_alpha) == (0.2, 0.9, "mixup", 0.7)
    assert (views.fkd_seed, views.seed, views.tiles) == (42, 42, 2)
    cutmix = relabel.view_settings(recipes.parse("relabel", world.relabel("--cutmix", "0.6")), 20, FASHION)
    assert (cutmix.mix, cutmix.mix_alpha, cutmix.tiles) == ("cutmix", 0.6, 1)


def test_tiles_go_into_views_and_store(distilled, relative):
    relabel.main(distilled.relabel("--tiles", "2"))
    store = fkd.open_store(store_of(distilled), verify=True)
    assert (store.manifest["format_version"], store.settings.tiles) == (2, 2)
    epoch, logits = fkd.read_epoch(store, 0)
    assert torch.equal(epoch.tile_order, draw_epoch(store.settings, 0).tile_order)
    assert relative(logits, plain_labels(distilled, ["ShuffleNetV2"], epoch, store.settings)) < 1e-3
    as_it_is = plain_labels(distilled, ["ShuffleNetV2"], epoch._replace(tile_order=None), store.settings)
    assert relative(logits, as_it_is) > 0.1


def test_scores_are_those_given_or_the_recorded_accuracies(distilled, capsys):
    def scores(*words):
        names = ("--model-choice", "ShuffleNetV2", "ConvNetBN_W32")
        return tuple(relabel.scores_of(recipes.parse("relabel", distilled.relabel(*names, *words))))

    for name, top1 in (("ShuffleNetV2", 80.0), ("ConvNetBN_W32", 70.5)):
        write_record(distilled.pool, name, "fashion_mnist", "downloaded", {"top1": top1, "top5": 99.0})
    assert scores() == ()
    assert scores("--model-weight", "1", "2") == (1.0, 2.0)
    assert "recorded" not in capsys.readouterr().out
    assert scores("--weighting", "prior") == (80.0, 70.5)
    assert "recorded accuracies, ShuffleNetV2 80.00 %, ConvNetBN_W32 70.50 %" in capsys.readouterr().out


def test_teachers_normalise_by_groups_unless_told_otherwise(distilled):
    for mode, kind in (("F", GroupedNetwork), ("T", type(build_network("ShuffleNetV2", FASHION)))):
        settings = recipes.parse("relabel", distilled.relabel("--eval-mode", mode))
        teacher = relabel.load_teacher("ShuffleNetV2", FASHION, distilled.pool, "offline")
        views = relabel.view_settings(settings, 20, FASHION)
        (network,) = relabel.networks_of([teacher], settings, views, 16, torch.device("cpu"))
        assert type(network) is kind


# The dry run


@pytest.fixture
def dry(distilled, monkeypatch):
    """Dry runs of relabel: what each would print."""
    found = []
    monkeypatch.setattr(relabel, "print_dry_run", lambda *told: found.append(told))

    def run(*extra, team=ALONE):
        relabel.relabel(recipes.parse("relabel", distilled.relabel("--dry-run", *extra)), team)
        return found.pop()

    return run


def test_a_dry_run_writes_nothing(distilled, contents, capsys):
    before = contents(distilled.root)
    relabel.main(distilled.relabel("--dry-run"))
    assert contents(distilled.root) == before
    assert not (distilled.root / "fkd").exists()
    output = capsys.readouterr().out
    assert "relabel, dry run: nothing is written" in output
    assert "  epochs        3\n" in output
    assert "  views         60\n" in output


def test_files_and_bytes_are_those_of_the_run(distilled, dry):
    stage, work, folder, output = dry()
    assert (stage, folder) == ("relabel", store_of(distilled))
    assert work == {"epochs": 3, "views": 60}
    relabel.main(distilled.relabel())
    files = [path for path in folder.iterdir() if path.is_file()]
    epochs = [path.stat().st_size for path in files if path.suffix == ".safetensors"]
    assert output.files == len(epochs) == 3
    assert sum(epochs) <= output.size <= sum(epochs) + 3 * 4096
    assert sum(path.stat().st_size for path in files) < output.disk


def test_what_is_there_is_not_counted(distilled, dry):
    relabel.main(distilled.relabel())
    _, work, _, output = dry()
    assert (work, output.files) == ({"epochs": 0, "views": 0}, 0)
    fkd.epoch_path(store_of(distilled), 1).unlink()
    _, work, _, output = dry()
    assert (work, output.files) == ({"epochs": 1, "views": 20}, 1)
    change(store_of(distilled))  # epoch 1 is there again, but not the right one
    _, work, _, output = dry()
    assert (work, output.files) == ({"epochs": 0, "views": 0}, 0)
    _, work, _, output = dry("--verify")
    assert (work, output.files) == ({"epochs": 2, "views": 40}, 2)


class Member(Team):
    """One of several processes that are not there."""

    def total(self, number):
        return number


def test_a_dry_run_of_several_processes_tells_of_all_epochs(dry):
    _, work, _, output = dry(team=Member(0, 3, 0))
    assert (work, output.files) == ({"epochs": 3, "views": 60}, 3)


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_a_disk_that_is_too_small_is_refused_at_the_start(distilled, refusal, small_disk, extra):
    small_disk(50_000)
    line = refusal(relabel.main, distilled.relabel(*extra))
    assert f"no space for {distilled.root}/fkd/labels_bs8_ipc2: it needs up to 2,1" in line
    assert "its disk has 50,000 free" in line
    assert not (distilled.root / "fkd").exists()
