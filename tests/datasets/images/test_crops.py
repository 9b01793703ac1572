"""Crops against open_clip's and torchvision's own transforms on Pillow images, and the frequencies of what is drawn."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_vl.datasets.images import crops
from clip_vl.datasets.images.crops import EvalCrop, TrainCrop, change_colours, draw_box
from clip_vl.datasets.images.decoding import DamagedImage, decode_image
from clip_vl.engine.errors import UserError

PHOTOGRAPHS = sorted(Path(os.environ.get("CLIP_VL_REAL_DATA", "../shared/data"), "images").glob("*.JPEG"))
real = pytest.mark.skipif(not PHOTOGRAPHS, reason="CLIP_VL_REAL_DATA has no images/")
SOME = PHOTOGRAPHS[::6]
TOLERANCE = 0.1  # mean absolute error, of 255


def jpeg(height, width, seed=0, mode="RGB", form="JPEG"):
    noise = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.BILINEAR).convert(mode).save(buffer, form)
    return buffer.getvalue()


def encoded(image, form="PNG"):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def columns_first(monkeypatch):
    """Pillow resizes columns first whatever the shape, as it did before version 13."""
    resize = Image.Image.resize

    def in_two_passes(self, size, resample=None, **options):
        return resize(resize(self, (size[0], self.height), resample, **options), size, resample, **options)

    monkeypatch.setattr(Image.Image, "resize", in_two_passes)


def pillow(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def as_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def error(found, expected):
    assert found.shape == expected.shape and found.dtype == torch.uint8
    return (found.float() - expected.float()).abs().mean().item()


def open_clip_view(data, resolution=224, **options):
    """open_clip's evaluation transform, its normalisation taken back."""
    from open_clip.transform import image_transform

    transform = image_transform(resolution, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), **options)
    return transform(pillow(data)) * 255


# ---- evaluation ----


@real
def test_evaluation_is_open_clips_transform_on_photographs():
    errors = []
    for path in SOME:
        data = path.read_bytes()
        errors.append(error(EvalCrop(224)(data), open_clip_view(data)))
    assert np.mean(errors) < 0.01 and max(errors) < TOLERANCE


@pytest.mark.parametrize("size", [(300, 401), (401, 300), (225, 224), (224, 224), (97, 200), (50, 31), (1000, 260)])
@pytest.mark.parametrize("resize_mode, crop", [("shortest", "short_side"), ("squash", "squash"), ("longest", "pad")])
def test_evaluation_is_open_clips_transform_for_any_shape(size, resize_mode, crop, columns_first):
    data = jpeg(*size)
    expected = open_clip_view(data, resize_mode=resize_mode, fill_color=0)
    assert error(EvalCrop(224, crop=crop)(data), expected) < TOLERANCE


@real
@pytest.mark.parametrize("resize_mode, crop", [("shortest", "short_side"), ("squash", "squash"), ("longest", "pad")])
def test_no_pixel_of_a_photograph_is_far_from_open_clips(resize_mode, crop):
    for path in PHOTOGRAPHS[::15]:
        for resolution in (224, 61):
            expected = open_clip_view(path.read_bytes(), resolution, resize_mode=resize_mode, fill_color=0)
            found = EvalCrop(resolution, crop=crop)(path.read_bytes()).float()
            assert (found - expected).abs().max() <= 2.1 and (found - expected).abs().mean() < 0.02


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 2), (223, 224), (5, 4000), (4000, 5), (1, 9000), (1000, 13)])
def test_tiny_and_very_long_images_are_cropped_as_by_open_clip(size):
    data = encoded(np.random.default_rng(1).integers(0, 255, (*size, 3), dtype=np.uint8))
    found, expected = EvalCrop(32)(data).float(), open_clip_view(data, 32)
    assert (found - expected).abs().max() <= 2.1 and (found - expected).abs().mean() < 0.02


