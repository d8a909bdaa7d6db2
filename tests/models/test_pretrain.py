"""Training teachers: what is left beside a checkpoint, going on after a kill, downloaded checkpoints, bad input."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from models import pretrain
from models.checkpoints import load_network, load_teacher
from models.registry import build_network
from models.scores import read_scores, write_scores
from utils import recipes
from utils.data.digests import digest_of_folder
from utils.data.images import list_images, load_images, normalise
from utils.data.table import get_dataset
from utils.run.errors import UserError
from utils.run.files import only_one, sha256_of, write_json_lines
from utils.run.settings import identity_of
from utils.run.training_state import load_training, save_training

ROOT = Path(__file__).parents[2]
FASHION = get_dataset("fashion_mnist")
NAME = "ConvNetBN_W32"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Training and validation folders of ten easy classes: one grey value each, brighter or darker by image."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 7), ("val", 2)):
        for class_index in range(10):
            (folder / split / f"{class_index}").mkdir(parents=True)
            for index in range(count):
                value = 25 * class_index + 2 * index
                Image.new("RGB", (32, 32), (value,) * 3).save(folder / split / f"{class_index}" / f"{index}.png")
    return folder


@pytest.fixture
def command(images, tmp_path):
    words = (
        f"--dataset-name fashion_mnist --model {NAME} --train-dir {images}/train --val-dir {images}/val --workers 0 "
    )
    words += f"--model-pool-dir {tmp_path}/pool --epochs 2 --batch-size 23 --device cpu"
    return words.split()


def record_of(folder, name=NAME):
    return json.loads((folder / f"{name}.json").read_text())


def visible(folder):
    """The names in a folder but hidden ones: a lock stays there."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def settings_of(command):
    """What a teacher's training belongs to, as its record has it."""
    given = recipes.parse("pretrain", command)
    identity = {"dataset_name": "fashion_mnist", "model": NAME, **identity_of(given)}
    return identity | {"train_images_sha256": digest_of_folder(given.train_dir, FASHION)}


def test_a_teacher_and_its_record(command, images, tmp_path, capsys):
    printed = run(command, capsys)
    pool = tmp_path / "pool"
    record = record_of(pool)
    assert record["settings"] == settings_of(command)
    assert record["test_images_sha256"] == digest_of_folder(images / "val", FASHION)
    assert record["source"] == "trained" and record["dataset"] == "fashion_mnist" and record["epochs"] == 2
    assert record["sha256"] == sha256_of(pool / f"{NAME}.safetensors")
    assert record["settings"]["batch_size"] == 23 and record["settings"]["optimizer"] == "adam"
    assert 0 <= record["top1"] <= record["top5"] <= 100 and record["seconds"] > 0
    assert f"{NAME} (trained): top-1 {record['top1']:.2f} %" in printed
    assert "--batch-size 23" in printed and "--weight-decay" in printed  # the settings that were resolved
    assert load_teacher(NAME, FASHION, pool, "offline").sha256 == record["sha256"]
    assert visible(pool) == [f"{NAME}.json", f"{NAME}.metrics.jsonl", f"{NAME}.safetensors", "report.json"]


