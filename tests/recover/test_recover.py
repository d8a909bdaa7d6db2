"""The recover entry: what it makes, what it skips, what it refuses."""

import json
import math
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models import registry
from models.checkpoints import load_network, save_state
from recover import batches, recover
from tests.test_many_processes import Turns
from utils import recipes
from utils.data.distilled import distilled_path
from utils.data.table import get_dataset

FASHION = get_dataset("fashion_mnist")


def image_path(world, class_index, ipc_id, name="images"):
    return distilled_path(world.root / "syn" / name, 10, class_index, ipc_id)


def test_a_run_leaves_images_record_report_and_contact_sheet(world, capsys):
    recover.main(world.recover())
    folder = world.root / "syn" / "images"
    for class_index in range(10):
        for ipc_id in range(2):
            with Image.open(image_path(world, class_index, ipc_id)) as image:
                assert image.size == (32, 32)
    assert (folder / "new003" / "class003_id001.png").exists()
    assert json.loads((folder / "settings.json").read_text())["alpha"] == 0.5
    assert json.loads((folder / "report.json").read_text())["made"] == 20
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > sheet.height / 3
    assert not list(folder.rglob("*.part"))
    assert "20 images" in capsys.readouterr().out


@pytest.fixture
def sheets(monkeypatch):
    """The contact sheets that are drawn: panels, and names of the rows."""
    drawn = []
    monkeypatch.setattr(batches, "contact_sheet", lambda path, panels, names: drawn.append((panels, names)))
    return drawn


def test_the_contact_sheet_calls_classes_by_name(world, sheets, monkeypatch):
    monkeypatch.delenv("train_dir", raising=False)
    monkeypatch.setenv("val_dir", str(world.root))
    recover.main(world.recover("--ipc-end", "1", "--start-index", "5", name="before"))
    for index in range(10):
        (world.root / "fashion_mnist" / f"{index}_{'abcdefghij'[index]}").mkdir(parents=True)
    recover.main(world.recover("--ipc-end", "1", "--start-index", "5", name="after"))
    (panels, numbers), (_, names) = sheets
    assert numbers == [f"class {index}" for index in range(5, 10)] and names == list("fghij")
    assert list(panels) == ["patches", "distilled"] and [len(rows) for rows in panels.values()] == [5, 5]


def test_images_differ_from_their_patches_but_not_wholly(world):
    recover.main(world.recover())
    patch = torch.tensor(bytearray(Image.open(world.patches / "medium/00000/class00000_id00000.png").tobytes()))
    image = torch.tensor(bytearray(Image.open(image_path(world, 0, 0)).tobytes()))
    difference = (patch.float() - image.float()).abs().mean()
    assert 1 < difference < 128


def test_any_part_made_alone_is_the_same(world, contents):
    recover.main(world.recover())
    recover.main(world.recover("--ipc-start", "1", "--start-index", "7", "--end-index", "8", name="part"))
    whole, part = contents(world.root / "syn" / "images"), contents(world.root / "syn" / "part")
    images = {name for name in part if "class" in name}
    # one class of the second batch was asked for: the batch is made, whole
    assert images == {f"new{index:03d}/class{index:03d}_id001.png" for index in range(5, 10)}
    assert all(part[name] == whole[name] for name in images)


def test_seed_and_jitter_change_the_images(world, contents):
    recover.main(world.recover())
    first = contents(world.root / "syn" / "images")
    for number, extra in enumerate((["--seed", "1"], ["--jitter", "0"])):
        recover.main(world.recover(*extra, name=f"other{number}"))
        other = contents(world.root / "syn" / f"other{number}")
        assert all(other[name] != first[name] for name in first if name.startswith("new"))


def test_what_is_there_is_not_made_again_and_what_is_not_whole_is(world, contents, capsys):
    recover.main(world.recover())
    folder = world.root / "syn" / "images"
    before = contents(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("class*.png")}
    victim = image_path(world, 2, 1)
    victim.write_bytes(victim.read_bytes()[:100])
    recover.main(world.recover())
    assert "5 images" in capsys.readouterr().out  # one class batch of one index
    assert contents(folder) == before
    again = {path: path.stat().st_mtime_ns for path in folder.rglob("class*.png")}
    assert sum(again[path] != times[path] for path in times) == 5


def test_teachers_are_taken_in_turn(world):
    recover.main(world.recover("--teacher-model-list", "ShuffleNetV2", "ShuffleNetV2"))
    record = json.loads((world.root / "syn/images/settings.json").read_text())
    assert [teacher["name"] for teacher in record["teachers"]] == ["ShuffleNetV2", "ShuffleNetV2"]


