"""Several processes under torchrun, or started by the launcher: the files of one, and how they end."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from models import pretrain
from recover import make_patches, random_images, recover
from relabel import relabel
from utils.distributed import Team
from validate import validate

SETTINGS = ["--patch-diff", "medium", "--r-bn", "0.05", "--lr", "0.1"]  # what `world.recover` leaves to the defaults
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


class Member(Team):
    """One of several processes that run one after another, the leading one last: it waits for nobody."""

    def total(self, number):
        return number


def in_turn(count, run):
    for rank in reversed(range(count)):
        run(Member(rank, count, 0))


def without_times(contents):
    """The files of a validate run without times, memory, device and versions."""
    used = {"seconds", "seconds_this_run", "peak_memory_gib", "device", "versions", "metrics"}
    for path, content in contents.items():
        if path.endswith(".jsonl"):
            lines = [json.loads(line) for line in content.splitlines()]
            contents[path] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
        if path.endswith("result.json"):
            contents[path] = {key: value for key, value in json.loads(content).items() if key not in used}
    return contents


def with_rank(parent, rank):
    """The process of this rank among the children of `parent`, once it is there."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    patience = time.monotonic() + 60
    while time.monotonic() < patience:
        for child in children.read_text().split():
            if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
        time.sleep(0.05)
    raise AssertionError(f"no process of rank {rank}")


@pytest.fixture
def launcher(world, processes):
    """Start the launcher of a stage in two processes."""

    folders = {name: str(world.root / "main") for name in ("Main_Data_Path", "train_dir", "val_dir", "patch_dir")}

    def start(*words):
        script = ("recover", "cifar10", "fadrm", "2", "--")  # whose every setting of the recipe is given otherwise
        return processes.start("-m", "utils.launch", *script, *words, FADRM_PROCESSES="2", **folders)

    return start


def log_of(world):
    (log,) = (world.root / "main" / "logs").iterdir()
    return log.read_text()


def test_two_processes_make_the_files_of_one(world, processes, contents):
    """Two class batches of two image indices, three epochs, two seeds: not all of them are shared out evenly."""
    seeds = ("--seed", "0", "1", "--method", "m")
    recover.main(world.recover(name="one"))
    relabel.main(world.relabel(images="one", labels="one"))
    validate.main(world.validate(*seeds, images="one", labels="one", name="one"))
    calls = {
        ("recover", "syn"): world.recover(name="two"),
        ("relabel", "fkd"): world.relabel(images="one", labels="two"),
        ("validate", "results/fashion_mnist"): world.validate(*seeds, images="one", labels="one", name="two"),
    }
    for (stage, folder), words in calls.items():
        ended = processes.run(*TWO, f"{stage}.{stage}", *words)
        assert ended.status == 0, ended.errors
        assert ended.output.count(f"{stage}: --") == 1  # the settings, by one process
        one, two = (next((world.root / folder).glob(f"{name}*")) for name in ("one", "two"))
        assert without_times(contents(two)) == without_times(contents(one))
        if stage != "validate":
            report = json.loads((two / "report.json").read_text())
            assert (report["made"], report["processes"]) == (20 if stage == "recover" else 3, 2)
            assert "in 2 processes" in ended.output


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_makes_the_files_of_one(world, contents, count):
    """All stages that share out, their processes one after another."""
    parse = {
        random_images.draw_random_images: lambda words: random_images.make_parser().parse_args(words),
        make_patches.make_patches: lambda words: make_patches.make_parser().parse_with_recipe("patches", words),
        recover.recover: recover.flags.parse,
        relabel.relabel: relabel.flags.parse,
        validate.validate: validate.flags.parse_cells,
    }
    here = ["--dataset-name", "fashion_mnist", "--device", "cpu", "--train-dir", str(world.val)]
    several = ("--model", "ConvNetBN_W32", "ConvNetBN_W64", "--seed", "0", "1", "--method", "m")
    patches = [*here, "--observer", "ShuffleNetV2", "--model-pool-dir", str(world.pool), "--patches-per-class", "2"]

    def calls(name):
        random = [*here, "--ipc", "2", "--syn-data-path", f"{world.root}/random", "--exp-name", name]
        return {
            random_images.draw_random_images: (random, f"random/{name}"),
            make_patches.make_patches: ([*patches, "--patch-dir", f"{world.root}/made/{name}"], f"made/{name}"),
            recover.recover: (world.recover(name=name), f"syn/{name}"),
            relabel.relabel: (world.relabel(images="one", labels=name), f"fkd/{name}_bs8_ipc2"),
            validate.validate: (
                [*world.validate(*several, images="one", labels="one"), "--output-dir", f"{world.root}/results/{name}"],
                f"results/{name}",
            ),
        }

    for stage, (words, _) in calls("one").items():
        stage(parse[stage](words), Member(0, 1, 0))
    for stage, (words, folder) in calls("many").items():
        in_turn(count, lambda member, stage=stage, words=words: stage(parse[stage](words), member))
        many, one = (without_times(contents(world.root / path)) for path in (folder, folder.replace("many", "one")))
        assert many == one
    folders = ("run_ConvNetBN_W32", "run_ConvNetBN_W64")
    assert {f"fashion_mnist/{folder}/seed{seed}/result.json" for folder in folders for seed in (0, 1)} <= one.keys()


