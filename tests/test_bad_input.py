"""Bad input end to end: exit status 2, one line that names file or flag and remedy, nothing half-written.

Each stage's own tests refuse what its flags cannot be. Here is what several stages share: folders, images, checkpoints,
label stores, full disks; and processes of their own, for what only shows there.
"""

import contextlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from models import pretrain
from models.checkpoints import save_state
from models.registry import build_network
from recover import choose_images, make_patches, recover
from relabel import relabel
from utils.data import prepare
from utils.data.distilled import distilled_path
from utils.data.table import get_dataset
from utils.fkd import store as fkd
from utils.patches.patches import write_class_patches
from utils.run.errors import UserError, run_entry
from validate import validate

ROOT = Path(__file__).parents[1]
FASHION = get_dataset("fashion_mnist")
CONFIG = ("Main_Data_Path", "train_dir", "val_dir", "patch_dir")
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


class Stages:
    """Every stage in a world: how it is called, and where what it makes goes."""

    def __init__(self, world):
        self.world = world
        root, pool, val = world.root, str(world.pool), str(world.val)
        here = ("--dataset-name", "fashion_mnist", "--device", "cpu")
        teacher = ("--model", "ConvNetBN_W32", "--val-dir", val, "--model-pool-dir", f"{root}/made", "--workers", "0")
        observer = ("--observer", "ShuffleNetV2", "--model-pool-dir", pool, "--patches-per-class", "2")
        self.calls = {
            "recover": (recover.main, world.recover()),
            "relabel": (relabel.main, world.relabel()),
            "validate": (validate.main, world.validate()),
            "pretrain": (pretrain.main, [*here, *teacher, "--train-dir", val, "--epochs", "1", "--batch-size", "8"]),
            "patches": (make_patches.main, [*here, *observer, "--train-dir", val, "--patch-dir", f"{root}/made"]),
            "choose": (
                choose_images.main,
                [*here, "--train-dir", val, "--ipc", "2", "--syn-data-path", f"{root}/made", "--exp-name", "random"],
            ),
        }
        self.made = {
            "recover": root / "syn" / "images",
            "relabel": root / "fkd" / "labels_bs8_ipc2",
            "validate": root / "results",
            **dict.fromkeys(("pretrain", "patches", "choose"), root / "made"),
        }

    def prepare(self, name):
        """Make what a stage reads from the stages before it."""
        if name in ("relabel", "validate"):
            recover.main(self.world.recover())
        if name == "validate":
            relabel.main(self.world.relabel())

    def refuse(self, refusal, name, *extra):
        """The line of a stage that must refuse, before it has made a file."""
        main, arguments = self.calls[name]
        line = refusal(main, [*arguments, *extra])
        made = [path for path in self.made[name].rglob("*") if path.is_file()]
        assert not [path for path in made if not (path.name.startswith(".") and path.name.endswith(".lock"))]
        return line


STAGES = ("recover", "relabel", "validate", "pretrain", "patches", "choose")


@pytest.fixture
def stages(world):
    return Stages(world)


@pytest.fixture(scope="module")
def labelled(lasting_world):
    """The stages in a world that has distilled images and labels, for tests that change nothing in it."""
    stages = Stages(lasting_world)
    stages.prepare("validate")
    stages.made |= dict.fromkeys(("recover", "relabel"), lasting_world.root / "nowhere")
    return stages


# Folders of config.sh


@pytest.mark.parametrize(
    ("name", "call", "flag"),
    [
        ("Main_Data_Path", "recover.recover --recipe fadrm --ipc 1", "--syn-data-path"),
        ("train_dir", "models.pretrain", "--train-dir"),
        ("val_dir", "models.pretrain", "--val-dir"),
        ("patch_dir", "recover.make_patches --recipe fadrm --ipc 1", "--patch-dir"),
    ],
)
def test_an_unset_folder_is_named_by_a_process(processes, tmp_path, name, call, flag):
    folders = {folder: "" if folder == name else str(tmp_path) for folder in CONFIG}
    ended = processes.run("-m", *call.split(), "--dataset-name", "fashion_mnist", **folders)
    assert (ended.status, ended.output) == (2, "")
    assert ended.errors == f"error: {name} is not set: give it in config.sh, or in the environment; or name {flag}\n"
    assert not list(tmp_path.iterdir())