def metrics_of(folder):
    """The lines of the metrics, but for their times."""
    lines = [json.loads(line) for line in (folder / f"{NAME}.metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("seconds") > 0 for line in lines)
    return lines


def test_each_epoch_leaves_a_line(command, tmp_path):
    pretrain.main([*command, "--epochs", "5", "--test-every", "2", "--lr", "0.01"])
    lines = metrics_of(tmp_path / "pool")
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["lr"] for line in lines] == pytest.approx([0.005 * (1 + math.cos(math.pi * n / 5)) for n in range(5)])
    assert lines[0]["loss"] > lines[4]["loss"] > 0
    tests = [{"epoch": n["epoch"] + 1, "top1": n["top1"], "top5": n["top5"]} for n in lines if "top1" in n]
    assert tests == record_of(tmp_path / "pool")["tests"] and [test["epoch"] for test in tests] == [2, 4, 5]


def run(command, capsys):
    capsys.readouterr()
    pretrain.main(command)
    return capsys.readouterr().out


def test_it_learns(command, tmp_path):
    pretrain.main([*command, "--epochs", "25", "--lr", "0.01", "--test-every", "10"])
    record = record_of(tmp_path / "pool")
    assert record["top1"] >= 40  # of ten classes
    assert [test["epoch"] for test in record["tests"]] == [10, 20, 25]


def test_the_seed_decides(command, tmp_path):
    for folder, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        pretrain.main([*command, "--seed", seed, "--epochs", "1", "--model-pool-dir", str(tmp_path / folder)])
    first, same, other = (sha256_of(tmp_path / folder / f"{NAME}.safetensors") for folder in "abc")
    assert first == same != other


def test_several_models_one_after_another_with_sgd(command, tmp_path):
    names = ["--model", NAME, "ConvNetBN_W64", "--optimizer", "sgd", "--epochs", "1"]
    pretrain.main([*command, *names])
    assert record_of(tmp_path / "pool")["model"] == NAME
    assert record_of(tmp_path / "pool", "ConvNetBN_W64")["settings"]["momentum"] == 0.9


def test_a_killed_training_goes_on_to_the_same_file(command, tmp_path):
    command = [*command, "--epochs", "40"]
    pretrain.main([*command, "--model-pool-dir", str(tmp_path / "whole")])
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-m", "models.pretrain", *command], cwd=ROOT, env=environment)
    unfinished = tmp_path / "pool" / f"{NAME}.training.safetensors"
    while not unfinished.exists():
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= load_training(unfinished, settings_of(command))["epoch"] < 40
    pretrain.main(command)
    whole, resumed = (tmp_path / folder / f"{NAME}.safetensors" for folder in ("whole", "pool"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert not unfinished.exists()
    assert record_of(tmp_path / "whole")["tests"] == record_of(tmp_path / "pool")["tests"]
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "pool")


def test_killed_before_the_last_line_of_metrics(command, tmp_path, monkeypatch):
    def stop(path, lines):
        if len(lines) == 2:
            raise KeyboardInterrupt
        write_json_lines(path, lines)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "write_json_lines", stop)
        pretrain.main(command)
    assert len(metrics_of(tmp_path / "pool")) == 1
    pretrain.main(command)
    assert [line["epoch"] for line in metrics_of(tmp_path / "pool")] == [0, 1]


def test_a_training_that_an_earlier_version_began_goes_on(command, tmp_path, monkeypatch):
    def without_metrics(path, settings, state):
        save_training(path, settings, {name: value for name, value in state.items() if name != "metrics"})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "save_training", without_metrics)
        pretrain.main(command)
    pretrain.main(command)
    assert [line["epoch"] for line in metrics_of(tmp_path / "pool")] == [1]


def test_stopped_between_checkpoint_and_record(command, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain.teachers, "write_record", stop)
        pretrain.main(command)
    pretrain.main(command)
    assert record_of(tmp_path / "pool")["source"] == "trained"


def test_killed_between_record_and_the_end(command, tmp_path):
    pretrain.main(command)
    before = record_of(tmp_path / "pool")
    unfinished = tmp_path / "pool" / f"{NAME}.training.safetensors"
    unfinished.touch()
    pretrain.main(command)
    assert record_of(tmp_path / "pool") == before and not unfinished.exists()


def test_a_trained_teacher_is_not_trained_again(command, images, tmp_path, capsys):
    pretrain.main(command)
    kept = (tmp_path / "pool" / f"{NAME}.safetensors").stat().st_mtime_ns
    assert "everything was there already" in run(command, capsys)
    shutil.copytree(images / "train", tmp_path / "copied")
    assert "everything was there already" in run([*command, "--train-dir", f"{tmp_path}/copied"], capsys)
    assert (tmp_path / "pool" / f"{NAME}.safetensors").stat().st_mtime_ns == kept
    with pytest.raises(UserError, match=r"trained with other settings: lr \([\d.]+ there, 0.5 here\)"):
        pretrain.main([*command, "--lr", "0.5"])