def test_noise_needs_no_patches(world):
    arguments = world.recover("--initialisation-method", "Guassian", "--alpha", "1")
    cut = arguments.index("--patch-dir")
    recover.main(arguments[:cut] + arguments[cut + 2 :])
    assert image_path(world, 9, 1).exists()


def test_noise_can_merge_patches(world):
    recover.main(world.recover("--initialisation-method", "Gaussian", name="noise"))
    recover.main(world.recover("--initialisation-method", "Gaussian", "--alpha", "1", name="alone"))
    assert image_path(world, 0, 0, "noise").read_bytes() != image_path(world, 0, 0, "alone").read_bytes()


def test_initial_images_are_stored_beside_on_request(world):
    recover.main(world.recover("--store-initialised-images"))
    with Image.open(image_path(world, 4, 0, "images_initialised")) as initial:
        patch = Image.open(world.patches / "medium/00004/class00004_id00000.png")
        assert initial.tobytes() == patch.tobytes()


# Images of the stages


def stage_images(world, name, stage=1):
    """Pixels (side x side x 3) of what a stage ended with, by class and image index."""
    folder = world.root / "syn" / f"{name}_stage{stage}"
    return {path.name: np.asarray(Image.open(path)).astype(float) for path in sorted(folder.rglob("*.png"))}


def test_stages_are_kept_as_they_end_before_the_merge(world, monkeypatch, sheets):
    """What was seen at the last iteration of each stage; the last stage's are the images themselves."""
    seen = {}

    def look_on(step, batch, **others):
        for member, image in zip(batch.members, step.images, strict=True):
            pixels = (image.permute(1, 2, 0).numpy() * 0.5 + 0.5) * 255
            seen[step.iteration + 1, "class{:03d}_id{:03d}.png".format(*member)] = pixels

    monkeypatch.setattr(recover, "look_on", look_on)
    words = ["--store-stages", "--input-size-lis", "24", "28", "32", "--optimization-budgets", "3", "2", "1"]
    recover.main(world.recover(*words))
    for stage, (end, side) in enumerate([(3, 24), (5, 28)], start=1):
        kept = stage_images(world, "images", stage)
        assert len(kept) == 20
        for name, pixels in kept.items():
            assert pixels.shape == (side, side, 3) and np.abs(pixels - seen[end, name]).max() <= 0.501
    assert (world.root / "syn/images_stage2/new004/class004_id001.png").exists()
    assert not (world.root / "syn/images_stage3").exists()
    ((panels, _),) = sheets
    assert list(panels) == ["patches", "stage 1", "stage 2", "distilled"]
    assert [rows[0][0].size for rows in panels.values()] == [(32, 32), (24, 24), (28, 28), (32, 32)]


def test_keeping_stages_changes_no_image_and_no_record(world, contents):
    recover.main(world.recover(name="plain"))
    recover.main(world.recover("--store-stages", "--measure-every", "2", name="kept"))
    plain, kept = (contents(world.root / "syn" / name) for name in ("plain", "kept"))
    assert plain.pop("contact_sheet.png") != kept.pop("contact_sheet.png")
    assert plain == kept and not (world.root / "syn/plain_stage1").exists()


def test_batches_that_were_there_have_no_stages_which_is_said(world, capsys, sheets):
    recover.main(world.recover("--ipc-end", "1"))
    capsys.readouterr()
    recover.main(world.recover("--store-stages"))
    assert len(stage_images(world, "images")) == 10
    note = "note: 2 of the batches were there already, without the images of their stages: move "
    assert capsys.readouterr().out.count(note + str(world.root / "syn/images")) == 1
    assert [list(panels) for panels, _ in sheets] == [["patches", "distilled"]] * 2
    recover.main(world.recover("--store-stages", "--ipc-start", "1"))
    recover.main(world.recover())
    assert "note:" not in capsys.readouterr().out


def test_stages_of_several_processes_and_of_a_second_try_are_those_of_one(world, contents):
    recover.main(world.recover("--store-stages", name="one"))
    settings = recipes.parse("recover", world.recover("--store-stages", name="two"))
    Turns(2).run(lambda member: recover.recover(settings, member))
    whole = contents(world.root / "syn/one_stage1")
    assert contents(world.root / "syn/two_stage1") == whole and len(whole) == 20
    image_path(world, 7, 1, "two").unlink()  # its batch was not done
    image_path(world, 8, 1, "two_stage1").unlink()
    recover.main(world.recover("--store-stages", name="two"))
    assert contents(world.root / "syn/two_stage1") == whole