def test_a_padded_size_is_rounded_as_in_open_clip_and_never_vanishes():
    """66 / (1408 / 288) is 13.4999..., and 66 * (288 / 1408) is 13.5 and would be 14."""
    data = encoded(np.full((66, 1408, 3), 200, dtype=np.uint8))
    view = EvalCrop(288, crop="pad")(data).float()
    assert torch.equal(view, open_clip_view(data, 288, resize_mode="longest", fill_color=0).round())
    assert (view[0, :, 0] > 0).sum() == 13
    for size in ((2, 999), (999, 2)):
        view = EvalCrop(32, crop="pad")(encoded(np.full((*size, 3), 200, dtype=np.uint8)))
        assert (view == 200).sum() == 3 * 32 and view.shape == (3, 32, 32)


def test_a_line_of_millions_of_pixels_costs_no_more_than_its_centre():
    """The whole of it would have 224 x 672,000,000 pixels."""
    line = np.random.default_rng(0).integers(0, 255, (1, 3_000_000, 3), dtype=np.uint8)
    centre = line[:, 1_500_000 - 4 : 1_500_000 + 4]
    for turned in (line, line.transpose(1, 0, 2)):
        part = centre if turned.shape[0] == 1 else centre.transpose(1, 0, 2)
        found, expected = (EvalCrop(224).view(as_tensor(image)).float() for image in (turned, part))
        assert (found - expected).abs().max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK"])
def test_colours_are_converted_before_the_resize_as_by_the_loaders(mode):
    """Handed over with its alpha, the image would be premultiplied first; in RGB its hidden colours count."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 4), dtype=np.uint8)
    image = Image.fromarray(noise[..., :3]).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(noise[..., 3]))
    data = encoded(image, "TIFF")
    assert error(EvalCrop(32)(data), open_clip_view(data, 32)) < TOLERANCE


def test_a_tower_may_want_another_short_side_and_bilinear():
    """torchvision's own: resize to 256, crop 224."""
    from torchvision.transforms import functional as T

    data = jpeg(300, 401)
    expected = T.center_crop(T.resize(pillow(data), 256, T.InterpolationMode.BILINEAR), 224)
    assert error(EvalCrop(224, "bilinear", short_side=256)(data), as_tensor(expected)) < TOLERANCE


@pytest.mark.parametrize(
    "mode, form", [("L", "JPEG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGB", "WEBP")]
)
def test_other_forms_of_images_become_rgb(mode, form):
    data = jpeg(60, 80, mode=mode, form=form)
    assert error(EvalCrop(32)(data), open_clip_view(data, 32)) < TOLERANCE


# ---- training ----


