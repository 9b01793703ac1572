"""Small images for the report, as data URIs."""

import base64
import io

from clip_vl.engine.readers.colours import to_rgb

THUMBNAIL = 320  # pixels of the longer side


def thumbnail(data):
    """Bytes of an image file -> a small JPEG as a data URI."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image = to_rgb(image)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return jpeg_uri(image)


def strip(images, side):
    """Bytes of image files -> one JPEG with all of them side by side, each in a square of `side` pixels."""
    from PIL import Image

    sheet = Image.new("RGB", (len(images) * side, side), "white")
    for index, data in enumerate(images):
        with Image.open(io.BytesIO(data)) as image:
            image = to_rgb(image)
        image.thumbnail((side - 4, side - 4))
        sheet.paste(image, (index * side + (side - image.width) // 2, (side - image.height) // 2))
    return jpeg_uri(sheet)


def jpeg_uri(image):
    """A Pillow image -> a JPEG as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
