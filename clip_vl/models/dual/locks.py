"""Freezing: a whole tower, or the parameters whose names contain a word."""

import torch

from clip_vl.engine import dist
from clip_vl.engine.errors import UserError


class _Locked:
    """Mixed into a locked module's class: evaluation mode always, and no graph of its forward pass."""

    def train(self, mode=True):
        """Stay in evaluation, whatever the parent does."""
        return super().train(False)

    def forward(self, *args, **kwargs):
        with torch.no_grad():
            return super().forward(*args, **kwargs)


def lock(module):
    """Freeze a module in place: no gradients, dropout and BatchNorm in evaluation mode for good -> the module.

    Its parameters keep their names, so checkpoints are the same locked and unlocked.
    """
    if not isinstance(module, _Locked):
        own = type(module)
        module.__class__ = type(f"Locked{own.__name__}", (_Locked, own), {})
    module.requires_grad_(False)
    return module.eval()


def lock_partial(module, words):
    """Freeze the parameters whose names contain a word -> names of all that are frozen afterwards.

    words: "resblocks.0,!ln_" separated by commas, applied from left to right; "!" frees again
    """
    names = [name for name, _ in module.named_parameters()]
    for word in filter(None, (word.strip() for word in words.split(","))):
        keyword = word.removeprefix("!")
        matching = [name for name in names if keyword in name]
        if not keyword or not matching:
            some = ", ".join(names[:: max(1, len(names) // 6)])
            raise UserError(f"no parameter's name contains {keyword!r}; some of the {len(names)} names: {some}")
        for name in matching:
            module.get_parameter(name).requires_grad_(word.startswith("!"))
    return [name for name, parameter in module.named_parameters() if not parameter.requires_grad]


def freeze(model, spec, one_way=None):
    """Freeze what a `DualSpec` locks, and the tower and head of the side ("image", "text") that a loss teaches from."""
    for side, tower in (("image", model.image_tower), ("text", model.text_tower)):
        wanted = getattr(spec, side)
        if one_way == side and not wanted.locked:
            dist.print0(f"this loss teaches one way: the {side} tower gets no gradient, and is locked")
        if one_way == side or wanted.locked:
            if side == "text" and spec.text.adapter:
                raise UserError(
                    "--adapter trains in the text tower and freezes the rest of it: do not lock it as "
                    "well, nor take a loss that teaches one way with --teacher text"
                )
            lock(tower)
        if wanted.locked_parts:
            lock_partial(tower, wanted.locked_parts)
    if one_way:
        lock(getattr(model, f"{one_way}_head"))
