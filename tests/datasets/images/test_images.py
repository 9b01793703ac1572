"""Image files -> pictures on a canvas: geometry by hand, resizing against Pillow, and what foreign bytes may not do."""

import io
import os
import pickle
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from clip_vl.datasets.images.canvas import (
    canvas_size,
    dynamic_canvas,
    is_portrait,
    place_on_canvas,
    resized_size,
)
from clip_vl.datasets.images.collections import image_path, relative_path, size_key
from clip_vl.datasets.images.decoding import DamagedImage, decode_image, read_image_size, resize
from clip_vl.datasets.images.files import FORMATS
from clip_vl.datasets.images.image_folders import ImageFolders
from clip_vl.engine.errors import DataError

PHOTOGRAPHS = sorted(Path(os.environ.get("CLIP_VL_REAL_DATA", "../shared/data"), "images").glob("*.JPEG"))
real = pytest.mark.skipif(not PHOTOGRAPHS, reason="CLIP_VL_REAL_DATA has no images/")


def noise(height, width, channels=3, seed=0):
    """Noise over a ramp: every pixel differs from its neighbours, and the halves of the picture from each other."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    ramp = np.linspace(0, 150, width)[:, None] if channels > 1 else np.linspace(0, 150, width)
    return (np.random.default_rng(seed).integers(0, 100, shape) + ramp).astype(np.uint8)


def encode(picture, form="JPEG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def as_pillow_rgb(data):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


def black(height, width):
    return torch.zeros((3, height, width), dtype=torch.uint8)


# ---- geometry ----


@pytest.mark.parametrize(
    "original, resized, canvas, box",
    [
        ((480, 640), (384, 512), (384, 640), (0, 64, 384, 512)),
        ((640, 480), (512, 384), (640, 384), (64, 0, 512, 384)),
        ((360, 640), (360, 640), (384, 640), (12, 0, 360, 640)),
        ((500, 500), (384, 384), (640, 384), (128, 0, 384, 384)),  # squares are portraits
        ((639, 640), (384, 384), (384, 640), (0, 128, 384, 384)),  # an exact square now, a landscape still
        ((640, 639), (384, 384), (640, 384), (128, 0, 384, 384)),
        ((375, 500), (384, 512), (384, 640), (0, 64, 384, 512)),  # small images grow
        ((333, 500), (384, 576), (384, 640), (0, 32, 384, 576)),
        ((426, 640), (384, 576), (384, 640), (0, 32, 384, 576)),
        ((333, 1000), (213, 639), (384, 640), (86, 1, 213, 639)),  # odd pixels: left and top
        ((480, 641), (384, 512), (384, 640), (0, 64, 384, 512)),
        ((427, 640), (384, 575), (384, 640), (0, 33, 384, 575)),
        ((384, 640), (384, 640), (384, 640), (0, 0, 384, 640)),
        ((1, 4000), (1, 4000), (384, 640), (192, 0, 1, 640)),
    ],
)
def test_published_sizes_canvases_and_places(original, resized, canvas, box):
    assert resized_size(*original) == resized
    assert canvas_size(*original) == canvas
    images, boxes = place_on_canvas([black(*resized)], canvas_size(*original))
    assert tuple(images.shape) == (1, 3, *canvas)
    assert tuple(boxes[0].tolist()) == box


def test_resized_size_follows_the_rule_for_all_shapes():
    """The rule in another form. Rounding the short side by half a pixel moves the long one by half the aspect."""
    for height in range(50, 1200, 7):
        for width in range(50, 1200, 11):
            short, long = sorted((height, width))
            s = 384 if 384 * long / short <= 640 else round(640 * short / long)
            expected = (short, long) if short == s else (s, int(s * long / short))
            found = resized_size(height, width)
            assert tuple(sorted(found)) == expected, (height, width)
            assert found == resized_size(width, height)[::-1]
            assert (found[0] - found[1]) * (height - width) >= 0
            assert max(found) <= 640 + long / short / 2


def test_overshoot_of_one_pixel_is_cropped_at_the_far_side():
    """round(640 * 300 / 682) = round(281.5...) = 282, so the long side is int(282 * 682 / 300) = 641."""
    assert resized_size(300, 682) == (282, 641)
    picture = torch.arange(641).remainder(251).to(torch.uint8).expand(3, 282, 641)
    images, boxes = place_on_canvas([picture], canvas_size(300, 682))
    assert boxes.tolist() == [[51, 0, 282, 640]]
    assert torch.equal(images[0][:, 51:333], picture[:, :, :640])


def test_larger_pictures_are_cropped_about_their_centre():
    picture = torch.arange(10, dtype=torch.uint8).expand(3, 2, 10)
    images, boxes = place_on_canvas([picture], (4, 4))
    assert images[0, 0].tolist() == [[0] * 4, [3, 4, 5, 6], [3, 4, 5, 6], [0] * 4]
    assert boxes.tolist() == [[1, 0, 2, 4]]


def test_a_canvas_is_black_around_its_picture_and_holds_every_pixel_of_it():
    pictures = [torch.full((3, 2, 3), 7, dtype=torch.uint8), torch.full((3, 5, 1), 9, dtype=torch.uint8)]
    images, boxes = place_on_canvas(pictures, (5, 6))
    assert boxes.tolist() == [[2, 2, 2, 3], [0, 3, 5, 1]]
    assert images.dtype == torch.uint8 and boxes.dtype == torch.int64
    for image, picture, (top, left, height, width) in zip(images, pictures, boxes.tolist()):
        assert torch.equal(image[:, top : top + height, left : left + width], picture)
        assert image.sum() == picture.sum()
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_the_canvas_agrees_with_the_orientation_for_all_shapes():
    for height, width in [(2, 1), (1, 1), (1, 2), (640, 639), (639, 640)]:
        assert is_portrait(height, width) == (canvas_size(height, width) == (640, 384))


@pytest.mark.parametrize(
    "sizes, canvas",
    [
        ([(384, 512)], (384, 512)),
        ([(384, 500), (360, 640)], (384, 640)),
        ([(213, 639), (200, 600)], (224, 640)),  # up to whole cells of 32 pixels
        ([(384, 641)], (384, 640)),  # the overshoot does not buy a column of cells
        ([(384, 512), (512, 384)], (512, 512)),
    ],
)
def test_the_dynamic_canvas_is_the_largest_picture_in_whole_cells(sizes, canvas):
    assert dynamic_canvas(sizes) == canvas


# ---- resizing ----


def difference_from_pillow(picture):
    """(largest, mean) absolute difference of `resize` from Pillow's BILINEAR, in levels of 255."""
    size = resized_size(picture.height, picture.width)
    found = resize(torch.from_numpy(np.array(picture)).permute(2, 0, 1), size)
    assert found.dtype == torch.uint8 and tuple(found.shape) == (3, *size)
    expected = np.asarray(picture.resize(size[::-1], Image.BILINEAR)).astype(int)
    difference = np.abs(found.permute(1, 2, 0).numpy() - expected)
    return difference.max(), difference.mean()


