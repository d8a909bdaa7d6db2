"""The views that tests of labels are of: CutMix of 37 images in batches of 8, the last of which has 5."""

from utils.fkd.views import ViewSettings

VIEWS = ViewSettings(
    images=37,
    size=32,
    batch_size=8,
    epochs=2,
    min_scale=0.08,
    max_scale=1.0,
    mix="cutmix",
    mix_alpha=1.0,
    fkd_seed=42,
    seed=42,
)