def test_other_training_images_are_refused(command, images):
    pretrain.main(command)
    with pytest.raises(
        UserError, match=r'trained with other settings: train_images_sha256 \("\w+" there, "\w+" here\)'
    ):
        pretrain.main([*command, "--train-dir", f"{images}/val"])


def test_on_other_validation_images_it_is_tested_again(command, images, tmp_path, capsys):
    pretrain.main(command)
    before, kept = record_of(tmp_path / "pool"), (tmp_path / "pool" / f"{NAME}.safetensors").read_bytes()
    other = [*command, "--val-dir", f"{images}/train"]
    assert f"{NAME} (trained): top-1" in run(other, capsys)
    after = record_of(tmp_path / "pool")
    assert after["test_images_sha256"] == digest_of_folder(images / "train", FASHION) != before["test_images_sha256"]
    tested = {"top1", "top5", "test_images_sha256"}
    assert {key: after[key] for key in after.keys() - tested} == {key: before[key] for key in before.keys() - tested}
    assert (tmp_path / "pool" / f"{NAME}.safetensors").read_bytes() == kept


def test_another_process_that_trains_the_same_teacher_is_refused(command, tmp_path):
    pool = tmp_path / "pool"
    with (
        only_one(pool, "it", f".{NAME}.lock"),
        pytest.raises(UserError, match=f"{NAME} is being trained by another process, in {pool}: wait for it"),
    ):
        pretrain.main(command)
    assert visible(pool) == []
    pretrain.main(command)


def test_scores_of_every_epoch_are_kept_on_request_also_over_a_kill(command, images, tmp_path, monkeypatch):
    pretrain.main([*command, "--keep-scores"])
    pool = tmp_path / "pool"
    digest = digest_of_folder(images / "train", FASHION)
    scores = read_scores(pool, NAME, digest)
    assert scores.shape == (2, 70) and (scores >= 0).all() and (scores <= 2**0.5).all()
    network = load_network(NAME, FASHION, pool / f"{NAME}.safetensors")
    paths, labels = list_images(images / "train", FASHION)
    with torch.no_grad():
        answers = network(normalise(load_images(paths, FASHION), FASHION)).softmax(dim=1)
    expected = (answers - torch.nn.functional.one_hot(labels, 10)).square().sum(dim=1).sqrt()
    torch.testing.assert_close(scores[1], expected, rtol=2e-3, atol=2e-3)

    other = [*command, "--keep-scores", "--model-pool-dir", str(tmp_path / "other")]
    save = pretrain.save_training

    def save_and_stop(*words):
        save(*words)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "save_training", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(other)
    monkeypatch.undo()
    pretrain.main(other)
    assert torch.equal(read_scores(tmp_path / "other", NAME, digest), scores)


def test_scores_that_are_not_there_are_said(command, tmp_path):
    pretrain.main(command)
    with pytest.raises(UserError, match=rf"{NAME}\.scores\.safetensors is missing: train {NAME} with"):
        pretrain.main([*command, "--keep-scores"])
    write_scores(tmp_path / "pool", NAME, torch.zeros(2, 3), "another")
    with pytest.raises(UserError, match="is of other training images, or damaged"):
        read_scores(tmp_path / "pool", NAME, "this")


