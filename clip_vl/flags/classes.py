"""The flags that the programs of image classification share: the data set and its split. No torch is imported here."""

from dataclasses import dataclass

from clip_vl.flags.parser import flag


@dataclass
class ClassSetFlags:
    """Data set"""

    dataset: str | None = flag(
        None, "Image folder, table.csv ({split} in its name stands for the split), a data root of clip_vl.shapes, "
              "elevater:NAME, or torchvision:NAME; the last two below --datasets_dir.",
    )  # fmt: skip
    test_split: str = flag("test", "Which images are judged; for a folder the subfolder, '.' for the folder itself.")
    classnames: str | None = flag(
        None, "Class names in the order of the classes: a text file with a line for each, or JSON, also "
              "CLIP_benchmark's en_classnames.json [the data set's own].",
    )  # fmt: skip
    benchmark_key: str | None = flag(
        None, "Name of the data set in JSON files of class names and templates [from the data set's name]."
    )
    metric: str | None = flag(
        None, "What the data set is judged by [as published, else accuracy].",
        choices=["accuracy", "mean_per_class", "mAP11", "auc"],
    )  # fmt: skip
    images_dir: str | None = flag(None, "Folder of the images that a table names [the table's own].")
    csv_separator: str | None = flag(None, "Separator of tables [found out].")
    csv_img_key: str = flag("filepath", "Column of the image's path.")
    csv_label_key: str = flag("label", "Column of the class: its name, or its number from 0.")
    csv_split_key: str = flag("split", "Column of the split, in a table that holds several.")
    max_left_out: float = flag(0.5, "Share of a table's rows that may be left out because they have no class.")
    elevater_metadata: str | None = flag(None, "ELEVATER's vision_datasets.json [DATASETS_DIR/vision_datasets.json].")


@dataclass
class TrainSplitFlags:
    """What is learnt from"""

    train_split: str = flag("train", "Which images are learnt from.")
    valid_split: str | None = flag(
        None,
        "Which images choose C [val where there is one, else a fifth of each class of --train_split].",
    )
