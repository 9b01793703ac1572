"""The flags that the programs of image classification share: the dataset and its splits. No torch is imported here."""

from dataclasses import dataclass

from clip_vl.flags.parser import flag


@dataclass
class ClassSetFlags:
    """Dataset"""

    dataset: str | None = flag(
        None, "Image folder, table.csv ({split} in its name stands for the split), a data root of clip_vl.shapes, "
              "elevater:NAME, or torchvision:NAME; the last two below --datasets_dir.",
    )  # fmt: skip
    test_split: str = flag("test", "Split that is evaluated; of a folder the name of the subfolder, or '.' for the folder itself.")
    classnames: str | None = flag(
        None, "Class names in the order of the classes: a text file with a line for each, or JSON, also "
              "CLIP_benchmark's en_classnames.json [the dataset's own].",
    )  # fmt: skip
    benchmark_key: str | None = flag(
        None, "Name of the dataset in JSON files of class names and prompt templates [from --dataset]."
    )
    metric: str | None = flag(
        None, "Metric of the dataset [the published one, else accuracy].",
        choices=["accuracy", "mean_per_class", "mAP11", "auc"],
    )  # fmt: skip
    images_dir: str | None = flag(None, "Folder of the images that a table names [the folder of the table].")
    csv_separator: str | None = flag(None, "Column separator of a table [detected].")
    csv_img_key: str = flag("filepath", "Column of a table that holds the path of the image.")
    csv_label_key: str = flag("label", "Column of a table that holds the class: its name, or its number from 0.")
    csv_split_key: str = flag("split", "Column of the split, in a table that holds several splits.")
    max_left_out: float = flag(0.5, "Largest share of the rows of a table that may be left out for want of a class.")
    elevater_metadata: str | None = flag(
        None, "Path of ELEVATER's vision_datasets.json [DATASETS_DIR/vision_datasets.json]."
    )

    def class_source(self):
        """The `ClassSource` of these flags and of --datasets_dir."""
        from clip_vl.datasets.classes.sets import ClassSource, TableColumns

        columns = TableColumns(self.csv_img_key, self.csv_label_key, self.csv_split_key, self.csv_separator)
        return ClassSource(
            self.dataset,
            self.datasets_dir,
            self.classnames,
            self.benchmark_key,
            self.metric,
            self.images_dir,
            columns,
            self.max_left_out,
            self.elevater_metadata,
        )


@dataclass
class TrainSplitFlags:
    """Training data"""

    train_split: str = flag("train", "Split that the classifier is fitted on.")