# Elsewhere torch computes in float32 and rounds once, Pillow after each axis.
ROUNDING = 0.1 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 0.25


@real
def test_photographs_resize_as_in_pillow():
    for path in PHOTOGRAPHS[::8]:
        largest, mean = difference_from_pillow(Image.open(path).convert("RGB"))
        assert largest <= 1 and mean < ROUNDING


@pytest.mark.parametrize("shape", [(480, 640), (97, 61), (900, 300), (31, 400)])
def test_made_pictures_resize_as_in_pillow(shape):
    picture = Image.new("RGB", shape[::-1], (30, 90, 200))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((5, 5, shape[1] // 2, shape[0] // 2), fill=(250, 240, 10))
    draw.line((0, 0, *shape[::-1]), fill=(255, 0, 0), width=3)
    largest, mean = difference_from_pillow(picture)
    assert largest <= 1 and mean < ROUNDING


@pytest.mark.parametrize("shape", [(480, 640), (97, 61), (900, 300), (31, 400)])
def test_even_noise_resizes_as_in_pillow(shape):
    """The hardest input: torch keeps 16 bits of a weight, Pillow 22, and here every rounding shows."""
    largest, mean = difference_from_pillow(Image.fromarray(noise(*shape)))
    assert largest <= 2 and mean < 0.3


def test_a_picture_of_the_right_size_is_left_alone():
    image = torch.from_numpy(noise(5, 7)).permute(2, 0, 1)
    assert resize(image, (5, 7)) is image


# ---- decoding ----


@real
def test_photographs_decode_as_in_pillow_and_their_headers_tell_the_size():
    for path in PHOTOGRAPHS:
        image = decode_image(path.read_bytes(), path)
        assert read_image_size(path) == tuple(image.shape[1:])
        assert torch.equal(image, as_pillow_rgb(path.read_bytes()))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(Image.fromarray(noise(20, 30))), id="jpeg"),
        pytest.param(encode(Image.fromarray(noise(20, 30)), progressive=True), id="progressive"),
        pytest.param(encode(Image.fromarray(noise(20, 30, 1))), id="grey jpeg"),
        pytest.param(encode(Image.fromarray(noise(20, 30, 4), mode="CMYK")), id="cmyk jpeg"),
        pytest.param(encode(Image.fromarray(noise(20, 30)), "PNG"), id="png"),
        pytest.param(encode(Image.fromarray(noise(20, 30)).quantize(17), "PNG"), id="palette"),
        pytest.param(encode(Image.fromarray(noise(20, 30, 4)), "PNG"), id="alpha"),
        pytest.param(encode(Image.fromarray(noise(20, 30, 2), mode="LA"), "PNG"), id="grey alpha"),
        pytest.param(encode(Image.fromarray(noise(20, 30, 1) > 90), "PNG"), id="one bit"),
        pytest.param(encode(Image.fromarray(noise(20, 30)), "WEBP"), id="webp"),
        pytest.param(encode(Image.fromarray(noise(20, 30)), "GIF"), id="gif"),
        pytest.param(encode(Image.fromarray(noise(20, 30)), "BMP"), id="bmp"),
        pytest.param(encode(Image.fromarray(noise(20, 30)), "TIFF"), id="tiff"),
        pytest.param(encode(Image.fromarray(noise(20, 30)), "TIFF", compression="tiff_lzw"), id="tiff lzw"),
        pytest.param(encode(Image.fromarray(noise(20, 30, 4), mode="CMYK"), "TIFF"), id="cmyk tiff"),
        pytest.param(encode(Image.fromarray(noise(20, 30, 4)), "TIFF"), id="tiff alpha"),
        pytest.param(encode(Image.fromarray(noise(20, 30)), "JPEG2000"), id="jpeg 2000"),
        pytest.param(encode(Image.fromarray(noise(20, 30)), "AVIF"), id="avif"),
        pytest.param(encode(Image.fromarray(noise(20, 30)), "PPM"), id="ppm"),
    ],
)
def test_every_kind_of_image_becomes_its_rgb(data, tmp_path):
    image = decode_image(data)
    assert image.dtype == torch.uint8 and tuple(image.shape) == (3, 20, 30)
    assert torch.equal(image, as_pillow_rgb(data))
    (tmp_path / "image").write_bytes(data)
    assert read_image_size(tmp_path / "image") == (20, 30)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG2000"])