@pytest.mark.parametrize(
    ("top1", "others", "is_poor"), [(14.9, [], True), (15.1, [], False), (44.0, [90.0], True), (46.0, [90.0], False)]
)
def test_a_teacher_near_chance_or_far_below_what_is_known_is_warned_of(tmp_path, capsys, top1, others, is_poor):
    for number, other in enumerate(others):
        (tmp_path / f"{number}.json").write_text(json.dumps({"top1": other}))
    pretrain.warn_of_poor(NAME, top1, FASHION, tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith(f"WARNING: {NAME} has {top1:.2f} % on fashion_mnist (chance 10.00,") is is_poor
    assert ("the order of its classes may not be" in printed) is is_poor


def test_a_teacher_of_nan_is_refused(command, tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    network = build_network(NAME, FASHION)
    torch.nn.init.constant_(next(network.parameters()), torch.nan)
    torch.save(network.state_dict(), pool / f"{NAME}.pth")
    with pytest.raises(UserError, match="the network gives logits that are not finite: train it again"):
        pretrain.main(command)
    assert not (pool / f"{NAME}.json").exists()


def test_a_downloaded_checkpoint_is_kept_and_tested(command, tmp_path, capsys):
    pool = tmp_path / "pool"
    pool.mkdir()
    torch.save(build_network(NAME, FASHION).state_dict(), pool / f"{NAME}.pth")
    before = sha256_of(pool / f"{NAME}.pth")
    assert f"{NAME} (downloaded): top-1" in run([*command, "--train-dir", str(pool)], capsys)  # no images needed
    record = record_of(pool)
    assert record["source"] == "downloaded" and record["checkpoint"] == f"{NAME}.pth" and record["sha256"] == before
    assert "everything was there already" in run([*command, "--lr", "0.7"], capsys)

    torch.save(build_network(NAME, FASHION).state_dict(), pool / f"{NAME}.pth")  # another one in its place
    said = f"note: {pool / NAME}.pth is not the file that its record speaks of: testing it as a new one\n"
    assert said in run(command, capsys)
    assert record_of(pool)["sha256"] == sha256_of(pool / f"{NAME}.pth") != before


def test_a_download_beside_an_unfinished_training_is_refused(command, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "accuracy", stop)
        pretrain.main([*command, "--test-every", "2", "--epochs", "3"])
    assert (tmp_path / "pool" / f"{NAME}.training.safetensors").exists()
    with pytest.raises(UserError, match=r"begun with other settings: epochs \(3 there, 2 here\)"):
        pretrain.main(command)
    torch.save(build_network(NAME, FASHION).state_dict(), tmp_path / "pool" / f"{NAME}.pth")
    with pytest.raises(UserError, match="beside a training that has not ended"):
        pretrain.main([*command, "--epochs", "3"])


def test_a_loss_that_is_not_finite_stops_at_its_iteration(command, images):
    with pytest.raises(UserError, match=r"the loss became (nan|inf) at epoch \d, iteration \d+: lower --lr"):
        pretrain.main([*command, "--optimizer", "sgd", "--lr", "1e6", "--weight-decay", "1e6"])


def test_a_full_disk_leaves_no_checkpoint(command, tmp_path, monkeypatch):
    def full(self, _):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as caught:
        pretrain.main(command)
    assert caught.value.filename.endswith(f"{NAME}.training.safetensors")
    assert visible(tmp_path / "pool") == []
    assert not list((tmp_path / "pool").glob("*.part"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dataset-name nothing", "unknown dataset 'nothing'"),
        ("--model NoNet", "unknown network 'NoNet'"),
        ("--epochs 0", "--epochs 0: it must be from 1 to 99,999"),
        ("--batch-size 1", "--batch-size 1: it must be from 2 to 1,000,000"),
        ("--lr 0", "--lr 0.0: it must be from 1e-12 to 1e+06"),
        ("--momentum -1", "--momentum -1.0: it must be from 0 to 1"),
        ("--workers -1", "--workers -1: it must be from 0 to 1,024"),
        ("--optimizer lion", "--optimizer lion: there are adam sgd"),
        ("--dataset-name cifar10 --train-dir nowhere", "nowhere is missing: for real images set train_dir and val_dir"),
        ("--dataset-name cifar10 --val-dir nowhere", "nowhere is missing: for real images set train_dir and val_dir"),
        ("--dataset-name cifar100 --model ResNet18", "10 class folders, cifar100 has 100"),
    ],
)
def test_bad_input(command, tmp_path, flags, message):
    with pytest.raises(UserError) as caught:
        pretrain.main([*command, *flags.split()])
    assert message in str(caught.value)
    assert not (tmp_path / "pool").exists()


def test_recipes_are_the_defaults(command):
    folders = command[command.index("--train-dir") : command.index("--epochs")]
    settings = recipes.parse("pretrain", ["--dataset-name", "tiny_imagenet", *folders])
    assert (settings.epochs, settings.batch_size, settings.optimizer, settings.lr) == (150, 64, "sgd", 0.1)
    assert settings.model == () and settings.recipe == "fadrm+"


def test_without_names_the_teachers_of_the_recipe_are_trained(command, tmp_path, capsys):
    at = command.index("--model")
    unnamed = command[:at] + command[at + 2 :]
    said = run([*unnamed, "--dataset-name", "tiny_imagenet", "--dry-run"], capsys)
    assert "  teachers      4\n  epochs        8\n" in said  # ResNet18, ShuffleNetV2, Densenet121, MobileNetV2
    pretrain.main(unnamed)
    endings = ("json", "metrics.jsonl", "safetensors")
    teachers = [f"{name}.{ending}" for name in ("ConvNetBN_W32", "ConvNetBN_W64") for ending in endings]
    assert visible(tmp_path / "pool") == [*teachers, "report.json"]
    with pytest.raises(UserError, match=r"no recipe for the method 'nothing'; there are: .*fadrm"):
        pretrain.main([*unnamed, "--recipe", "nothing"])


def test_a_name_may_say_for_how_many_epochs(command, tmp_path):
    at = command.index("--model")
    named = [*command[: at + 1], f"{NAME}@3", f"{NAME}@2", *command[at + 1 :]]
    pretrain.main(named)
    pool = tmp_path / "pool"
    records = {epochs: record_of(pool, f"{NAME}{epochs}") for epochs in ("", "@2", "@3")}
    assert [record["settings"]["epochs"] for record in records.values()] == [2, 2, 3]
    plain, two, three = (load_file(pool / f"{NAME}{epochs}.safetensors") for epochs in records)
    assert all(torch.equal(plain[name], two[name]) for name in plain)  # the same training
    assert any(not torch.equal(plain[name], three[name]) for name in plain)
    assert load_teacher(f"{NAME}@3", FASHION, pool).sha256 == records["@3"]["sha256"]
    with pytest.raises(UserError, match=f"{NAME}@3: weights that are online were trained already; leave @3 out"):
        load_teacher(f"{NAME}@3", FASHION, pool, "online")


def naming(command, *names):
    """The command for other teachers."""
    at = command.index("--model")
    return [*command[: at + 1], *names, *command[at + 2 :]]


KEPT = [f"{NAME}@1of4", f"{NAME}@3of4"]


def test_one_training_leaves_what_it_was_on_its_way(command, images, tmp_path, monkeypatch, capsys):
    """The rate is that of four epochs all along; the end is what it is without the others."""
    command = [*command, "--epochs", "4", "--model-pool-dir"]
    pretrain.main([*command, str(tmp_path / "plain")])
    trained = []
    train_epoch = pretrain.train_epoch
    monkeypatch.setattr(pretrain, "train_epoch", lambda *words: trained.append(1) or train_epoch(*words))
    pool = tmp_path / "pool"
    together = naming([*command, str(pool)], KEPT[0], NAME, KEPT[1])
    assert "  teachers      3\n  epochs        4\n" in run([*together, "--dry-run"], capsys)
    printed = run(together, capsys)
    assert len(trained) == 4 and "pretrain: 3 teachers in" in printed
    plain, whole = (folder / f"{NAME}.safetensors" for folder in (tmp_path / "plain", pool))
    assert plain.read_bytes() == whole.read_bytes()
    paths, labels = list_images(images / "val", FASHION)
    for name, epoch in zip(KEPT, (1, 3), strict=True):
        record = record_of(pool, name)
        assert (record["epochs"], record["settings"]["epochs"], record["settings"]["model"]) == (epoch, 4, name)
        assert record["source"] == "trained" and record["tests"][-1]["epoch"] == epoch
        network = load_teacher(name, FASHION, pool).module
        with torch.no_grad():
            right = network(normalise(load_images(paths, FASHION), FASHION)).argmax(dim=1) == labels
        assert record["top1"] == pytest.approx(100 * right.float().mean().item())
        lines = (pool / f"{name}.metrics.jsonl").read_text().splitlines()
        assert lines == (pool / f"{NAME}.metrics.jsonl").read_text().splitlines()[:epoch]
    assert visible(pool) == sorted(
        [f"{name}.{ending}" for name in (NAME, *KEPT) for ending in ("json", "metrics.jsonl", "safetensors")]
        + ["report.json"]
    )
    assert "everything was there already" in run(together, capsys)
    with pytest.raises(UserError, match=f"{KEPT[0]}: weights that are online were trained already; leave @1of4 out"):
        load_teacher(KEPT[0], FASHION, pool, "online")

    trained.clear()
    pretrain.main(naming([*command, str(tmp_path / "alone")], KEPT[0]))  # no more epochs than it takes
    assert len(trained) == 1
    assert load_teacher(KEPT[0], FASHION, tmp_path / "alone").sha256 == record_of(pool, KEPT[0])["sha256"]
    later = load_file(pool / f"{KEPT[1]}.safetensors")
    assert any(not torch.equal(value, later[key]) for key, value in load_file(whole).items())


@pytest.mark.parametrize("stage", ["save_training", "save_state", "write_record"])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_killed_training_leaves_all_on_its_way_too(command, tmp_path, monkeypatch, stage, call):
    command = [*naming(command, *KEPT, f"{NAME}@4"), "--keep-scores"]
    pretrain.main([*command, "--model-pool-dir", str(tmp_path / "whole")])
    owner = pretrain.teachers if stage == "write_record" else pretrain
    function, calls = getattr(owner, stage), []

    def stop(*words):
        calls.append(words)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*words)

    with monkeypatch.context() as patch:
        patch.setattr(owner, stage, stop)
        try:
            pretrain.main(command)
        except KeyboardInterrupt:
            pass
        else:
            assert call == 4 and stage != "save_training"  # there are three teachers
    pretrain.main(command)
    pool = tmp_path / "pool"
    assert visible(pool) == visible(tmp_path / "whole")
    for name in (*KEPT, f"{NAME}@4"):
        for ending in ("safetensors", "scores.safetensors"):
            there, here = (folder / f"{name}.{ending}" for folder in (tmp_path / "whole", pool))
            assert there.read_bytes() == here.read_bytes()
        there, here = (record_of(folder, name) for folder in (tmp_path / "whole", pool))
        assert {**there, "seconds": 0} == {**here, "seconds": 0}


def test_teachers_asked_for_later_are_trained_anew_or_on_the_way_that_is_left(command, tmp_path, monkeypatch):
    command = [*command, "--epochs", "4"]
    pretrain.main([*command, "--model-pool-dir", str(tmp_path / "whole")])
    save = pretrain.save_training

    def stop_after_two(path, identity, state):
        save(path, identity, state)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "save_training", stop_after_two)
        pretrain.main(command)
    names = [NAME, *(f"{NAME}@{kept}of4" for kept in (1, 2, 3))]
    pretrain.main(naming(command, *names))
    records = [record_of(tmp_path / "pool", name) for name in names]
    assert [[test["epoch"] for test in record["tests"]] for record in records] == [[2, 3, 4], [1], [2], [2, 3]]
    assert records[0]["sha256"] == record_of(tmp_path / "whole")["sha256"]


