"""Several processes under torchrun, or started by a script: the files of one, and how they end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from models import pretrain
from recover import choose_images, make_patches, recover
from relabel import relabel
from utils import recipes
from utils.run.team import Team
from validate import validate

ROOT = Path(__file__).parents[1]
SETTINGS = ["--patch-diff", "medium", "--r-bn", "0.05", "--lr", "0.1"]  # what `world.recover` leaves to the defaults
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


class Turns:
    """Members of a team in threads of this process, of which one runs at a time: until it waits for the others."""

    def __init__(self, count):
        self.count, self.turn, self.given, self.baton = count, count - 1, {}, threading.Condition()

    def run(self, stage):
        """Let every member run `stage(team)`; the main one is the last in each turn."""

        def of_member(rank):
            member = Member(rank, self.count, 0)
            member.turns, member.rounds = self, 0
            try:
                self.wait_for(rank)
                stage(member)
            except BaseException:
                self.count = 0  # nobody's turn comes again
                raise
            finally:
                self.hand_on(rank)

        with ThreadPoolExecutor(self.count) as pool:
            for ended in [pool.submit(of_member, rank) for rank in range(self.count)]:
                ended.result()

    def wait_for(self, rank):
        with self.baton:
            self.baton.wait_for(lambda: self.count == 0 or self.turn == rank)
        assert self.count, "another member failed"

    def hand_on(self, rank):
        with self.baton:
            self.turn = (rank - 1) % max(self.count, 1)
            self.baton.notify_all()


class Member(Team):
    """A member of a team of threads."""

    def gather(self, value):
        self.rounds += 1
        given = self.turns.given.setdefault(self.rounds, {})
        given[self.rank] = value
        self.turns.hand_on(self.rank)
        self.turns.wait_for(self.rank)
        return [given[rank] for rank in range(self.count)]

    def total(self, number):
        return sum(self.gather(number))


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
def launcher(world):
    """Start a script in two processes."""

    def start(*words):
        folders = {name: str(world.root / "main") for name in ("Main_Data_Path", "train_dir", "val_dir", "patch_dir")}
        known = {
            "FADRM_PROCESSES": "2",
            "FADRM_PYTHON": sys.executable,
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        script = (str(ROOT / "recover/scripts/cifar10/recover.sh"), "fadrm", "2")  # whose every setting is given below
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            ["bash", *script, *words], env=os.environ | folders | known, start_new_session=True, **pipes
        )

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
        assert ended.output.count(f"{stage}: settings\n") == 1  # the settings, by one process
        one, two = (next((world.root / folder).glob(f"{name}*")) for name in ("one", "two"))
        assert without_times(contents(two)) == without_times(contents(one))
        if stage != "validate":
            report = json.loads((two / "report.json").read_text())
            assert (report["made"], report["processes"]) == (20 if stage == "recover" else 3, 2)
            assert "in 2 processes" in ended.output


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_makes_the_files_of_one(world, contents, count):
    """All stages that share out."""
    here = ["--dataset-name", "fashion_mnist", "--device", "cpu", "--train-dir", str(world.val)]
    several = ("--model", "ConvNetBN_W32", "ConvNetBN_W64", "--seed", "0", "1", "--method", "m")
    patches = [*here, "--observer", "ShuffleNetV2", "--model-pool-dir", str(world.pool), "--patches-per-class", "2"]
    results = f"{world.root}/results"

    def calls(name):
        """Each stage with its settings, and the folder of what it makes."""
        chosen = [*here, "--ipc", "2", "--syn-data-path", f"{world.root}/chosen", "--exp-name", name]
        made = [*patches, "--patch-dir", f"{world.root}/made/{name}"]
        students = [*world.validate(*several, images="one", labels="one"), "--output-dir", f"{results}/{name}"]
        yield choose_images.choose_images, recipes.parse("choose", chosen), f"chosen/{name}"
        yield make_patches.make_patches, recipes.parse("patches", made), f"made/{name}"
        yield recover.recover, recipes.parse("recover", world.recover(name=name)), f"syn/{name}"
        relabelling = recipes.parse("relabel", world.relabel(images="one", labels=name))
        yield relabel.relabel, relabelling, f"fkd/{name}_bs8_ipc2"
        yield validate.validate, validate.parse_cells(students), f"results/{name}"

    for stage, settings, _ in calls("one"):
        stage(settings, Team(0, 1, 0))
    made = {}
    for stage, settings, folder in calls("many"):
        Turns(count).run(lambda member, stage=stage, settings=settings: stage(settings, member))
        made[stage.__name__] = [
            without_times(contents(world.root / path)) for path in (folder, folder.replace("many", "one"))
        ]
    for stage, (many, one) in made.items():
        assert sorted(many) == sorted(one), stage
        assert many == one, stage
    assert list(made) == ["choose_images", "make_patches", "recover", "relabel", "validate"]
    folders = ("run_ConvNetBN_W32", "run_ConvNetBN_W64")
    assert {f"fashion_mnist/{folder}/seed{seed}/result.json" for folder in folders for seed in (0, 1)} <= one.keys()


def test_a_killed_process_ends_the_run_and_the_next_goes_on(world, launcher, processes, contents):
    one, killed = (world.root / "syn" / name for name in ("one", "killed"))
    budgets = ("--optimization-budgets", "20", "20")  # with the first image the victim has a second of work left
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
    assert line.startswith("error: process 2 was ended by SIGKILL") and "goes on" in line
    assert line in log_of(world)
    assert 0 < len(list(killed.rglob("class*.png"))) < 20
    recover.main(world.recover(*budgets, name="killed"))
    assert contents(killed) == contents(one)


def test_what_all_refuse_is_one_line_and_status_2(world, launcher, processes):
    ended = processes.wait(launcher(*world.recover("--alpha", "2")))
    assert (ended.status, ended.output) == (2, "")
    assert processes.screen(ended.errors) == ["error: --alpha 2.0: it must be from 0 to 1"]
    title, *lines = log_of(world).splitlines()
    assert " -m recover.recover --dataset-name cifar10 --recipe fadrm " in title
    assert [line for line in lines if line] == ["error: --alpha 2.0: it must be from 0 to 1"]


def test_what_one_process_meets_ends_the_run(world, processes):
    """The second process has the second class batch of each image index, and fails at its second one."""
    victim = world.patches / "medium" / "00007" / "class00007_id00001.png"
    victim.write_bytes(victim.read_bytes()[:60])
    ended = processes.run(*TWO, "recover.recover", *world.recover())
    assert ended.status != 0
    (line,) = (line for line in processes.screen(ended.errors) if line.startswith("error: "))
    assert str(victim) in line
    images = world.root / "syn" / "images"
    assert not (images / "report.json").exists()
    assert len(list(images.glob("new00[5-9]/*_id000.png"))) == 5  # its first one stays
    assert not list(images.glob("new00[5-9]/*_id001.png"))


@pytest.mark.parametrize("at_terminal", [False, True])
def test_ctrl_c_is_one_line_and_status_130(world, launcher, processes, at_terminal):
    """Sent to the script, or by a terminal to all of its processes."""
    process = launcher(*world.recover("--optimization-budgets", "500", "500", *SETTINGS))
    patience = time.monotonic() + 60
    while not (logs := list((world.root / "main").glob("logs/*.log"))) or "it/s" not in logs[0].read_text():
        assert process.poll() is None and time.monotonic() < patience, process.communicate()
        time.sleep(0.05)
    if at_terminal:
        os.killpg(process.pid, signal.SIGINT)
    else:
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
    assert not list((tmp_path / "two").glob("*.training.*"))