def resized_crops(interpolation):
    """Mean errors of random boxes of photographs against torchvision's resized_crop of a Pillow image."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as T

    crop, rng, errors = TrainCrop(224, interpolation=interpolation), np.random.default_rng(0), []
    for path in SOME:
        data = path.read_bytes()
        image = decode_image(data)
        box = draw_box(*image.shape[1:], (0.08, 1.0), rng)
        expected = T.resized_crop(pillow(data), *box, (224, 224), InterpolationMode(interpolation))
        errors.append(error(crop.cut(image, box), as_tensor(expected)))
    return errors


@real
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_given_box_is_torchvisions_resized_crop_on_photographs(interpolation, columns_first):
    assert max(resized_crops(interpolation)) < 0.02


@real
def test_a_given_box_stays_near_whatever_pillow_is_installed():
    assert np.mean(resized_crops("bicubic")) < TOLERANCE


@pytest.mark.parametrize("height, width", [(300, 400), (400, 300), (100, 1000), (1000, 90), (1, 1), (3, 2)])
def test_boxes_are_drawn_as_torchvision_draws_them(height, width):
    from torchvision.transforms import RandomResizedCrop

    rng, picture = np.random.default_rng(0), torch.zeros(1, height, width)
    torch.manual_seed(0)
    ours = np.array([draw_box(height, width, (0.3, 1.0), rng) for _ in range(1500)])
    theirs = np.array([RandomResizedCrop.get_params(picture, [0.3, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)])
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= [height, width]).all()
    assert (ours[:, 2:] >= 1).all()
    for quantile in (0.05, 0.5, 0.95):
        found, expected = (np.quantile(boxes, quantile, axis=0) for boxes in (ours, theirs))
        assert found == pytest.approx(expected, abs=max(2, 0.05 * max(height, width)))


def test_the_kinds_are_the_published_ones():
    """open_clip: RandomResizedCrop(.9, 1) and no flip; torchvision: (.08, 1) and flip; ProtoCLIP: (.5, 1), flip."""
    assert {name: (kind.scale, kind.flip, kind.colours) for name, kind in crops.KINDS.items()} == {
        "openclip": ((0.9, 1.0), False, False),
        "torchvision": ((0.08, 1.0), True, False),
        "torchvision-late": ((0.9, 1.0), True, False),
        "protoclip-light": ((0.5, 1.0), True, True),
    }


def test_half_of_the_views_are_flipped_where_the_kind_says_so(monkeypatch):
    data = jpeg(64, 64)
    monkeypatch.setattr(crops, "draw_box", lambda height, width, scale, rng: (0, 0, height, width))
    plain = TrainCrop(32)(data, np.random.default_rng(0))
    views = [TrainCrop(32, "torchvision")(data, np.random.default_rng(seed)) for seed in range(200)]
    flipped = [torch.equal(view, plain.flip(2)) for view in views]
    assert all(torch.equal(view, plain) or flip for view, flip in zip(views, flipped))
    assert 70 < sum(flipped) < 130
    assert all(torch.equal(TrainCrop(32)(data, np.random.default_rng(seed)), plain) for seed in range(20))


@pytest.mark.parametrize("kind", crops.KINDS)
def test_a_view_depends_on_its_generator_alone(kind):
    data, crop = jpeg(120, 120), TrainCrop(48, kind)
    torch.manual_seed(0)
    first = crop(data, np.random.default_rng(5))
    torch.manual_seed(1)
    assert torch.equal(crop(data, np.random.default_rng(5)), first)
    assert not torch.equal(crop(data, np.random.default_rng(6)), first)
    assert first.shape == (3, 48, 48) and first.dtype == torch.uint8


def test_colours_change_as_often_as_the_light_augmentation_says():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 255, (3, 16, 16), dtype=np.uint8))
    views = [change_colours(image, rng) for _ in range(1000)]
    same = np.mean([torch.equal(view, image) for view in views])
    grey = np.mean([torch.equal(view[0], view[1]) and torch.equal(view[1], view[2]) for view in views])
    assert same == pytest.approx(0.8**3, abs=0.05)
    assert grey == pytest.approx(0.2, abs=0.04)


def test_a_small_picture_can_be_blurred(monkeypatch):
    monkeypatch.setattr(crops, "COLOUR_SHARE", 1.1)
    for S in (4, 5, 16, 21, 22):
        assert change_colours(as_tensor(pillow(jpeg(S, S))), np.random.default_rng(0)).shape == (3, S, S)


def test_damaged_bytes_and_unknown_kinds_are_sentences():
    with pytest.raises(DamagedImage, match=r"row 3: is not an image of a known format"):
        EvalCrop(32)(b"no image", None, "row 3")
    with pytest.raises(DamagedImage, match="row 4"):
        TrainCrop(32)(jpeg(200, 200)[:500], np.random.default_rng(0), "row 4")
    with pytest.raises(UserError, match="the augmentation 'heavy' is not one of openclip, torchvision"):
        TrainCrop(32, "heavy")
    with pytest.raises(UserError, match="the crop 'fit' is not one of"):
        EvalCrop(32, crop="fit")
