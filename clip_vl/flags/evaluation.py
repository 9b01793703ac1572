"""The flags that every evaluation has: its folder, how models run, and where data and caches lie. No torch is imported."""

from dataclasses import dataclass

from clip_vl.flags.parser import flag, run_settings


@dataclass
class EvaluationFlags:
    """Evaluation"""

    output: str | None = flag(None, "Folder for rows, results and report.")
    seed: int = flag(9595, "Seed of every random draw; all processes use the same one.")
    batch_size: int = flag(64, "Images or texts per process and forward pass.", at_least=1)
    num_workers: int = flag(0, "Loader workers per process.", "--numWorkers", "--workers", at_least=0)
    precision: str = flag(
        "fp32", "Precision of the model's forward pass; scores are always computed in float32.",
        choices=["amp", "bf16", "fp16", "fp32"],
    )  # fmt: skip
    datasets_dir: str = flag("data", "Folder of named datasets and of caches.", "--eval_data_dir")
    image_crop: str | None = flag(
        None, "How an image is fitted into the model's square input [the tower's own way].",
        choices=["short_side", "squash", "pad"],
    )  # fmt: skip
    overwrite: bool = flag(False, "Discard what --output holds; by default an interrupted evaluation is resumed.")
    tqdm: bool = flag(False, "Show a progress bar on a terminal.")

    run = run_settings
    bf16 = property(lambda flags: {"amp": None, "bf16": True}.get(flags.precision, False))
    fp16 = property(lambda flags: flags.precision == "fp16")

    def encoder(self, device):
        """The `Encoder` of these flags."""
        from clip_vl.flags.captions import encoder_of

        return encoder_of(self, device)