def call_script(script, *words, **folders):
    return subprocess.run(
        ["bash", str(ROOT / script), *words],
        env=os.environ | {"FADRM_PYTHON": sys.executable} | {name: str(folder) for name, folder in folders.items()},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_folder_that_cannot_be_is_named_by_a_script(tmp_path):
    (tmp_path / "file").touch()
    ended = call_script(
        "recover/scripts/fashion_mnist/recover_fadrm_ipc1.sh", Main_Data_Path=tmp_path / "file" / "data"
    )
    note, error = ended.stderr.splitlines()
    assert ended.returncode == 2 and note.startswith(f"note: {tmp_path}/file/data/logs")
    assert error.startswith("error: ") and f"{tmp_path}/file/data" in error


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "models/scripts/cifar100/pretrain.sh",
            "{}/missing/cifar100 is missing: for real images set train_dir and val_dir in config.sh and run `pytho",
        ),
        (
            "recover/scripts/cifar100/recover_fadrm_ipc1.sh",
            "no patches in {}/missing/cifar100/medium: make them with `python -m recover.make_patches --da",
        ),
    ],
)
def test_missing_folders_of_real_images_name_their_variables(tmp_path, script, message):
    missing = dict.fromkeys(("train_dir", "val_dir", "patch_dir"), tmp_path / "missing")
    ended = call_script(script, Main_Data_Path=tmp_path / "data", **missing)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ") and message.format(tmp_path) in line
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["logs"]
    assert not (tmp_path / "missing").exists()


# Names


@pytest.mark.parametrize("name", STAGES)
def test_an_unknown_dataset(labelled, refusal, name):
    line = labelled.refuse(refusal, name, "--dataset-name", "cifar1000")
    assert "unknown dataset 'cifar1000'; there are: cifar10 cifar100 tiny_imagenet" in line


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("recover", "--verifier --verifier-arch ResNet999"),
        ("relabel", "--multi-model --model-choice ShuffleNetV2 ResNet999"),
        ("recover", "--teacher-model-list ShuffleNetV2 ResNet999"),
    ],
)
def test_an_unknown_network_among_others(labelled, refusal, name, flags):
    line = labelled.refuse(refusal, name, *flags.split())
    assert "unknown network 'ResNet999'" in line and "there are: ConvNetBN" in line


# Class folders and images


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("pretrain", "--train-dir"),
        ("patches", "--train-dir"),
        ("choose", "--train-dir"),
        ("pretrain", "--val-dir"),
        ("relabel", "--syn-data-path"),
        ("validate", "--original-data-path"),
    ],
)
@pytest.mark.parametrize("count", [9, 11])
def test_class_folders_that_are_not_as_many_as_classes(labelled, refusal, tmp_path, name, flag, count):
    folder = tmp_path / "images"
    for index in range(count):
        (folder / f"class{index}").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / f"class{index}" / "0.png")
    line = labelled.refuse(refusal, name, flag, str(folder))
    odd = ", 'class10' among them" if count == 11 else ""
    assert f"{folder} has {count} class folders{odd}, fashion_mnist has 10 classes: put the folders" in line


def cut_short(path):
    path.write_bytes(path.read_bytes()[:60])


def another_size(path):
    Image.new("RGB", (32, 31)).save(path)


@pytest.mark.parametrize(("damage", "message"), [(cut_short, "does not decode"), (another_size, "is 32 x 31 pixels")])
@pytest.mark.parametrize("name", ["relabel", "validate", "pretrain"])
def test_an_image_that_is_none_or_of_another_size_is_named(stages, refusal, name, damage, message):
    stages.prepare(name)
    victim = stages.world.val / "3_class" / "1.png"  # a validation image, and a training image of pretrain
    if name == "relabel":
        victim = distilled_path(stages.made["recover"], 10, 3, 1)
    damage(victim)
    line = stages.refuse(refusal, name) if name != "validate" else refusal(*stages.calls[name])
    assert f"{victim} {message}" in line and "replace" in line


def test_a_distilled_image_that_is_none_is_named_by_validate(stages, refusal):
    stages.prepare("validate")
    victim = distilled_path(stages.made["recover"], 10, 9, 0)
    cut_short(victim)
    assert f"{victim} does not decode" in stages.refuse(refusal, "validate")