def test_a_killed_process_ends_the_run_and_the_next_goes_on(world, launcher, processes, contents):
    one, killed = (world.root / "syn" / name for name in ("one", "killed"))
    budgets = (
        "--optimization-budgets",
        "40",
        "40",
    )  # the victim still has seconds of work when the first image is there
    recover.main(world.recover(*budgets, name="one"))
    process = launcher(*world.recover(*budgets, *SETTINGS, name="killed"))
    victim = with_rank(process.pid, 1)
    while not any(killed.rglob("*.png")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(victim, signal.SIGKILL)
    ended = processes.wait(process)
    assert ended.status == 128 + signal.SIGKILL
    bar, line = processes.screen(ended.errors)
    assert bar.startswith("recover: ")
    assert line.startswith("error: process 2 of 2 was ended by SIGKILL") and "goes on" in line
    assert line in log_of(world)
    assert 0 < len(list(killed.rglob("class*.png"))) < 20
    recover.main(world.recover(*budgets, name="killed"))
    assert contents(killed) == contents(one)


def test_what_all_refuse_is_one_line_and_status_2(world, launcher, processes):
    ended = processes.wait(launcher(*world.recover("--alpha", "2")))
    assert (ended.status, ended.output) == (2, "")
    assert processes.screen(ended.errors) == ["error: --alpha 2.0: it is a share, from 0 to 1"]
    _, title, line = log_of(world).splitlines()
    assert "python -m recover.recover" in title and line.startswith("error: --alpha 2.0")


def test_what_one_process_meets_ends_the_run(world, processes):
    """The second process has the second class batch of each image index, and fails at its second one; the first
    process has nothing to make and waits."""
    recover.main(world.recover())
    report = world.root / "syn" / "images" / "report.json"
    report.unlink()
    for path in (world.root / "syn" / "images").glob("new00[5-9]/*.png"):
        path.unlink()
    victim = world.patches / "medium" / "00007" / "class00007_id00001.png"
    victim.write_bytes(victim.read_bytes()[:60])
    ended = processes.run(*TWO, "recover.recover", *world.recover())
    assert ended.status != 0
    (line,) = (line for line in processes.screen(ended.errors) if line.startswith("error: "))
    assert str(victim) in line
    assert not report.exists()
    assert len(list((world.root / "syn" / "images").glob("new00[5-9]/*.png"))) == 5  # its first one stays


def test_ctrl_c_is_one_line_and_status_130(world, launcher, processes):
    process = launcher(*world.recover("--optimization-budgets", "500", "500", *SETTINGS))
    while not (world.root / "syn" / "images" / "settings.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    ended = processes.wait(process)
    assert ended.status == 130
    bar, *rest = processes.screen(ended.errors)
    assert bar.startswith("recover: ")
    assert rest == ["error: interrupted; the same command goes on from here"]


@pytest.fixture
def training(tmp_path):
    """Arguments that train a network without BatchNorm on 70 images, in batches of 33 and 37."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 7), ("val", 1)):
        for class_index in range(10):
            for index in range(count):
                path = tmp_path / split / str(class_index) / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = torch.randint(25 * class_index, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(path)
    words = "--dataset-name fashion_mnist --model ConvNetW128 --batch-size 33 --optimizer sgd --lr 0.01 --epochs 4"
    places = f"--train-dir {tmp_path}/train --val-dir {tmp_path}/val --model-pool-dir {tmp_path}"
    return f"{words} --workers 0 --device cpu {places}".split()


def test_two_processes_train_a_teacher_together(training, tmp_path, processes, relative, monkeypatch):
    """Parts of 17 and 16, of 19 and 18 images: every step is the whole batch's. They go on from one process's epoch."""
    pretrain.main(training)

    def stop_after_one(*arguments):
        if arguments[-2] == 1:  # the epoch
            raise KeyboardInterrupt
        train_epoch(*arguments)

    train_epoch = pretrain.train_epoch
    monkeypatch.setattr(pretrain, "train_epoch", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main([*training[:-1], f"{tmp_path}/two"])
    ended = processes.run(*TWO, "models.pretrain", *training[:-1], f"{tmp_path}/two")
    assert ended.status == 0, ended.errors
    assert ended.output.count("ConvNetW128 (trained): top-1") == 1
    files = [tmp_path / name / "ConvNetW128.safetensors" for name in (".", "two")]
    for name, expected in safetensors.torch.load_file(files[0]).items():
        assert relative(safetensors.torch.load_file(files[1])[name], expected) < 1e-4
    record = json.loads((tmp_path / "two" / "ConvNetW128.json").read_text())
    assert record["processes"] == 2 and len(record["tests"]) == 1
    assert not list((tmp_path / "two").glob("*.training.pt"))
