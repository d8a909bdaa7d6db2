"""The validate entry: what it reports, how it goes on, what it refuses."""

import json
import shutil

import pytest
import torch
from PIL import Image

from recover import recover
from relabel import relabel
from utils import recipes
from utils.data.distilled import weights_path
from utils.data.table import get_dataset
from utils.fkd import store as fkd
from utils.fkd.losses import kl
from utils.run.files import only_one, sha256_of, write_json
from utils.run.team import ALONE, Team
from utils.seams import LOSSES
from validate import training, validate
from validate.training import CHECKPOINT

FASHION = get_dataset("fashion_mnist")


@pytest.fixture
def labelled(world):
    """The world with distilled images and their label store."""
    recover.main(world.recover())
    relabel.main(world.relabel())
    return world


def result_of(world, name="run", seed=0):
    return json.loads((world.root / f"results/fashion_mnist/{name}/seed{seed}/result.json").read_text())


def comparable(result):
    """A result without times, device and versions."""
    timed = {"seconds", "seconds_this_run", "peak_memory_gib", "device", "versions"}
    metrics = [{key: value for key, value in line.items() if key != "seconds"} for line in result["metrics"]]
    return {**{key: value for key, value in result.items() if key not in timed}, "metrics": metrics}


def test_a_result_says_all_about_itself(labelled, capsys):
    validate.main(labelled.validate())
    folder = labelled.root / "results/fashion_mnist/run"
    result = result_of(labelled)
    expected = {
        "dataset": "fashion_mnist",
        "method": "run",
        "ipc": 2,
        "student": "ConvNetBN_W32",
        "seed": 0,
        "epochs": 3,
    }
    assert {key: result[key] for key in expected} == expected
    assert 0 <= result["top1"] <= result["best_top1"] <= 100
    assert result["top1"] <= result["top5"]
    assert len(result["images_sha256"]) == len(result["labels_sha256"]) == 64
    assert result["settings"]["temperature"] == 20
    assert {"seconds", "device", "versions", "best_epoch"} <= result.keys()
    lines = (folder / "seed0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result["metrics"]
    with Image.open(folder / "curve.png") as curve:
        assert curve.width > 100
    assert not list(folder.rglob("checkpoint*"))
    assert "best top-1" in capsys.readouterr().out


def test_several_seeds_give_mean_and_spread(labelled, capsys):
    validate.main(labelled.validate("--seed", "0", "1"))
    summary = json.loads((labelled.root / "results/fashion_mnist/run/summary.json").read_text())
    values = [result_of(labelled, seed=seed)["top1"] for seed in (0, 1)]
    assert summary["top1"]["mean"] == pytest.approx(sum(values) / 2)
    assert summary["top1"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert "mean" in capsys.readouterr().out
    first, second = (result_of(labelled, seed=seed)["metrics"] for seed in (0, 1))
    assert first[0]["loss"] != second[0]["loss"]


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        ("", {"ConvNetBN_W32": "run"}),
        ("--model A", {"A": "run"}),
        ("--model A B --model C", {"C": "run"}),
        ("--model A B", {"A": "run_A", "B": "run_B"}),
        ("--model A timm:b --exp-name x_{model}_y", {"A": "x_A_y", "timm:b": "x_timm_b_y"}),
        ("--exp-name {model}_ipc{ipc}_bs{batch_size} --ipc 2", {"ConvNetBN_W32": "ConvNetBN_W32_ipc2_bs8"}),
    ],
)
def test_students_and_their_folders(world, words, runs):
    settings = validate.parse_cells(world.validate(*words.split()))
    assert {each.model: each.exp_name for each in settings} == runs


CELLS = "--dataset-name imagenet1k --recipe fadrm+ --model ResNet18 ResNet101 --exp-name e --val-dir v --output-dir o"