def test_images_of_another_run_in_the_place_of_stages_stay(world, refusal):
    recover.main(world.recover("--alpha", "0.7", name="images_stage1"))
    line = refusal(recover.main, world.recover("--store-stages"))
    assert "images_stage1/new000/class000_id000.png was made from other patches: move it away, or take another" in line
    assert not list((world.root / "syn/images").rglob("class*.png"))


def test_the_space_for_stages_is_counted(world, capsys):
    stages = ["--input-size-lis", "24", "28", "32", "--optimization-budgets", "1", "1", "1"]
    found = []
    for extra in ([], ["--store-stages"], ["--store-stages", "--store-initialised-images"]):
        recover.main(world.recover("--dry-run", *stages, *extra))
        printed = capsys.readouterr().out
        assert re.search(r"^  images +20$", printed, re.MULTILINE)
        found.append(int(re.search(r"^  files +(\d+),", printed, re.MULTILINE)[1]))
    assert found == [20, 60, 80]


def test_the_verifier_tells_its_accuracy_as_it_goes(world, capsys):
    recover.main(
        world.recover(
            *("--verifier", "--verifier-arch", "ShuffleNetV2", "--optimization-budgets", "50", "50", "--ipc-end", "1")
        )
    )
    output = capsys.readouterr()
    assert "iteration 100: verifier accuracy" in output.out + output.err


def test_a_run_with_other_settings_into_the_same_folder_is_refused(world, refusal):
    recover.main(world.recover())
    line = refusal(recover.main, world.recover("--alpha", "0.7"))
    assert "alpha (0.5 there, 0.7 here)" in line


