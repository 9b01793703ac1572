"""The flags of captioned images: where they are, and what a training program does with them. No torch is imported."""

from dataclasses import dataclass

from clip_vl.flags.parser import flag


@dataclass
class SourceFlags:
    """Sources of captioned images"""

    datasets_dir: str = flag(
        "data", "Folder of named data sets such as mscoco_captions, and of caches.", "--eval_data_dir"
    )
    images_dir: str | None = flag(None, "Folder of the images that a table names [the table's own].")
    csv_separator: str | None = flag(None, "Separator of tables [found out].")
    csv_img_key: str = flag("filepath", "Column of the image's path.")
    csv_caption_key: str = flag("title", "Column of the caption.")
    csv_label_key: str | None = flag(None, "Column of an integer class, for UniCL and CrossEntropy.")
    max_left_out: float = flag(
        0.5, "Share of a file's captions that may be left out, such as blank ones; they are counted and said."
    )
    dataset_size: int | None = flag(None, "Only the first n rows.")


@dataclass
class PairFlags(SourceFlags):
    """Data"""

    train_data: str | None = flag(
        None, "Training data, separated by commas: CSV or TSV, COCO JSON, image folders, shards, ..."
    )
    valid_data: str | None = flag(
        None, "Held-out pairs in the same forms, for recall after epochs.", "--retrieval_data"
    )
    augmentation: str | None = flag(
        None,
        "Crops and colours; none takes the whole picture as evaluation does [as the image tower's library trains].",
        choices=["protoclip-light-augmentation", "torchvision-late", "none"],
    )
    image_crop: str | None = flag(
        None,
        "How evaluation fits a picture into the square [the tower's own].",
        choices=["short_side", "squash", "pad"],
    )
    max_damaged: float = flag(
        0.001, "Share of missing or damaged training images that is tolerated; each one is named."
    )