def test_each_ipc_and_student_has_its_own_rates_and_folders():
    places = "--original-data-path i{ipc} --fkd-path l_bs{batch_size}_ipc{ipc}"
    cells = validate.parse_cells([*CELLS.split(), *places.split(), "--ipc", "50", "10"])
    assert [(cell.ipc, cell.model) for cell in cells] == [(i, m) for i in (50, 10) for m in ("ResNet18", "ResNet101")]
    for cell in cells:
        assert (cell.adamw_lr, cell.eta) == recipes.student_rate(
            get_dataset("imagenet1k"), "fadrm+", cell.model, cell.ipc
        )[:2]
        assert (str(cell.original_data_path), str(cell.fkd_path)) == (f"i{cell.ipc}", f"l_bs16_ipc{cell.ipc}")
        assert cell.exp_name == f"e_ipc{cell.ipc}_{cell.model}"


@pytest.mark.parametrize("words", ["--ipc 1 10 --exp-name x_ipc10", "--model A AB --exp-name x_AB --ipc 1"])
def test_a_name_that_is_part_of_another_is_told_apart(words):
    places = "--original-data-path i{ipc} --fkd-path l{ipc}"
    cells = validate.parse_cells([*CELLS.split(), *places.split(), *words.split()])
    assert len({(cell.exp_name) for cell in cells}) == len({(cell.ipc, cell.model) for cell in cells})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--original-data-path i --fkd-path l{ipc} --ipc 1 10", "--original-data-path i: for several it needs {ipc}"),
        (
            "--original-data-path i{ipc} --fkd-path l --ipc 1 10",
            "--fkd-path l: for several it needs {ipc} in its place",
        ),
        ("--original-data-path i{ipc} --fkd-path l{ipc} --ipc 1 1", "--ipc 1 1: each once"),
        ("--original-data-path i{ipc} --fkd-path l{ipc} --ipc 1 --draw 2 2", "--draw 2 2: each once"),
        (
            "--original-data-path i{ipc} --fkd-path l{ipc} --ipc 1 --draw 0 2",
            "--original-data-path i1: for several",
        ),
        ("--original-data-path i{ipc} --fkd-path l{ipc} --ipc x", "invalid int value: 'x'"),
    ],
)
def test_several_ipcs_that_cannot_be(refusal, words, message):
    assert message in refusal(validate.parse_cells, [*CELLS.split(), *words.split()])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fkd-path", "l{ipc}"], "--fkd-path l{ipc}: this run has no ipc to put there; give --ipc"),
        (["--exp-name", "{other}"], "--exp-name {other}: {other} stands for nothing; there are "),
    ],
)
def test_what_cannot_be_filled_in_is_named(world, refusal, words, message):
    assert message in refusal(validate.parse_cells, world.validate(*words))


def test_several_ipcs_and_students_give_the_results_of_one_run_each(world, capsys):
    """Two IPCs, two students, two seeds in one call: each as when it is alone, and a table of all."""
    for ipc in ("1", "2"):
        recover.main(world.recover("--ipc-end", ipc, name=f"syn{ipc}"))
        relabel.main(world.relabel(images=f"syn{ipc}", labels="labels"))
    several = ("--seed", "0", "1", "--ipc", "1", "2", "--model", "ConvNetBN_W32", "ConvNetBN_W64", "--epochs", "2")
    validate.main(world.validate(*several, images="syn{ipc}", labels="labels", ipc="{ipc}"))
    table = capsys.readouterr().out.splitlines()[-3:]
    assert table[0].split() == ["top-1", "%", "IPC", "1", "IPC", "2"]
    for ipc in (1, 2):
        for model in ("ConvNetBN_W32", "ConvNetBN_W64"):
            alone = ("--seed", "1", "--ipc", f"{ipc}", "--model", model, "--epochs", "2", "--method", "run")
            validate.main(world.validate(*alone, images=f"syn{ipc}", labels="labels", ipc=ipc, name="alone"))
            together = result_of(world, f"run_ipc{ipc}_{model}", seed=1)
            assert comparable(together) == comparable(result_of(world, "alone", seed=1))
            shutil.rmtree(world.root / "results/fashion_mnist/alone")
            mean = (together["top1"] + result_of(world, f"run_ipc{ipc}_{model}")["top1"]) / 2
            row = next(line for line in table[1:] if line.startswith(model))
            assert f"{mean:.2f} ±" in row