def test_a_patch_missing_for_one_class_is_named(stages, refusal):
    (stages.world.patches / "medium/00007/class00007_id00001.png").unlink()
    line = stages.refuse(refusal, "recover")
    patch = stages.world.patches / "medium/00007/class00007_id00001.jpg"
    making = "`python -m recover.make_patches --dataset-name fashion_mnist --recipe METHOD --ipc N`"
    assert f"{patch} is missing: make more with {making} and --patches-per-class, or put it there" in line


# Checkpoints


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def missing(path, made):
    path.unlink()


def truncated(path, made):
    path.write_bytes(path.read_bytes()[:-100])


def of_another_network(path, made):
    save_state(path, build_network("ConvNetBN_W32", FASHION))


def of_another_class_count(path, made):
    save_state(path, build_network("ShuffleNetV2", get_dataset("cifar100")))


def a_pickle_of_something_else(path, made):
    path.unlink()
    path.with_suffix(".pth").write_bytes(pickle.dumps({"conv1.0.weight": Malicious(made)}))


@pytest.mark.parametrize("name", ["recover", "relabel", "patches"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, "no checkpoint of ShuffleNetV2 for fashion_mnist: looked for"),
        (truncated, "ShuffleNetV2.safetensors is damaged ("),
        (of_another_network, "ShuffleNetV2.safetensors is not a checkpoint of ShuffleNetV2 for 32-pixel images"),
        (of_another_class_count, "trained for 100 classes, but fashion_mnist has 10: put a checkpoint for"),
        (a_pickle_of_something_else, "ShuffleNetV2.pth is not a plain state dict"),
    ],
)
def test_a_teacher_that_does_not_load(labelled, refusal, tmp_path, name, damage, message):
    pool = tmp_path / "pool"
    shutil.copytree(labelled.world.pool, pool)
    damage(pool / "ShuffleNetV2.safetensors", tmp_path / "made")
    assert message in labelled.refuse(refusal, name, "--model-pool-dir", str(pool), *other_place(name, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def other_place(name, folder):
    """Flags that send what a stage makes below `folder`."""
    return {
        "recover": ("--syn-data-path", str(folder / "syn")),
        "relabel": ("--fkd-path", str(folder / "labels")),
        "patches": ("--patch-dir", str(folder / "patches")),
    }[name]


def test_a_verifier_that_does_not_load(labelled, refusal, tmp_path):
    weights = tmp_path / "verifier.pth"
    torch.save({"state_dict": {}, "epoch": 3}, weights)
    flags = ("--verifier", "--verifier-arch", "ConvNetBN_W32", "--verifier-weight-path", str(weights))
    assert f"{weights} is not a plain state dict (it holds" in labelled.refuse(
        refusal, "recover", *flags, *other_place("recover", tmp_path)
    )
    assert list(tmp_path.iterdir()) == [weights]


def test_a_process_refuses_a_pickle_without_running_it(world, processes, tmp_path):
    a_pickle_of_something_else(world.pool / "ShuffleNetV2.safetensors", tmp_path / "made")
    ended = processes.run("-m", "recover.recover", *world.recover())
    assert ended.status == 2
    assert ended.errors.startswith(f"error: {world.pool / 'ShuffleNetV2.pth'} is not a plain state dict")
    assert ended.errors.count("\n") == 1
    assert not (tmp_path / "made").exists() and not (world.root / "syn").exists()
    pickle.loads((world.pool / "ShuffleNetV2.pth").read_bytes())
    assert (tmp_path / "made").exists()  # it would have run


# Label stores


def without_an_epoch(store):
    fkd.epoch_path(store, 2).unlink()


def without_a_manifest(store):
    (store / fkd.MANIFEST).unlink()


def with_half_a_manifest(store):
    text = (store / fkd.MANIFEST).read_text()
    (store / fkd.MANIFEST).write_text(text[: len(text) // 2])


def with_an_epoch_of_another_store(store):
    tensors = safetensors.torch.load_file(fkd.epoch_path(store, 0))
    tensors["logits"] = tensors["logits"][:, :5].contiguous()
    safetensors.torch.save_file(tensors, fkd.epoch_path(store, 0))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_an_epoch, "epoch_00002.safetensors is missing or damaged: run the same relabel command again"),
        (without_a_manifest, "is no finished label store (it has no manifest.json): run relabel to its end"),
        (with_half_a_manifest, "manifest.json is damaged (JSONDecodeError"),
        (with_an_epoch_of_another_store, "epoch_00000.safetensors is missing or damaged"),
    ],
)
def test_a_label_store_that_is_not_whole(labelled, refusal, tmp_path, damage, message):
    store = tmp_path / "store"
    shutil.copytree(labelled.world.root / "fkd" / "labels_bs8_ipc2", store)
    damage(store)
    line = labelled.refuse(refusal, "validate", "--fkd-path", str(store))
    assert message in line and str(store) in line


def test_an_epoch_that_is_lost_after_the_store_was_opened(labelled, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(labelled.world.root / "fkd" / "labels_bs8_ipc2", store)
    opened = fkd.open_store(store)
    without_an_epoch(store)
    with pytest.raises(UserError, match=r"epoch_00002\.safetensors is missing: run the stage that writes it"):
        fkd.read_epoch(opened, 2)


# Flags


@NO_CUDA
@pytest.mark.parametrize("name", STAGES)
def test_cuda_where_there_is_none(labelled, refusal, name):
    line = labelled.refuse(refusal, name, "--device", "cuda")
    assert line == "error: --device cuda: this machine has none that PyTorch can use; take --device auto or cpu"


@NO_CUDA
def test_cuda_where_there_is_none_in_a_process(world, processes):
    ended = processes.run("-m", "recover.recover", *world.recover(), "--device", "cuda")
    assert (ended.status, ended.errors.count("\n")) == (2, 1)
    assert ended.errors.startswith("error: --device cuda")
    assert not (world.root / "syn").exists()


@pytest.mark.parametrize(
    ("name", "flag", "message"),
    [
        ("recover", "--patch-dir", "--initialisation-method Patches reads patches: name --patch-dir, or take Gaussian"),
        ("recover", "--model-pool-dir", "teachers are read from a folder: name --model-pool-dir, or take them online"),
        ("relabel", "--model-pool-dir", "teachers are read from a folder: name --model-pool-dir, or take them online"),
        ("validate", "--val-dir", "--val-dir is missing: the dataset's own folder of validation images"),
    ],
)
def test_a_folder_that_was_not_given(labelled, refusal, name, flag, message):
    main, arguments = labelled.calls[name]
    at = arguments.index(flag)
    words = arguments[:at] + arguments[at + 2 :]
    if flag == "--patch-dir":
        words += ["--alpha", "1"]
    assert message in refusal(main, words)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("pretrain", "--optimizer sgd --momentum -1"),
        ("pretrain", "--weight-decay -0.1"),
        ("pretrain", "--workers -1"),
        ("validate", "--sgd --momentum -0.5"),
        ("validate", "--sgd --weight-decay -1.0"),
        ("validate", "--adamw-weight-decay nan"),
    ],
)
def test_numbers_below_zero(labelled, refusal, name, flags):
    flag, number = flags.split()[-2:]
    assert labelled.refuse(refusal, name, *flags.split()).startswith(f"error: {flag} {number}")