def test_sixteen_bit_grey_keeps_its_upper_eight_bits(form):
    grey = np.arange(0, 60000, 100, dtype=np.uint16).reshape(20, 30)
    image = decode_image(encode(Image.fromarray(grey), form))
    assert torch.equal(image, torch.from_numpy((grey >> 8).astype(np.uint8)).expand(3, 20, 30))


def test_twelve_bit_grey_keeps_its_upper_eight_bits():
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 12) + b"\xab\xc1\x23\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert decode_image(data)[0].tolist() == [[0xAB, 0x12]]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused(kind):
    with pytest.raises(DamagedImage, match="save it with 8 or 16 bits a channel"):
        decode_image(encode(Image.fromarray(noise(20, 30, 1).astype(kind)), "TIFF"))


PALETTE = Image.fromarray(noise(20, 30)).quantize(9)
HIDDEN = np.dstack([noise(20, 30), np.repeat(np.uint8([[0], [255]]), [15, 15], 0).reshape(1, 30).repeat(20, 0)])


@pytest.mark.parametrize(
    "data, colours",
    [
        pytest.param(encode(Image.fromarray(HIDDEN), form, **options), HIDDEN[..., :3], id=form)
        for form, options in {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}.items()
    ]
    + [pytest.param(encode(Image.fromarray(HIDDEN[..., 2:]), "PNG"), HIDDEN[..., 2:3].repeat(3, 2), id="LA")]
    + [
        pytest.param(encode(PALETTE, form, transparency=value), np.array(PALETTE.convert("RGB")), id=f"palette {form}")
        for form, value in (("PNG", bytes([0, 128] + [255] * 7)), ("GIF", 0))
    ],
)
@pytest.mark.filterwarnings("error")
def test_alpha_is_dropped_and_the_stored_colour_kept(data, colours):
    assert torch.equal(decode_image(data), torch.from_numpy(colours).permute(2, 0, 1))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_the_exif_orientation_is_ignored(form):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    upright, turned = (encode(Image.fromarray(noise(20, 30)), form, exif=tag) for tag in (Image.Exif(), exif))
    assert torch.equal(decode_image(turned), decode_image(upright))


