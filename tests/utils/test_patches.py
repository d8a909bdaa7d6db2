"""Patch initialisation: the maths of crops, ranking and tiles, and the files that recover reads."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from utils.datasets import get_dataset, normalise
from utils.errors import UserError
from utils.patches import (
    choose_crops,
    crop_losses,
    downloaded_patches_complete,
    find_patch,
    load_patches,
    missing_patch,
    pad_centred,
    patch_path,
    require_patches,
    sample_square_crops,
    select,
    tile,
    write_class_patches,
)
from utils.randomness import generator_for

FASHION = get_dataset("fashion_mnist")


def write_image(path, size=32, value=0, image_format=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value,) * 3).save(path, format=image_format)
    return path


# Crops


def test_square_crops_are_square_inside_and_of_the_area_asked_for():
    boxes = sample_square_crops(300, 400, 2000, (0.2, 0.5), generator_for(0, "test"))
    top, left, height, width = boxes.T
    assert torch.equal(height, width)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 300).all() and (left + width <= 400).all()
    share = height * width / (300 * 400)
    assert 0.198 < share.min() < 0.21 and 0.49 < share.max() < 0.503
    assert share.float().mean() == pytest.approx(0.35, abs=0.01)  # uniform in area, not in side


def test_whole_image_crops():
    boxes = sample_square_crops(32, 32, 3, (1.0, 1.0), generator_for(0, "test"))
    assert boxes.tolist() == [[0, 0, 32, 32]] * 3


def test_padding_is_centred_and_after_normalisation():
    padded = pad_centred(torch.ones(2, 3, 4, 4), 9)
    assert padded.shape == (2, 3, 9, 9)
    assert torch.equal(padded[0, 0], F.pad(torch.ones(4, 4), (2, 3, 2, 3)))


class Brightness(nn.Module):
    """Class 0 for bright images, class 1 for dark ones."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        mean = images.mean(dim=(1, 2, 3)) * self.scale
        return torch.stack((mean, -mean), dim=1)


@pytest.mark.parametrize("side", [32, 16])
def test_losses_are_the_observers_cross_entropy_on_padded_crops(side):
    crops = torch.randint(0, 256, (7, 3, side, side), dtype=torch.uint8)
    expected = F.cross_entropy(
        Brightness()(pad_centred(normalise(crops, FASHION), 32)), torch.ones(7, dtype=torch.int64), reduction="none"
    )
    losses = crop_losses(Brightness().eval(), crops, 1, FASHION, batch_size=3)
    assert not losses.requires_grad
    torch.testing.assert_close(losses, expected)


# Ranking


def test_difficulties():
    ranking = torch.tensor([4, 2, 0, 1, 3])
    assert select(ranking, "easy").tolist() == [4, 2, 0, 1, 3]
    assert select(ranking, "hard").tolist() == [3, 1, 0, 2, 4]
    assert select(ranking, "medium").tolist() == [0, 2, 1, 4, 3]
    assert select(torch.arange(4), "medium").tolist() == [1, 2, 0, 3]
    with pytest.raises(ValueError, match="difficulty"):
        select(ranking, "harder")


def test_each_image_gives_its_best_crop_first():
    losses = torch.tensor([[3.0, 1.0], [0.5, 2.0], [9.0, 0.7]])
    assert choose_crops(losses, "easy", 3).tolist() == [[1, 0], [2, 1], [0, 1]]
    assert choose_crops(losses, "hard", 3).tolist() == [[0, 1], [2, 1], [1, 0]]
    assert choose_crops(losses, "medium", 2).tolist() == [[2, 1], [1, 0]]


def test_few_images_give_their_next_best_crops_after_all_best_ones():
    losses = torch.tensor([[3.0, 1.0], [0.5, 2.0], [9.0, 0.7]])
    assert choose_crops(losses, "easy", 6)[3:].tolist() == [[1, 1], [0, 0], [2, 0]]
    with pytest.raises(ValueError, match="7 crops"):
        choose_crops(losses, "easy", 7)


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
def test_more_patches_begin_with_the_same_ones(difficulty):
    losses = torch.rand(20, 3, generator=generator_for("losses"))
    most = choose_crops(losses, difficulty, 60)
    assert len(set(map(tuple, most.tolist()))) == 60
    for count in (1, 10, 25):
        assert torch.equal(choose_crops(losses, difficulty, count), most[:count])