def test_the_same_seed_gives_the_same_result(labelled):
    validate.main(labelled.validate())
    validate.main(labelled.validate("--method", "run", name="again"))
    assert comparable(result_of(labelled)) == comparable(result_of(labelled, "again"))


@pytest.mark.parametrize("network", ["ConvNetBN_W32", "MobileNetV2"])
def test_a_stopped_run_ends_as_one_that_was_not(labelled, monkeypatch, network):
    extra = ("--model", network, "--method", "m", "--epochs", "2" if network == "MobileNetV2" else "3")
    validate.main(labelled.validate(*extra, name="whole"))
    begun = stop_before(monkeypatch, epoch=1)
    with pytest.raises(KeyboardInterrupt):
        validate.main(labelled.validate(*extra, name="stopped"))
    validate.main(labelled.validate(*extra, name="stopped"))
    assert begun == ([0, 1, 1] if network == "MobileNetV2" else [0, 1, 1, 2])  # epoch 0 was not trained again
    assert comparable(result_of(labelled, "stopped")) == comparable(result_of(labelled, "whole"))


def test_images_may_be_weighed(labelled, refusal):
    """Weights of 1 change no number; others do, and a result says which."""
    weighed = labelled.validate("--image-weights", name="weighed")
    folder = labelled.root / "syn/images"
    assert f"{folder}/weights.json is missing: `python -m recover.weigh_images`" in refusal(validate.main, weighed)
    validate.main(labelled.validate())
    plain = result_of(labelled)
    record = {"images_sha256": plain["images_sha256"], "observer": "it", "observer_sha256": "0"}
    write_json(weights_path(folder), record | {"weights": [1.0] * 20})
    validate.main(weighed)
    result = result_of(labelled, "weighed")
    assert result["image_weights_sha256"] == sha256_of(weights_path(folder)) and "image_weights_sha256" not in plain
    assert result["settings"]["image_weights"] is True and "image_weights" not in plain["settings"]
    assert comparable(result)["metrics"] == comparable(plain)["metrics"]

    write_json(weights_path(folder), record | {"weights": [0.5, 1.5] * 10})
    assert "image_weights_sha256" in refusal(validate.main, [*weighed, "--seed", "1"])  # beside those of others
    validate.main(labelled.validate("--image-weights", name="other"))
    assert result_of(labelled, "other")["metrics"][-1]["loss"] != result["metrics"][-1]["loss"]


def test_a_seed_that_has_its_result_is_skipped(labelled, monkeypatch):
    validate.main(labelled.validate())
    monkeypatch.setattr(training, "train_epoch", None)
    validate.main(labelled.validate())


def test_other_settings_into_the_same_folder_are_refused(labelled, refusal):
    validate.main(labelled.validate())
    line = refusal(validate.main, labelled.validate("--adamw-lr", "0.002"))
    assert "settings.adamw_lr (0.001 there, 0.002 here)" in line


def test_another_seed_of_other_settings_is_refused(labelled, refusal):
    """All seeds of a folder are of the same settings; they make one mean."""
    validate.main(labelled.validate())
    line = refusal(validate.main, labelled.validate("--seed", "1", "--temperature", "10"))
    assert "seed0 holds results made with other settings: settings.temperature (20.0 there, 10.0 here);" in line
    validate.main(labelled.validate("--seed", "1"))
    summary = json.loads((labelled.root / "results/fashion_mnist/run/summary.json").read_text())
    assert summary["seeds"] == [0, 1]


def test_other_validation_images_are_refused(labelled, refusal):
    validate.main(labelled.validate())
    digest = result_of(labelled)["test_images_sha256"]
    assert len(digest) == 64
    victim = next((labelled.val / "7_class").iterdir())
    with Image.open(victim) as image:
        image.rotate(180).save(victim)
    line = refusal(validate.main, labelled.validate())
    assert f'test_images_sha256 ("{digest}" there' in line