# A loss that is not finite


def test_images_done_before_a_loss_that_is_not_finite_stay(stages, refusal, monkeypatch):
    """The second class batch of the first image index fails at its fifth iteration."""
    calls = []
    cross_entropy = torch.nn.functional.cross_entropy

    def failing(logits, labels, **options):
        calls.append(int(labels[0]))
        loss = cross_entropy(logits, labels, **options)
        return loss * float("nan") if calls.count(5) == 5 else loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", failing)
    line = refusal(*stages.calls["recover"])
    assert "image 0, classes 5 to 9: the loss is not finite at iteration 4" in line
    images = sorted(path.name for path in stages.made["recover"].rglob("class*.png"))
    assert images == [f"class{index:03d}_id000.png" for index in range(5)]


# A full disk


def assert_all_whole(folder: Path) -> int:
    """Every file below a folder can be read, and none is left over from an attempt; returns how many there are."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in folder.rglob("*") if path.name.endswith(".part")]
    for path in files:
        if path.suffix in (".png", ".jpg"):
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".safetensors":
            safetensors.torch.load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
    return len(files)


DISKS = {  # the sizes in kilobytes let each stage begin
    "recover": ("recover.recover", "--syn-data-path", "images", 40),
    "relabel": ("relabel.relabel", "--fkd-path", "labels", 16),
    "validate": ("validate.validate", "--output-dir", "", 64),
    "pretrain": ("models.pretrain", "--model-pool-dir", "", 64),
    "patches": ("recover.make_patches", "--patch-dir", "", 40),
    "choose": ("recover.choose_images", "--syn-data-path", "", 40),
}


@pytest.fixture(scope="module")
def small_disks(labelled, processes, tmp_path_factory):
    """Every stage on a file system of its own that is too small for it, then again with space: by name, both ends."""
    folder = tmp_path_factory.mktemp("disks")
    jobs = []
    for name, (module, flag, inner, kilobytes) in DISKS.items():
        (folder / name).mkdir()
        arguments = [*labelled.calls[name][1], flag, str(folder / name / inner)]
        jobs.append({"module": module, "arguments": arguments, "disk": str(folder / name), "kilobytes": kilobytes})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    unshare = ("unshare", "--user", "--map-root-user", "--mount")
    probe = f'mount -t tmpfs tmpfs "{folder}"'
    if shutil.which("unshare") is None or subprocess.run([*unshare, "sh", "-c", probe], check=False).returncode:
        pytest.skip("this machine does not let a user mount a file system of their own")
    ended = processes.run(str(ROOT / "tests/on_small_disks.py"), str(folder / "jobs.json"), before=unshare)
    assert ended.status == 0, ended.errors
    return folder, dict(zip(DISKS, json.loads(ended.output), strict=True))


@pytest.mark.parametrize("name", DISKS)
def test_a_full_disk(small_disks, processes, name):
    folder, ends = small_disks
    status, errors = ends[name]["full"]
    *bars, line = processes.screen(errors)
    assert status == 2 and "Traceback" not in errors and not [bar for bar in bars if "error" in bar]
    assert line.startswith(f"error: no space left while writing {folder / name}/")
    assert line.endswith(": free some space and run the same command again")
    some = assert_all_whole(folder / f"{name}_full")
    assert ends[name]["freed"][0] == 0
    assert some < assert_all_whole(folder / f"{name}_freed")


@contextlib.contextmanager
def files_no_larger_than(size):
    """A limit that stops this process from writing larger files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["recover", "relabel", "validate"])
