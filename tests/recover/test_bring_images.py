"""bring_images: sets of others in the layout of distilled ones, taken by relabel and validate like those made here."""

import json
import shutil

import pytest
import torch
from PIL import Image
from torch import nn

from models.checkpoints import Teacher, save_state
from models.registry import build_network
from models.teachers import write_record
from recover import bring_images
from recover.bring_images import main
from relabel import relabel
from tests.distilled_sets import CELL, FASHION, NAMES, config_at, images_of, pixels
from utils.data.distilled import read_distilled
from utils.data.images import images_digest
from validate import validate

DEVICE = ["--device", "cpu", "--workers", "0"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    config_at(monkeypatch, tmp_path / "all")
    return tmp_path / "all"


@pytest.fixture
def source(tmp_path):
    """Class folders with a picture of each class."""
    for label, image in enumerate(pixels(10)):
        (tmp_path / "set" / NAMES[label]).mkdir(parents=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "set" / NAMES[label] / "a.png")
    return tmp_path / "set"


def pool_of(root):
    return root / "pretrained_models" / "fashion_mnist_pretrained_models"


def test_relabel_and_validate_take_them(root, source, capsys):
    main(["fashion_mnist", "theirs", str(source), *DEVICE])
    said = capsys.readouterr().out
    images, labels, ipc = read_distilled(images_of(root, "theirs_ipc1"), FASHION)
    assert torch.equal(images, pixels(10)) and ipc == 1
    assert (images_of(root, "theirs_ipc1") / "new007" / "class007_id000.png").is_file()
    record = json.loads((images_of(root, "theirs_ipc1") / "settings.json").read_text())
    digest = images_digest(images, labels)
    assert (record["method"], record["source"], record["images_sha256"]) == ("theirs", "set", digest)
    assert "note: no tested teacher in" in said and f"theirs_ipc1: 10 images, 1 a class, sha256 {digest}" in said
    torch.manual_seed(0)
    pool_of(root).mkdir(parents=True)
    save_state(pool_of(root) / "ConvNetBN_W64.safetensors", build_network("ConvNetBN_W64", FASHION))
    relabel.main([*CELL[:-2], "--images", "theirs"])
    validate.main([*CELL, "--images", "theirs", "--workers", "0", "--seed", "0"])
    results = root / "generated_data" / "validate_output" / "fashion_mnist" / "theirs_by_fadrm_ipc1_ConvNetBN_W32"
    result = json.loads((results / "seed0" / "result.json").read_text())
    assert (result["method"], result["images_sha256"]) == ("theirs", digest)


def test_an_exported_set_needs_no_names(root, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(bring_images, "unpack", lambda folder, environment: asked.append(folder))
    monkeypatch.setattr(bring_images, "pull", lambda repository, downloads: downloads / repository)
    main([str(tmp_path)])
    main(["--pull", "me/set"])
    assert asked == [tmp_path, root / "downloads" / "me/set"]


def test_what_others_have_on_the_hub(root, source, monkeypatch):
    monkeypatch.setattr(bring_images, "pull", lambda repository, downloads: source)
    main(["fashion_mnist", "theirs", "--pull", "me/set", *DEVICE])
    assert torch.equal(read_distilled(images_of(root, "theirs_ipc1"), FASHION)[0], pixels(10))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give FOLDER, or DATASET NAME FOLDER"),
        ("fashion_mnist theirs", "give FOLDER, or DATASET NAME FOLDER"),
        ("fashion_mnist theirs SET --pull me/set", "give FOLDER, or DATASET NAME FOLDER"),
        ("mnist theirs SET", "unknown dataset 'mnist'"),
        ("fashion_mnist fadrm SET", "'fadrm': a name of letters"),
        ("fashion_mnist random SET", "'random': a name of letters"),
        ("fashion_mnist ../theirs SET", "'../theirs': a name of letters"),
        ("cifar10 theirs SET", "the real images of cifar10, whose folders tell their order, are not laid out"),
        ("fashion_mnist theirs SET/none", "set/none is missing"),
        ("SET", "set has no manifest.json"),
    ],
)
def test_what_cannot_be_brought(root, source, refusal, words, message):
    assert message in refusal(main, words.replace("SET", str(source)).split())
    assert not (root / "generated_data").exists()


def test_what_is_there_stays(root, source, refusal, contents):
    main(["fashion_mnist", "theirs", str(source), *DEVICE])
    before = contents(images_of(root, "theirs_ipc1"))
    shutil.copy(source / NAMES[0] / "a.png", source / NAMES[1] / "a.png")
    assert "theirs_ipc1 is there: move it away" in refusal(main, ["fashion_mnist", "theirs", str(source), *DEVICE])
    assert contents(images_of(root, "theirs_ipc1")) == before


def test_an_error_on_the_way_leaves_nothing(root, source, refusal, small_disk, monkeypatch):
    def fail(paths, *_):
        if "class004" in paths[0].name:
            raise OSError(28, "No space left on device", str(paths[0]))

    with monkeypatch.context() as patch:
        patch.setattr(bring_images, "write_distilled", fail)
        assert "no space left" in refusal(main, ["fashion_mnist", "theirs", str(source), *DEVICE])
    small_disk(1000)
    assert "no space for" in refusal(main, ["fashion_mnist", "theirs", str(source), *DEVICE])
    assert not list(images_of(root, "").iterdir())


class ByGrey(nn.Module):
    """Knows class c by its grey value 25 c."""

    def __init__(self):
        super().__init__()
        self.grey = nn.Parameter(25.0 * torch.arange(10) / 255 * 2 - 1)

    def forward(self, images):
        return -(images.mean(dim=(1, 2, 3))[:, None] - self.grey).square()


@pytest.mark.parametrize("shuffled", [0, 4, 10])
def test_a_teacher_tells_a_shuffled_order(root, tmp_path, monkeypatch, capsys, shuffled):
    """Two teachers have a record; the better one is asked, and warns where it knows less than half of what it did."""
    pool_of(root).mkdir(parents=True)
    for name, top1 in (("ConvNetBN_W32", 60.0), ("ConvNetBN_W64", 80.0)):
        save_state(pool_of(root) / f"{name}.safetensors", build_network(name, FASHION))
        write_record(pool_of(root), name, FASHION.name, "trained", {"top1": top1, "top5": 99.0})
    (pool_of(root) / "report.json").write_text("{}")
    monkeypatch.setattr(bring_images, "load_teacher", lambda name, dataset, pool: Teacher(name, ByGrey(), ""))
    order = [*reversed(range(shuffled)), *range(shuffled, 10)]
    for label, grey in enumerate(order):
        (tmp_path / "set" / f"{label:05d}").mkdir(parents=True)
        Image.new("RGB", (32, 32), (25 * grey,) * 3).save(tmp_path / "set" / f"{label:05d}" / "a.png")
    main(["fashion_mnist", "theirs", str(tmp_path / "set"), *DEVICE])
    said = capsys.readouterr().out
    assert f"ConvNetBN_W64 (80.00 % on real images) knows {100 - 10.0 * shuffled:.2f} % of these" in said
    assert ("that is poor: the order of the classes may not be" in said) == (shuffled == 10)