def test_results_of_an_earlier_version_are_refused(labelled, refusal):
    validate.main(labelled.validate())
    record = labelled.root / "results/fashion_mnist/run/seed0/settings.json"
    content = json.loads(record.read_text())
    del content["record_version"]
    record.write_text(json.dumps(content))
    line = refusal(validate.main, labelled.validate())
    assert "results made with other settings: they are of another version of this project;" in line


def test_two_processes_do_not_train_the_same_student(labelled, refusal):
    folder = labelled.root / "results/fashion_mnist/run/seed0"
    with only_one(folder, "it is being trained"):
        line = refusal(validate.main, labelled.validate())
    assert f"the student ConvNetBN_W32 with seed 0 is being trained by another process, in {folder}" in line
    assert not (folder / "settings.json").exists()
    validate.main(labelled.validate())


def test_a_checkpoint_that_a_kill_left_beside_its_result_goes(labelled):
    validate.main(labelled.validate())
    checkpoint = labelled.root / "results/fashion_mnist/run/seed0" / CHECKPOINT
    checkpoint.write_bytes(b"left")
    validate.main(labelled.validate())
    assert not checkpoint.exists()


def test_a_damaged_checkpoint_is_named(labelled, refusal, monkeypatch):
    stop_before(monkeypatch, epoch=2)
    with pytest.raises(KeyboardInterrupt):
        validate.main(labelled.validate())
    monkeypatch.undo()
    checkpoint = labelled.root / "results/fashion_mnist/run/seed0" / CHECKPOINT
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    checkpoint.write_bytes(content)
    line = refusal(validate.main, labelled.validate())
    assert f"{checkpoint} is damaged: remove it to train from the start" in line


def stop_before(monkeypatch, epoch):
    """Interrupt the training of the first student before an epoch. Returns the epochs that were begun."""
    begun, train_epoch = [], training.train_epoch

    def stop(learner, settings, number, *arguments):
        begun.append(number)
        if len(begun) == epoch + 1:
            raise KeyboardInterrupt
        return train_epoch(learner, settings, number, *arguments)

    monkeypatch.setattr(training, "train_epoch", stop)
    return begun