def test_files_that_may_not_grow(stages, refusal, name):
    stages.prepare(name)
    main, arguments = stages.calls[name]
    with files_no_larger_than(1500):
        line = refusal(main, [word for word in arguments if word != "--use-fp16"])
    assert line.startswith(f"error: no space left while writing {stages.made[name]}")
    assert_all_whole(stages.made[name])
    assert not list(stages.made[name].rglob("class*.png")) and not list(stages.made[name].rglob("epoch*"))


def test_half_a_jpeg_is_no_patch(tmp_path):
    """PIL by itself does not notice that a JPEG was not written to its end."""
    noise = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with files_no_larger_than(3000), pytest.raises(OSError, match="File too large"):
        write_class_patches(tmp_path, 0, noise)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this machine has no /dev/full")
@pytest.mark.parametrize(
    ("last_words", "message"),
    [("pass", "no space left while writing"), ("raise UserError('no such network')", "no such network")],
)
def test_output_that_goes_to_a_full_disk(processes, last_words, message):
    code = "from utils.run.errors import UserError, run_entry\ndef main():\n print('settings')\n " + last_words
    shell = 'exec "$@" >/dev/full'
    ended = processes.run("-c", f"{code}\nrun_entry(main)", before=("sh", "-c", shell, "sh"), PYTHONUNBUFFERED="")
    assert ended.status == 2
    assert ended.errors.startswith(f"error: {message}") and ended.errors.count("\n") == 1


def test_laying_out_on_a_full_disk(refusal, tmp_path, monkeypatch):
    for name in CONFIG:
        monkeypatch.setenv(name, str(tmp_path / name))
    with files_no_larger_than(400):
        line = refusal(prepare.main, ["fashion_mnist"])
    assert f"no space left while writing {tmp_path}/train_dir/fashion_mnist" in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_fault_of_this_project_keeps_its_traceback():
    """What nobody foresaw is not hidden behind one line."""

    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_entry(main)
