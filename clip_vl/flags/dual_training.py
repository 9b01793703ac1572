"""The flags that the training programs of the dual encoder share: what trains, how, and where the run is kept.

No torch is imported here.
"""

import dataclasses
import re
import sys
from dataclasses import dataclass

from clip_vl.flags.dual import (
    ADAPTERS,
    PRECISIONS,
    ImageTowerFlags,
    SharedTowerFlags,
    TextTowerFlags,
    changed,
)
from clip_vl.flags.parser import flag, is_first_process, values_of
from clip_vl.flags.published import ITRA
from clip_vl.flags.run import RunFlags


@dataclass
class ImageTrainingFlags(ImageTowerFlags):
    """Training of the image tower"""

    lock_image_model: bool = flag(False, "Freeze the image tower; its head trains.")
    unlock_image_model: bool = flag(False, "Train the image tower, as without --lock_image_model.")
    lock_image_partial: str = flag(
        "", "Freeze image-tower parameters whose name contains a keyword; 'kw,!kw' trains those of the second again."
    )
    grad_checkpointing: bool = flag(
        False, "Recompute the image tower's activations in the backward pass, where the tower can."
    )


@dataclass
class TextTrainingFlags(TextTowerFlags):
    """Training of the text tower"""

    prompt: bool = flag(False, "CoOp: trainable prompt vectors after the start token.")
    n_prompt: int = flag(4, "Number of prompt vectors.")
    adapter: str | None = flag(
        None, "Adapter in a huggingface text tower, whose own weights are frozen; dummy is compacter.", choices=ADAPTERS
    )
    lock_text_model: bool = flag(False, "Freeze the text tower; its head trains.")
    unlock_text_model: bool = flag(False, "Train the text tower, as without --lock_text_model.")
    lock_text_partial: str = flag(
        "", "Freeze text-tower parameters whose name contains a keyword; 'kw,!kw' trains those of the second again."
    )


@dataclass
class DualTowerFlags(ImageTrainingFlags, TextTrainingFlags, SharedTowerFlags):
    """Towers"""


@dataclass
class DualOptimFlags:
    """Optimisation"""

    temperature: float = flag(
        0.07, "First temperature of the similarities; pretrained text weights bring their own.", "--logit_scale"
    )
    batch_size: int = flag(64, "Pairs per process and micro-batch.", at_least=1)
    epochs: int = flag(32, "Epochs: passes over the training data, or episodes.", at_least=1)
    stop_after_epoch: int | None = flag(None, "Last epoch of this run, on the schedule of --epochs.", at_least=1)
    lr: float = flag(5e-4, "Peak learning rate.", at_least=0)
    opt: str = flag("adamw", "Optimizer: adamw, sgd, or another of timm's, also with the prefix lookahead_.")
    beta1: float | None = flag(None, "First beta of Adam [0.9].")
    beta2: float | None = flag(None, "Second beta of Adam [0.98 for image models with vit in their name, else 0.999].")
    eps: float | None = flag(None, "Epsilon of Adam [1e-6 for image models with vit in their name, else 1e-8].")
    weight_decay: float = flag(
        0.2, "Decoupled weight decay of matrices; norms, biases and temperatures have none.", "--wd", at_least=0
    )
    layer_decay_image: float = flag(
        1.0, "Factor of the learning rate from each layer of the image tower to the layer below."
    )
    layer_decay_text: float = flag(
        1.0, "Factor of the learning rate from each layer of the text tower to the layer below."
    )
    warmup: int = flag(
        10000, "Steps of linear warm-up, at most those of the run; a cosine to 0 follows.", at_least=0
    )
    max_grad_norm: float = flag(1e16, "Joint L2 norm to which gradients are clipped.", "--clip_grad")
    gradient_accumulation_steps: int = flag(
        1, "Micro-batches per step; a pair's negatives are those of its micro-batch.", at_least=1
    )
    precision: str = flag(
        "amp", "Precision of training: amp is bfloat16 where the device is fast at it; fp16 has a gradient scaler.",
        choices=PRECISIONS,
    )  # fmt: skip
    compile: bool = flag(False, "Compile the towers with torch.compile.")
    use_bn_sync: bool = flag(False, "Compute BatchNorm statistics over all processes (GPUs only).")
    apex: bool = flag(
        False, "Use NVIDIA apex's fused Adam and layer norm, on GPUs where apex is installed; the run says which."
    )
    max_skipped: int = flag(50, "Steps skipped for a non-finite loss or gradient after which the run stops.")

    bf16 = property(lambda flags: {"amp": None, "bf16": True}.get(flags.precision, False))
    fp16 = property(lambda flags: flags.precision == "fp16")

    def optimizer(self):
        """The `OptimSpec` of these flags."""
        from clip_vl.models.dual.optim import OptimSpec

        text_lr = getattr(self, "lr_text", -1.0)
        return OptimSpec(
            self.opt, self.lr, None if text_lr < 0 else text_lr, self.weight_decay, self.beta1, self.beta2, self.eps,
            is_vit="vit" in self.image_model.lower(), image_decay=self.layer_decay_image,
            text_decay=self.layer_decay_text, apex=self.apex,
        )  # fmt: skip

    def steps(self):
        """The `StepSettings` of these flags."""
        from clip_vl.engine.optim import StepSettings

        last = min(self.stop_after_epoch or self.epochs, self.epochs)
        return values_of(self, StepSettings, last_epoch=last, accumulate=self.gradient_accumulation_steps)