def test_micro_batches_see_the_halves_that_relabel_made(labelled, monkeypatch):
    seen = []

    class Spy(training.GroupedNetwork):
        def forward(self, images, groups):
            seen.append(list(groups))
            return super().forward(images, groups)

    monkeypatch.setattr(training, "GroupedNetwork", Spy)
    validate.main(labelled.validate("--epochs", "1"))
    assert seen == [[4, 4], [4, 4], [2, 2]]  # 20 images: batches of 8, 8 and 4


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--model", "ResNet999"], "ResNet999"),
        (["--batch-size", "16"], "batch size 8, this run has 16"),
        (["--epochs", "4"], "this run has 4: name another --fkd-path, or relabel for this run, or another --replay"),
        (
            ["--replay", "mixed", "--loss", "mse_ce"],
            "--loss mse_ce reads logits: take one of kl kl_squared lpqld, or another --replay",
        ),
        (["--replay", "soft_hard_soft", "--loss", "cross_entropy"], "--loss cross_entropy reads classes"),
        (["--replay", "backwards"], "--replay backwards: there are in_order pool shuffled_pool soft_hard_soft mixed"),
        (["--min-scale", "0.5"], "min scale 0.08, this run has 0.5"),
        (["--mix-type", "mixup"], "mix cutmix, this run has mixup"),
        (["--fkd-path", "nowhere"], "nowhere"),
        (["--val-dir", "nowhere"], "nowhere is missing: for real images set train_dir and val_dir"),
        (["--original-data-path", "nowhere"], "nowhere"),
        (["--ipc", "5"], "images has 2 images a class"),
        (["--temperature", "0"], "--temperature 0.0: it must be from 1e-12 to 1e+06"),
        (["--epochs", "0"], "--epochs 0: it must be from 1 to 99,999"),
        (["--seed", "1", "1"], "--seed 1 1: each seed once"),
        (["--seed"], "--seed is missing: one student for each seed"),
        (["--model", "ResNet18", "ResNet18"], "--model ResNet18 ResNet18: each once"),
        (["--dist-url", "x"], "torchrun"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(labelled, refusal, extra, message):
    assert message in refusal(validate.main, labelled.validate(*extra))
    assert not list((labelled.root / "results").rglob("result.json"))


def test_a_store_with_fewer_epochs_takes_another_replay(labelled, refusal):
    relabel.main(labelled.relabel("--stored-epochs", "1", labels="few"))
    few = ["--fkd-path", str(labelled.root / "fkd/few_bs8_ipc2")]
    assert "epochs 1, this run has 3" in refusal(validate.main, labelled.validate(*few))
    validate.main(labelled.validate(*few, "--replay", "pool"))
    assert result_of(labelled)["settings"]["replay"] == "pool"
    assert len(result_of(labelled)["metrics"]) == 3


def test_a_loss_of_all_logits_refuses_the_largest_alone(labelled, refusal):
    relabel.main(labelled.relabel("--codec", "top_k", "--top-k", "2", labels="few"))
    few = ["--fkd-path", str(labelled.root / "fkd/few_bs8_ipc2")]
    assert "--loss mse_ce reads all logits" in refusal(validate.main, labelled.validate(*few, "--loss", "mse_ce"))
    validate.main(labelled.validate(*few))
    assert all(line["loss"] > 0 for line in result_of(labelled)["metrics"])  # a number, not NaN


def test_labels_of_other_images_are_refused(labelled, refusal):
    recover.main(labelled.recover("--seed", "3", name="others"))
    assert "images sha256" in refusal(validate.main, labelled.validate(images="others"))


def test_a_store_with_one_epoch_truncated_is_refused(labelled, refusal):
    victim = fkd.epoch_path(labelled.root / "fkd/labels_bs8_ipc2", 1)
    victim.write_bytes(victim.read_bytes()[:-1])
    assert "epoch_00001.safetensors is missing or damaged" in refusal(validate.main, labelled.validate())


def test_checksums_are_read_on_request(labelled, refusal):
    victim = fkd.epoch_path(labelled.root / "fkd/labels_bs8_ipc2", 1)
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    assert "epoch_00001.safetensors" in refusal(validate.main, labelled.validate("--verify"))


def test_a_validation_image_that_does_not_decode_is_named(labelled, refusal):
    victim = next((labelled.val / "7_class").iterdir())
    victim.write_bytes(b"no image")
    assert str(victim) in refusal(validate.main, labelled.validate())


def test_class_folders_that_are_too_few_are_refused(labelled, refusal):
    for image in (labelled.val / "7_class").iterdir():
        image.unlink()
    (labelled.val / "7_class").rmdir()
    line = refusal(validate.main, labelled.validate())
    assert "9" in line
    assert "10" in line


def test_a_label_that_is_not_finite_is_named(labelled, refusal):
    """In a store whose checksums are right."""
    folder = labelled.root / "fkd/labels_bs8_ipc2"
    epoch, logits = fkd.read_epoch(fkd.open_store(folder), 1)
    logits[9] = torch.inf
    fkd.write_epoch(folder, 1, epoch, logits)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["format_version"], manifest["epoch_sha256"]
    fkd.write_manifest(folder, manifest, 3)
    assert "epoch_00001.safetensors: a soft label is not finite" in refusal(validate.main, labelled.validate())


def test_a_loss_that_is_not_finite_stops_the_run(labelled, refusal):
    """Of a loss that somebody added: its fifth batch is the second one of epoch 1."""
    batches = []

    @LOSSES.add("broken")
    def broken(settings):
        def loss(logits, target):
            batches.append(target.epoch)
            return kl(settings)(logits, target) * (float("nan") if len(batches) == 5 else 1)

        return loss

    try:
        line = refusal(validate.main, labelled.validate("--loss", "broken"))
    finally:
        LOSSES.remove("broken")
    assert "epoch 1, batch 1: the loss is not finite; lower the learning rate" in line
    assert batches == [0, 0, 0, 1, 1, 1]


def test_sgd_and_a_straight_rate_are_there_too(labelled):
    arguments = labelled.validate("--sgd", "--sgd-lr", "0.1", "--momentum", "0.9")
    arguments.remove("--cos")
    validate.main(arguments)
    assert [line["lr"] for line in result_of(labelled)["metrics"]] == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3])


