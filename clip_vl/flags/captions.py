"""The flags of captioned images: where they are, and how training and evaluation read them. No torch is imported."""

from dataclasses import dataclass, fields

from clip_vl.flags.parser import flag


@dataclass
class SourceFlags:
    """Sources of captioned images"""

    datasets_dir: str = flag(
        "data", "Folder of named datasets such as mscoco_captions, and of caches.", "--eval_data_dir"
    )
    images_dir: str | None = flag(None, "Folder of the images that a table names [the table's folder].")
    csv_separator: str | None = flag(None, "Column separator of tables [detected].")
    csv_img_key: str = flag("filepath", "Column with the path of the image.")
    csv_caption_key: str = flag("title", "Column with the caption.")
    csv_label_key: str | None = flag(None, "Column with an integer class, for UniCL and CrossEntropy.")
    max_left_out: float = flag(
        0.5, "Largest share of a file's captions that may be left out, such as blank ones; their number is reported."
    )
    dataset_size: int | None = flag(None, "Number of rows to use, from the first one [all].")

    def caption_options(self):
        """The `CaptionOptions` of these flags."""
        from clip_vl.datasets.captions.sources import CaptionOptions

        return CaptionOptions(**{field.name: getattr(self, field.name) for field in fields(CaptionOptions)})


@dataclass
class PairFlags(SourceFlags):
    """Training and validation data"""

    train_data: str | None = flag(
        None, "Training data, separated by commas: CSV or TSV, COCO JSON, image folders, shards, ..."
    )
    valid_data: str | None = flag(
        None, "Held-out pairs in the same formats, for recall after epochs.", "--retrieval_data"
    )
    augmentation: str | None = flag(
        None,
        "Random crops and colours; none fits the whole image as evaluation does [as the image tower's library trains].",
        choices=["protoclip-light-augmentation", "torchvision-late", "none"],
    )
    image_crop: str | None = flag(
        None,
        "Method that fits an image into the square for evaluation [the tower's own].",
        choices=["short_side", "squash", "pad"],
    )
    max_damaged: float = flag(
        0.001, "Largest share of missing or damaged training images that is tolerated; each one is named."
    )


def encoder_of(args, device):
    """The `Encoder` of flags that have batch_size, num_workers, bf16, fp16, datasets_dir and tqdm."""
    from pathlib import Path

    from clip_vl.encoding.encode import Encoder
    from clip_vl.engine.optim import autocast_dtype

    dtype = autocast_dtype(device, args.bf16, args.fp16)
    return Encoder(device, args.batch_size, args.num_workers, dtype, Path(args.datasets_dir) / "cache", args.tqdm)