@dataclass
class DualRunFlags(RunFlags):
    """Run folder and processes"""

    IGNORED = ITRA
    num_workers: int = flag(0, "Loader workers of each process.", "--numWorkers", "--workers", at_least=0)
    logs: str | None = flag(None, "Folder of run folders: with --name, the run folder is LOGS/NAME.")
    name: str | None = flag(None, "Name of the run folder.")
    save_frequency: int = flag(1, "Epochs between two epoch_N.pt; the last one is always written.", at_least=1)

    def in_folder(self, program):
        """These flags with the run folder that --output, or else --logs and --name, stand for."""
        return changed(self, output=self.output or f"{self.logs or f'snap/{program}'}/{self.name or 'test'}")


@dataclass
class ValidationFlags:
    """Validation"""

    retrieval_frequency: int = flag(
        1, "Epochs between two evaluations of --valid_data; 0 for the last epoch only.", "--retrieval_eval_frequency"
    )
    eval_first: bool = flag(False, "Evaluate --valid_data before training as well.")

    def is_due(self, epoch, last):
        """Whether --valid_data is evaluated after this epoch, counted from 0, of those before `last`."""
        return epoch + 1 == last or (self.retrieval_frequency > 0 and (epoch + 1) % self.retrieval_frequency == 0)


def warn_of_unused(args, readers):
    """Print which flags were given that nothing reads. readers: {flag: (whether something reads it, what would)}"""
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    for name, (is_read, reader) in readers.items():
        if not is_read and getattr(args, name) != defaults[name] and is_first_process():
            print(f"warning: --{name} has no effect; it is for {reader}", file=sys.stderr)


def tower_readers(args):
    """For `warn_of_unused`: the flags of towers and heads that only some builders read."""
    texts, images = args.text_model_builder, args.image_model_builder
    clip = texts in ("clip", "openclip") or images in ("clip", "openclip")
    return {
        "text_pooler": (texts == "huggingface", "--text_model_builder huggingface"),
        "n_prompt": (args.prompt, "--prompt"),
        "logs": (args.output is None, "runs without --output"),
        "name": (args.output is None, "runs without --output"),
        "force_quick_gelu": (clip, "CLIP's towers"),
    }


def warn_of_name(args):
    """Print where a name like L[RN50]-U[BERT], for a locked and an unlocked tower as in published runs, is wrong."""
    name = args.name or args.output
    found = re.search(r"([LU])\[[^]]*]-([LU])\[", name)
    for side, letter in zip(("image", "text"), found.groups() if found else ()):
        if (letter == "L") != getattr(args, f"lock_{side}_model") and is_first_process():
            named, is_ = ("locked", "trains") if letter == "L" else ("unlocked", "is locked")
            print(f"warning: the name {name} calls the {side} tower {named}; by the flags it {is_}", file=sys.stderr)