def test_a_rate_that_is_not_published_is_said_to_be_a_default(labelled, capsys):
    arguments = labelled.validate("--model", "WRN-16-2", "--epochs", "1")
    cut = arguments.index("--adamw-lr")
    validate.main(arguments[:cut] + arguments[cut + 4 :])
    assert "no rate is published for WRN-16-2 on fashion_mnist at IPC 2" in capsys.readouterr().out
    assert result_of(labelled)["settings"]["adamw_lr"] == 0.0005


@pytest.mark.parametrize("flag", ["--fkd-seed 1", "--mode x", "--keep-topk 5", "--start-epoch 0", "--gpu 0"])
def test_old_flags_without_effect_say_so(world, capsys, flag):
    validate.parse_cells(world.validate(*flag.split()))
    assert f"note: {flag.split()[0]} has no effect here" in capsys.readouterr().out


# The dry run


@pytest.fixture
def dry(labelled, monkeypatch):
    """Dry runs of validate: what each would print."""
    found = []
    monkeypatch.setattr(validate, "print_dry_run", lambda *told: found.append(told))

    def run(*extra, team=ALONE):
        validate.validate(validate.parse_cells(labelled.validate("--dry-run", *extra)), team)
        return found.pop()

    return run


def test_a_dry_run_writes_nothing(labelled, contents, capsys):
    before = contents(labelled.root)
    validate.main(labelled.validate("--dry-run"))
    assert contents(labelled.root) == before
    assert not (labelled.root / "results").exists()
    output = capsys.readouterr().out
    assert "validate, dry run: nothing is written" in output
    assert "  students      1\n" in output
    assert "  views         60\n" in output


@pytest.fixture
def absent(labelled, monkeypatch):
    """The folder of the embedded dataset's validation images in config.sh, which is not there."""
    monkeypatch.setenv("val_dir", f"{labelled.root}/real")
    return labelled.root / "real/fashion_mnist"


def test_the_embedded_validation_images_are_laid_out_on_first_use(labelled, absent):
    validate.main(labelled.validate("--epochs", "1", "--val-dir", str(absent)))
    assert len(list(absent.glob("*/*.png"))) == 1000


def test_a_dry_run_lays_out_no_validation_images(labelled, absent, refusal):
    line = refusal(validate.main, labelled.validate("--dry-run", "--val-dir", str(absent)))
    assert f"{absent} is missing" in line and "python -m utils.data.prepare fashion_mnist" in line
    assert not absent.exists()


@pytest.mark.parametrize("epochs", ["1", "3"])
def test_files_and_bytes_are_those_of_the_run(labelled, dry, epochs):
    words = ("--seed", "0", "1", "--epochs", epochs)
    stage, work, folder, output = dry(*words)
    assert stage == "validate"
    assert work == {"students": 2, "views": 2 * 20 * int(epochs)}
    validate.main(labelled.validate(*words))
    assert folder == labelled.root / "results/fashion_mnist"
    files = [path for path in folder.rglob("seed*/*") if path.is_file() and not path.name.startswith(".")]
    assert output.files == len(files) == 6
    assert sum(path.stat().st_size for path in files) <= output.size
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= output.disk


def test_what_is_there_is_not_counted(labelled, dry):
    validate.main(labelled.validate())
    _, work, _, output = dry()
    assert (work, output.files) == ({"students": 0, "views": 0}, 0)
    _, work, _, output = dry("--seed", "0", "1")
    assert (work, output.files) == ({"students": 1, "views": 60}, 3)


def test_epochs_of_a_checkpoint_are_not_counted(labelled, dry, monkeypatch):
    validate.main(labelled.validate())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_before(patch, epoch=2)
        validate.main(labelled.validate("--seed", "0", "1"))
    _, work, _, _ = dry("--seed", "0", "1", "2")  # one has its result, one two of three epochs, one nothing
    assert work == {"students": 2, "views": 80}