def test_ties_go_to_the_earlier_image_and_crop():
    assert choose_crops(torch.ones(3, 2), "easy", 6).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


def test_tiles_are_filled_row_by_row_with_consecutive_crops():
    crops = torch.arange(8).view(8, 1, 1, 1).expand(8, 3, 2, 2)
    tiles = tile(crops, 2)
    assert tiles.shape == (2, 3, 4, 4)
    assert tiles[0, 1].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert tiles[1, 0, 3, 3] == 7
    assert torch.equal(tile(crops, 1), crops)


# Files


def test_layout(tmp_path):
    assert patch_path(tmp_path, 3, 12) == tmp_path / "00003" / "class00003_id00012.jpg"
    assert find_patch(tmp_path, 3, 12) is None
    png = write_image(patch_path(tmp_path, 3, 12, "png"))
    assert find_patch(tmp_path, 3, 12) == png
    assert missing_patch(tmp_path, 3, 2) == patch_path(tmp_path, 3, 0)


def test_written_patches_read_back_nearly_the_same(tmp_path):
    ramp = torch.arange(32, dtype=torch.uint8).mul(8)
    patches = torch.stack((ramp.expand(3, 32, 32), ramp.view(32, 1).expand(3, 32, 32)))
    write_class_patches(tmp_path / "easy", 4, patches)
    assert sorted(path.name for path in (tmp_path / "easy").iterdir()) == ["00004"]
    for ipc_id in (0, 1):
        read = load_patches(tmp_path, "easy", [4], ipc_id, FASHION)
        assert read.shape == (1, 3, 32, 32)
        assert (read[0].int() - patches[ipc_id].int()).abs().max() <= 4
    write_class_patches(tmp_path / "easy", 4, patches[:1])  # replaces the folder
    assert missing_patch(tmp_path / "easy", 4, 2) == patch_path(tmp_path / "easy", 4, 1)


def test_a_full_disk_leaves_no_class_folder(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError) as caught:
        write_class_patches(tmp_path, 0, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert caught.value.filename == str(tmp_path / "00000")
    assert list(tmp_path.iterdir()) == []


def test_patches_that_are_wanting(tmp_path):
    with pytest.raises(UserError, match=r"make_patches\.sh, or put downloaded ones there"):
        load_patches(tmp_path, "medium", range(2), 0, FASHION)
    folder = tmp_path / "medium"
    write_image(patch_path(folder, 0, 0), value=10)
    with pytest.raises(UserError, match="class00001_id00000"):
        load_patches(tmp_path, "medium", range(2), 0, FASHION)
    with pytest.raises(UserError, match="class00000_id00001"):
        require_patches(tmp_path, "medium", [(0, [0]), (1, [0])], FASHION)
    write_image(patch_path(folder, 1, 0, "png"), value=200)
    assert load_patches(tmp_path, "medium", range(2), 0, FASHION)[:, 0, 0, 0].tolist() == [10, 200]
    write_image(patch_path(folder, 1, 0, "png"), size=31)
    with pytest.raises(UserError, match=r"class00001_id00000\.png is 31 x 31"):
        load_patches(tmp_path, "medium", range(2), 0, FASHION)
    patch_path(folder, 1, 0, "png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"class00001_id00000\.png does not decode"):
        load_patches(tmp_path, "medium", range(2), 0, FASHION)


def test_downloaded_patches(tmp_path):
    assert not downloaded_patches_complete(tmp_path / "absent", range(1), 1)
    write_image(patch_path(tmp_path, 0, 0))
    assert downloaded_patches_complete(tmp_path, [0], 1)
    with pytest.raises(UserError, match=r"not 00000/class00000_id00001\.jpg"):
        downloaded_patches_complete(tmp_path, [0], 2)
    (tmp_path / "patches.json").write_text("{}")
    assert not downloaded_patches_complete(tmp_path, [0], 1)