@pytest.mark.parametrize(("ipc", "epochs"), [(1, 9), (2, 17)])  # of 70 images; 600 and 120 epochs of ten classes
def test_a_student_may_learn_from_all_images_at_the_cost_of_the_distilled(command, tmp_path, monkeypatch, ipc, epochs):
    at = command.index("--model")
    seen = {1: 600, 2: 1200}[ipc]
    recipe = recipes.recipe_of(FASHION, "fadrm", ipc).set_in("validate", epochs=seen // (10 * ipc))
    monkeypatch.setitem(recipes.METHODS, "fadrm", lambda dataset, ipc: recipe)
    pretrain.main([*command[:at], *command[at + 2 :], "--recipe", "fadrm", "--like-ipc", str(ipc)])
    assert record_of(tmp_path / "pool", f"{NAME}@{epochs}")["epochs"] == epochs == round(seen / 70)


def test_images_of_224_pixels(images, tmp_path):
    """The set's own images may have any size; one epoch of one small network over ten of them."""
    for split in ("train", "val"):
        for class_index in range(10):
            (tmp_path / split / f"{class_index}").mkdir(parents=True)
            Image.new("RGB", (90, 70), (20 * class_index,) * 3).save(tmp_path / split / f"{class_index}" / "0.jpg")
    words = f"--dataset-name imagewoof --model ShuffleNetV2_x0_5 --train-dir {tmp_path}/train --val-dir {tmp_path}/val "
    words += f"--model-pool-dir {tmp_path}/pool --epochs 1 --workers 0 --device cpu"
    pretrain.main(words.split())
    assert record_of(tmp_path / "pool", "ShuffleNetV2_x0_5")["settings"]["batch_size"] == 128
    assert load_file(tmp_path / "pool" / "ShuffleNetV2_x0_5.safetensors")["fc.weight"].shape[0] == 10


def test_a_dry_run_tells_what_is_left_and_writes_nothing(command, tmp_path, capsys):
    command = [*command, "--model", NAME, "ConvNetBN_W64"]
    said = run([*command, "--dry-run"], capsys)
    assert "pretrain, dry run: nothing is written. Still to be made:\n  teachers      2\n  epochs        4\n" in said
    assert not (tmp_path / "pool").exists()
    pretrain.main([*command, "--model", NAME])
    before = {path: path.read_bytes() for path in (tmp_path / "pool").iterdir()}
    said = run([*command, "--dry-run"], capsys)
    assert "  teachers      1\n  epochs        2\n" in said and "  files         3, at most " in said
    assert {path: path.read_bytes() for path in (tmp_path / "pool").iterdir()} == before
    pretrain.main(command)
    assert "  teachers      0\n  epochs        0\n" in run([*command, "--dry-run"], capsys)


def test_a_training_that_was_stopped_has_less_before_it(command, capsys, monkeypatch):
    train_epoch, epochs = pretrain.train_epoch, []

    def stop(*arguments):
        epochs.append(1)
        if len(epochs) == 2:
            raise KeyboardInterrupt
        train_epoch(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "train_epoch", stop)
        pretrain.main(command)
    assert "  teachers      1\n  epochs        1\n" in run([*command, "--dry-run"], capsys)


def test_a_dry_run_counts_the_files_and_no_fewer_bytes_than_a_run_writes(command, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(pretrain, "print_dry_run", lambda stage, work, folder, output: told.append((folder, output)))
    pretrain.main([*command, "--dry-run"])
    pretrain.main(command)
    ((folder, output),) = told
    made = [path for path in (tmp_path / "pool").iterdir() if path.name.startswith(NAME)]
    assert folder == tmp_path / "pool" and output.files == len(made)
    assert sum(path.stat().st_size for path in made) <= output.size < output.disk


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_a_disk_that_is_too_small_is_refused_at_the_start(command, tmp_path, refusal, small_disk, extra):
    small_disk(50_000)
    line = refusal(pretrain.main, [*command, *extra])
    assert line.startswith(f"error: no space for {tmp_path}/pool: it needs up to ")
    assert "its disk has 50,000 free" in line
    assert not (tmp_path / "pool").exists()


def test_nothing_to_train_needs_no_space(command, small_disk):
    pretrain.main(command)
    small_disk(0)
    pretrain.main(command)


def test_the_teachers_of_imagenet1k_are_not_trained(tmp_path, capsys):
    places = ["--train-dir", "nowhere", "--val-dir", "nowhere", "--model-pool-dir", str(tmp_path)]
    pretrain.main(["--dataset-name", "imagenet1k", *places])
    assert (
        "imagenet1k: torchvision's IMAGENET1K_V1 weights are used online; nothing to train" in capsys.readouterr().out
    )
    assert not list(tmp_path.iterdir())