def test_several_networks_are_counted_together(labelled, dry):
    networks = ("--model", "ConvNetBN_W32", "ShuffleNetV2", "--seed", "0", "1")
    _, work, folder, output = dry(*networks)
    assert (work, output.files) == ({"students": 4, "views": 240}, 12)
    assert folder == labelled.root / "results/fashion_mnist"


class Member(Team):
    """One of several processes that are not there."""

    def total(self, number):
        return number


def test_a_dry_run_of_several_processes_tells_of_all_students(dry):
    _, work, _, output = dry("--seed", "0", "1", "2", team=Member(0, 2, 0))
    assert (work, output.files) == ({"students": 3, "views": 180}, 9)


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_a_disk_that_is_too_small_is_refused_at_the_start(labelled, refusal, small_disk, extra):
    small_disk(50_000)
    line = refusal(validate.main, labelled.validate(*extra))
    assert f"no space for {labelled.root}/results/fashion_mnist/run: it needs up to 2," in line
    assert "its disk has 50,000 free" in line
    assert not (labelled.root / "results").exists()


def test_the_checkpoint_of_a_large_student_has_to_fit_too(labelled, refusal, small_disk):
    """That of a ResNet18: 45 MB, and twice as much for AdamW."""
    small_disk(100_000_000)
    line = refusal(validate.main, labelled.validate("--model", "ResNet18", "--dry-run"))
    assert "its disk has 100,000,000 free" in line


def test_a_flag_that_writes_nothing_shapes_no_result(labelled):
    validate.main(labelled.validate())
    validate.main(labelled.validate("--dry-run"))
    validate.main(labelled.validate())


# The parts of it


def test_the_folder_of_results(world):
    (settings,) = validate.parse_cells(world.validate())
    assert validate.results_folder(settings) == world.root / "results/fashion_mnist/run"


def test_rates_are_those_given_or_the_published_ones(world, capsys):
    words = world.validate()
    cut = words.index("--adamw-lr")
    words = words[:cut] + words[cut + 4 :]

    def rates(*extra):
        (settings,) = validate.parse_cells([*words, "--ipc", "10", *extra])
        found = validate.with_rates(settings)
        return found.lr, found.eta

    assert rates() == (0.02, 1)
    assert rates("--eta", "2") == (0.02, 2)
    assert rates("--adamw-lr", "0.5") == (0.5, 1)
    assert rates("--sgd", "--sgd-lr", "0.3") == (0.3, 1)
    assert "no rate is published" not in capsys.readouterr().out
    assert rates("--model", "ResNet18") == (0.0005, 2)
    assert "no rate is published for ResNet18 on fashion_mnist at IPC 10" in capsys.readouterr().out


def test_what_labels_must_have_follows_from_the_settings(world):
    (settings,) = validate.parse_cells(world.validate("--min-scale", "0.5"))
    expected = {"dataset": "fashion_mnist", "images_sha256": "ab", "size": 32, "batch_size": 8, "epochs": 3}
    expected |= {"min_scale": 0.5, "labels": "views"}
    assert validate.what_labels_must_have(settings, "ab") == expected
    (settings,) = validate.parse_cells(world.validate("--min-scale", "0.5", "--mix-type", "mixup"))
    assert validate.what_labels_must_have(settings, "ab") == {**expected, "mix": "mixup"}


def test_a_run_for_each_seed(labelled):
    (settings,) = validate.parse_cells(labelled.validate("--seed", "3", "1"))
    distilled = validate.read_distilled(settings.original_data_path, FASHION)
    settings = validate.settled(settings, distilled[2])
    runs = list(validate.runs_of(settings, distilled, fkd.open_store(settings.fkd_path), "f" * 64))
    assert [run.seed for run in runs] == [3, 1]
    for run in runs:
        assert run.place == labelled.root / f"results/fashion_mnist/run/seed{run.seed}"
        assert (run.made_with["seed"], run.made_with["test_images_sha256"]) == (run.seed, "f" * 64)
        assert run.classes.tolist() == [label for label in range(10) for _ in range(2)]
        assert run.settings.ipc == run.made_with["ipc"] == 2
