"""The validate entry: what it reports, how it goes on, what it refuses."""

import json
import shutil

import pytest
import torch
from PIL import Image

from recover import recover
from relabel import relabel
from utils import fkd, recipes
from utils.datasets import get_dataset
from utils.files import write_safetensors
from validate import flags, student, validate

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
    assert not list(folder.rglob("checkpoint.pt"))
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
        ("--exp-name {other}", {"ConvNetBN_W32": "{other}"}),
    ],
)
def test_students_and_their_folders(world, words, runs):
    settings = flags.parse_cells(world.validate(*words.split()))
    assert {each.model: each.exp_name for each in settings} == runs


CELLS = "--dataset-name imagenet1k --recipe fadrm+ --model ResNet18 ResNet101 --exp-name e --val-dir v --output-dir o"


def test_each_ipc_and_student_has_its_own_rates_and_folders():
    places = "--original-data-path i{ipc} --fkd-path l_bs{batch_size}_ipc{ipc}"
    cells = flags.parse_cells([*CELLS.split(), *places.split(), "--ipc", "50", "10"])
    assert [(cell.ipc, cell.model) for cell in cells] == [(i, m) for i in (50, 10) for m in ("ResNet18", "ResNet101")]
    for cell in cells:
        assert (cell.adamw_lr, cell.eta) == recipes.student_rate("imagenet1k", cell.model, cell.ipc)[:2]
        assert (str(cell.original_data_path), str(cell.fkd_path)) == (f"i{cell.ipc}", f"l_bs16_ipc{cell.ipc}")
        assert cell.exp_name == f"e_ipc{cell.ipc}_{cell.model}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--original-data-path i --fkd-path l{ipc} --ipc 1 10", "--original-data-path i: with several IPCs"),
        ("--original-data-path i{ipc} --fkd-path l --ipc 1 10", "--fkd-path l: with several IPCs it needs {ipc}"),
        ("--original-data-path i{ipc} --fkd-path l{ipc} --ipc 1 1", "--ipc 1 1: each IPC once"),
        ("--original-data-path i{ipc} --fkd-path l{ipc} --ipc x", "invalid int value: 'x'"),
    ],
)
def test_several_ipcs_that_cannot_be(refusal, words, message):
    assert message in refusal(flags.parse_cells, [*CELLS.split(), *words.split()])


def test_an_ipc_to_fill_in_that_is_not_given(world, refusal):
    assert "--fkd-path l{ipc}: --ipc tells" in refusal(flags.parse_cells, world.validate("--fkd-path", "l{ipc}"))


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
    epochs = []

    def stop(*arguments):
        epochs.append(len(epochs))
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return train_epoch(*arguments)

    train_epoch = student.train_epoch
    monkeypatch.setattr(student, "train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        validate.main(labelled.validate(*extra, name="stopped"))
    validate.main(labelled.validate(*extra, name="stopped"))
    assert len(epochs) == (3 if network == "MobileNetV2" else 4)  # epoch 0 was not trained again
    assert comparable(result_of(labelled, "stopped")) == comparable(result_of(labelled, "whole"))


def test_a_seed_that_has_its_result_is_skipped(labelled, monkeypatch):
    validate.main(labelled.validate())
    monkeypatch.setattr(student, "train_epoch", None)
    validate.main(labelled.validate())


def test_other_settings_into_the_same_folder_are_refused(labelled, refusal):
    validate.main(labelled.validate())
    line = refusal(validate.main, labelled.validate("--adamw-lr", "0.002"))
    assert "settings.adamw_lr (0.001 there, 0.002 here)" in line


def test_micro_batches_see_the_halves_that_relabel_made(labelled, monkeypatch):
    seen = []

    class Spy(student.GroupedNetwork):
        def forward(self, images, groups):
            seen.append(list(groups))
            return super().forward(images, groups)

    monkeypatch.setattr(student, "GroupedNetwork", Spy)
    validate.main(labelled.validate("--epochs", "1"))
    assert seen == [[4, 4], [4, 4], [2, 2]]  # 20 images: batches of 8, 8 and 4


def test_one_epoch_is_the_plain_training_loop(labelled):
    """The plain version: whole epochs rendered at once, one forward a half, one AdamW step a batch."""
    store = fkd.open_store(labelled.root / "fkd/labels_bs8_ipc2")
    settings = flags.parse(labelled.validate())
    images, _, _ = validate.read_distilled(settings.original_data_path, FASHION)
    learner = student.prepare_student(settings, 0, FASHION, images.device)
    plain = student.build_student("ConvNetBN_W32", FASHION, 0)
    plain_optimiser, _ = student.build_optimiser(plain, settings)
    bar = student.tqdm(disable=True)
    epoch, labels = fkd.read_epoch(store.folder, 0)
    learner.student.train()
    losses = student.train_epoch(learner, settings, (epoch, labels), store.settings, images, FASHION, bar)
    loss = student.mean_loss(losses, 0)
    views = fkd.render_views(images, epoch, 0, 3, store.settings, FASHION)
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


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--model", "ResNet999"], "ResNet999"),
        (["--batch-size", "16"], "batch size 8, this run has 16"),
        (["--epochs", "4"], "epochs 3, this run has 4"),
        (["--min-scale", "0.5"], "min scale 0.08, this run has 0.5"),
        (["--mix-type", "mixup"], "mix cutmix, this run has mixup"),
        (["--fkd-path", "nowhere"], "nowhere"),
        (["--val-dir", "nowhere"], "nowhere"),
        (["--original-data-path", "nowhere"], "nowhere"),
        (["--ipc", "5"], "--ipc 5"),
        (["--temperature", "0"], "--temperature 0"),
        (["--epochs", "0"], "--epochs 0"),
        (["--seed", "1", "1"], "each seed once"),
        (["--model", "ResNet18", "ResNet18"], "each student once"),
        (["--dist-url", "x"], "torchrun"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(labelled, refusal, extra, message):
    assert message in refusal(validate.main, labelled.validate(*extra))
    assert not list((labelled.root / "results").rglob("result.json"))


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


def test_a_loss_that_is_not_finite_stops_the_run(labelled, refusal):
    folder = labelled.root / "fkd/labels_bs8_ipc2"
    epoch, logits = fkd.read_epoch(folder, 1)
    logits[9] = torch.inf
    write_safetensors(fkd.epoch_path(folder, 1), {**epoch._asdict(), "logits": logits})
    assert "epoch 1, batch 1: the loss is not finite" in refusal(validate.main, labelled.validate())


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


@pytest.mark.parametrize(
    ("simple", "epochs"), [(False, [9, 19, 29, 39, 49]), (True, [49])], ids=["every tenth", "late ones"]
)
def test_which_epochs_are_tested(world, simple, epochs):
    settings = flags.parse(world.validate("--epochs", "50", "--test-every", "10", *(["--simple"] if simple else [])))
    assert [epoch for epoch in range(50) if student.is_tested(epoch, settings)] == epochs


@pytest.mark.parametrize("flag", ["--fkd-seed 1", "--mode x", "--keep-topk 5", "--start-epoch 0", "--gpu 0"])
def test_old_flags_without_effect_say_so(world, capsys, flag):
    flags.parse(world.validate(*flag.split()))
    assert f"note: {flag.split()[0]} has no effect here" in capsys.readouterr().out