def test_other_patches_under_the_same_settings_are_refused(world, refusal):
    recover.main(world.recover())
    patch = world.patches / "medium/00000/class00000_id00000.png"
    Image.new("RGB", (32, 32), "red").save(patch)
    assert "was made from other patches" in refusal(recover.main, world.recover())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--dataset-name", "cifar1000"], "unknown dataset 'cifar1000'"),
        (["--input-size-lis", "32"], "--input-size-lis has 1 stages, --optimization-budgets 2"),
        (["--input-size-lis", "32", "24"], "ends at 24"),
        (["--optimization-budgets", "3", "0"], "--optimization-budgets 0: it must be from 1 to 1,000,000"),
        (["--alpha", "1.5"], "--alpha 1.5"),
        (["--alpha", "nan"], "--alpha nan"),
        (["--ipc-start", "2", "--ipc-end", "2"], "an empty range"),
        (["--start-index", "10"], "an empty range"),
        (["--end-index", "11"], "beyond the 10 classes"),
        (["--lr", "0"], "--lr 0.0"),
        (["--jitter", "-1"], "--jitter -1"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--teacher-model-list", "ResNet999"], "ResNet999"),
        (["--teacher-model-list", "ResNet18"], "ResNet18"),
        (["--pretrained-model-type", "online"], "online"),
        (["--ipc-end", "3"], "class00000_id00002"),
        (["--patch-dir", "nowhere"], "nowhere"),
        (["--world-size", "2"], "torchrun"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--recipe", "fadrm"], "--recipe needs"),
        (["--recipe", "magic", "--ipc", "1"], "magic"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(world, refusal, extra, message):
    assert message in refusal(recover.main, world.recover(*extra))
    assert not list((world.root / "syn").rglob("*.png"))


class Pooling(nn.Module):
    """Neither a convolution nor BatchNorm."""

    def __init__(self, num_classes):
        super().__init__()
        self.classifier = nn.Linear(3, num_classes)

    def forward(self, images):
        return self.classifier(images.mean(dim=(2, 3)))


@pytest.fixture
def without_batchnorm(world, monkeypatch):
    """The world with a teacher of convolutions alone, ConvNetW128, and one of neither, Pooling."""
    monkeypatch.setitem(registry._networks, ("Pooling", 32), Pooling)
    for name in ("ConvNetW128", "Pooling"):
        save_state(world.pool / f"{name}.safetensors", registry.build_network(name, FASHION), {})
    return world


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--teacher-model-list ConvNetW128", "ConvNetW128: no layer that --probe bn_input watches, so there are no"),
        ("--teacher-model-list ConvNetW128 --dry-run", "ConvNetW128: no layer that --probe bn_input watches"),
        ("--teacher-model-list ConvNetW128 Pooling", "ConvNetW128, Pooling: no layer that --probe bn_input watches"),
        ("--probe conv_input --teacher-model-list ShuffleNetV2 Pooling", "Pooling: no layer that --probe conv_input"),
        (
            "--terms cross_entropy paired --teacher-model-list ShuffleNetV2 Pooling",
            "Pooling: no layer that --probe bn_",
        ),
        (
            "--terms cross_entropy --group-by difficulty --train-dir .",
            "it counts for nothing in this run: leave them out",
        ),
        ("--r-bn 0 --probe image_input --train-dir .", "it counts for nothing in this run: leave them out"),
        ("--terms r_bn --teacher-model-list ShuffleNetV2 Pooling", "Pooling: no layer that --probe bn_input watches"),
        ("--committee pairs", "--committee pairs asks two teachers at a time: name more than one"),
    ],
)
def test_teachers_that_cannot_serve_are_refused_before_anything_is_written(without_batchnorm, refusal, extra, message):
    world = without_batchnorm
    before = set(world.root.rglob("*"))
    words = world.recover("--train-dir", str(world.val), "--input-size-lis", "32", "32", *extra.split())
    assert message in refusal(recover.main, words)
    assert {path for path in world.root.rglob("*") if not path.name.startswith(".")} <= before


def test_a_teacher_without_batchnorm_serves_beside_others_and_where_nothing_is_matched(without_batchnorm, capsys):
    """As AlexNet in FADRM+, which the run says."""
    words = without_batchnorm.recover("--dry-run", "--teacher-model-list", "ConvNetW128")
    recover.main([*words, "ShuffleNetV2"])
    note = "note: ConvNetW128 has no layer that --probe bn_input watches: it counts for nothing in r_bn"
    assert note in capsys.readouterr().out
    for others in (["--terms", "cross_entropy"], ["--r-bn", "0"], ["--input-size-lis", "--optimization-budgets"]):
        recover.main([*words, *others])
        assert "note: ConvNetW128" not in capsys.readouterr().out


def test_merging_without_patches_is_refused(world, refusal):
    arguments = world.recover("--initialisation-method", "Gaussian")
    cut = arguments.index("--patch-dir")
    assert "--alpha 0.5 merges patches" in refusal(recover.main, arguments[:cut] + arguments[cut + 2 :])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none_is_refused(world, refusal):
    assert "--device cuda" in refusal(recover.main, world.recover("--device", "cuda"))


def damage_size(path):
    Image.new("RGB", (16, 16)).save(path)


def damage_content(path):
    path.write_bytes(path.read_bytes()[:50])


@pytest.mark.parametrize("damage", [damage_size, damage_content])
def test_a_patch_that_is_no_image_or_of_another_size_is_named(world, refusal, damage):
    damage(world.patches / "medium/00003/class00003_id00000.png")
    assert "class00003_id00000.png" in refusal(recover.main, world.recover())


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_is_done(world, refusal):
    recover.main(world.recover("--ipc-end", "1"))
    teacher = load_network("ShuffleNetV2", FASHION, world.pool / "ShuffleNetV2.safetensors")
    with torch.no_grad():
        teacher.linear.bias.fill_(math.nan)
    save_state(world.pool / "ShuffleNetV2.safetensors", teacher, {})
    line = refusal(recover.main, world.recover("--ipc-end", "1", name="bad"))
    assert "image 0, classes 0 to 4: the loss is not finite at iteration 0" in line
    assert not list((world.root / "syn" / "bad").rglob("class*.png"))
    assert len(list((world.root / "syn" / "images").rglob("class*.png"))) == 10


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(world, refusal, monkeypatch):
    written = []
    replace = os.replace

    def save(self, path, **options):
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        path.write_bytes(b"whatever")

    monkeypatch.setattr(Image.Image, "save", save)
    assert "no space left while writing" in refusal(recover.main, world.recover())
    assert len(list((world.root / "syn").rglob("class*.png"))) == 3
    assert not list((world.root / "syn").rglob("*.part"))
    assert replace is os.replace


@pytest.mark.parametrize("flag", ["--store-best-images", "--iteration 5", "--initialisation-dir x", "--gpu 0"])
def test_old_flags_without_effect_say_so(world, capsys, flag):
    recipes.parse("recover", world.recover(*flag.split()))
    assert f"note: {flag.split()[0]} has no effect here" in capsys.readouterr().out