def test_the_orientation_of_a_tiff_is_applied_to_its_pixels_and_its_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.tif").write_bytes(encode(Image.fromarray(noise(20, 30)), "TIFF", exif=exif))
    expected = torch.from_numpy(np.rot90(noise(20, 30), -1).copy()).permute(2, 0, 1)
    assert torch.equal(decode_image((tmp_path / "a.tif").read_bytes()), expected)
    assert read_image_size(tmp_path / "a.tif") == (30, 20)


# ---- foreign bytes ----


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_damaged(progressive):
    data = encode(Image.fromarray(noise(40, 60)), progressive=progressive)
    for cut in range(0, len(data), 37):
        with pytest.raises(DamagedImage, match=r"^photo\.jpg: "):
            decode_image(data[:cut], "photo.jpg")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>404 Not Found</html>", id="text"),
        pytest.param(encode(Image.fromarray(noise(20, 30)), "EPS"), id="postscript"),  # Pillow would start Ghostscript
        pytest.param(encode(Image.fromarray(noise(20, 30)), "PCX"), id="pcx"),
    ],
)
def test_what_is_no_plain_image_is_refused_and_named(data, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    for read in (lambda: read_image_size(path), lambda: decode_image(data, path)):
        with pytest.raises(DamagedImage, match="not an image of a known format") as caught:
            read()
        assert caught.value.path == str(path) and str(path) in str(caught.value)


def test_a_missing_file_is_damaged_and_named(tmp_path):
    with pytest.raises(DamagedImage, match=r"1\.jpg: cannot be read: No such file"):
        read_image_size(tmp_path / "1.jpg")
    with pytest.raises(DamagedImage, match=r"VG_100K/1\.jpg: cannot be read: No such file"):
        ImageFolders(tmp_path).load("1")


def png_header(width, height):
    """A PNG that claims its size and has a few bytes of pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [12_000, 16_384, 60_000])
@pytest.mark.filterwarnings("ignore:Image size")
def test_a_decompression_bomb_is_refused_from_its_header(side, tmp_path):
    data = png_header(side, side)
    (tmp_path / "bomb.png").write_bytes(data)
    start = time.perf_counter()
    for read in (lambda: decode_image(data), lambda: read_image_size(tmp_path / "bomb.png")):
        with pytest.raises(DamagedImage, match="too large"):
            read()
    assert time.perf_counter() - start < 0.2


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_very_many_scans_is_refused_before_decoding(progressive):
    """A scan of a few bytes costs as much time as a whole one, in sequential files as in progressive ones."""
    data = encode(Image.new("L", (4000, 4000), 128), progressive=progressive)
    assert decode_image(data).shape == (3, 4000, 4000)
    scan, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    start = time.monotonic()
    with pytest.raises(DamagedImage, match=r"its \d+ scans of 16,000,000 pixels would take too long"):
        decode_image(data[:scan] + data[scan : scan + 40] * 200 + data[scan:end] + data[end:])
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about tags of a TIFF
def test_mutated_bytes_give_a_picture_or_a_named_error(form):
    data = encode(Image.fromarray(noise(24, 32)), form)
    rng = np.random.default_rng(1)
    outcomes = {"picture": 0, "damaged": 0}
    for _ in range(200):
        mutated = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 20)):
            mutated[place] ^= 1 << rng.integers(8)
        try:
            image = decode_image(bytes(mutated), "photo")
            assert image.dtype == torch.uint8 and image.shape[0] == 3
            outcomes["picture"] += 1
        except DamagedImage:
            outcomes["damaged"] += 1
    assert sum(outcomes.values()) == 200


def test_the_error_survives_the_way_back_from_a_worker():
    error = pickle.loads(pickle.dumps(DamagedImage("a/b.jpg", "is cut")))
    assert isinstance(error, DataError) and (error.path, error.reason, str(error)) == (
        "a/b.jpg",
        "is cut",
        "a/b.jpg: is cut",
    )


# ---- where images lie ----


@pytest.mark.parametrize(
    "img_id, path",
    [
        ("COCO_train2014_000000000042", "mscoco/train2014/COCO_train2014_000000000042.jpg"),
        ("COCO_val2014_000000000042", "mscoco/val2014/COCO_val2014_000000000042.jpg"),
        ("COCO_test2015_000000000042", "mscoco/test2015/COCO_test2015_000000000042.jpg"),
        ("2345", "vg_raw_images/VG_100K/2345.jpg"),
        ("my photo, no. 2", "vg_raw_images/VG_100K/my photo, no. 2.jpg"),
    ],
)
def test_images_lie_where_the_published_layout_says(img_id, path):
    assert relative_path(img_id) == path
    assert image_path("root", img_id) == Path("root", path)
    assert size_key(path) == f"data/{path}"


@pytest.mark.parametrize(
    "img_id",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "train2014/../../../x",
        "a\\..\\b",
        "a\0b",
        "a\nb",
        "",
        "\ud800",
        "x" * 300,
        "é" * 150,
    ],
)
def test_an_id_that_is_no_file_name_is_refused(img_id, tmp_path):
    with pytest.raises(DataError, match="plain file name"):
        image_path(tmp_path, img_id)
    with pytest.raises(DataError, match="plain file name"):
        ImageFolders(tmp_path).read(img_id)


@pytest.mark.parametrize("img_id", [".", "..", "...", "-rf", "~", "$HOME"])
def test_an_odd_id_stays_in_its_folder(img_id, tmp_path):
    assert image_path(tmp_path, img_id).resolve().parent == (tmp_path / "vg_raw_images" / "VG_100K").resolve()


# ---- the source ----


@pytest.fixture
def data_root(tmp_path):
    folder = tmp_path / "mscoco" / "val2014"
    folder.mkdir(parents=True)
    Image.fromarray(noise(480, 640)).save(folder / "COCO_val2014_1.jpg", quality=95)
    return tmp_path


def test_the_source_loads_resized_pictures(data_root):
    source = pickle.loads(pickle.dumps(ImageFolders(data_root)))  # as a spawned worker has it
    image = source.load("COCO_val2014_1", recorded_size=(480, 640))
    decoded = decode_image(source.read("COCO_val2014_1"))
    assert torch.equal(image, resize(decoded, (384, 512)))
    assert tuple(source.load("COCO_val2014_1", 48, 80).shape) == (3, 48, 64)


def test_an_image_of_another_size_than_recorded_is_damaged(data_root):
    with pytest.raises(DamagedImage, match=r"COCO_val2014_1\.jpg: is 640x480 but recorded as 480x640"):
        ImageFolders(data_root).load("COCO_val2014_1", recorded_size=(640, 480))
