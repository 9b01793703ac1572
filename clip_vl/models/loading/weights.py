"""Initialisation, and loading of weights from files that others wrote: read as data, matched name by name, reported."""

import re
from collections import OrderedDict

from clip_vl.engine.errors import UserError

# Parts of the published models that never reach an output, and the copy of the tied decoder: not built here.
UNUSED_KEYS = re.compile(
    r"(^|\.)(visual_model\.(visual\.(attnpool|proj)|positional_embedding|text_projection|logit_scale|token_embedding|ln_final"
    r"|transformer)|visn_fc\.box_(fc|layer_norm)|cls\.predictions\.decoder|embeddings\.position_ids)(\.|$)"
)


def load_weights(model, state, *, new=(), ignore=(), allow_partial=None, source="the checkpoint", hint=""):
    """Copy `state` (name -> tensor) into the model, converting to its dtypes; every name and shape must match.

    new:    prefixes of model names that the file need not have
    ignore: prefixes of file names that the model does not want, besides `UNUSED_KEYS`
    allow_partial: take what fits and return the table of what did not ("" when all did), instead of raising it; None
            where a program has no such flag
    hint:   for the error: the flags that help
    """
    own = model.state_dict()
    has_tower = any("visual_model." in key for key in own)  # a model of stored features has none
    unwanted = tuple(ignore)
    state = {k: v for k, v in state.items() if k in own or not (UNUSED_KEYS.search(k) or k.startswith(unwanted))}
    state = {k: v for k, v in state.items() if has_tower or "visual_model." not in k}
    fitting = OrderedDict((key, t) for key, t in state.items() if key in own and t.shape == own[key].shape)
    fitting._metadata = own._metadata  # the names are this version's (MNASNet refuses to load without a version)
    required = [key for key in own if not key.startswith(tuple(new))]
    table = mismatch_table(state, own, required)
    if table and not allow_partial:
        hint = hint or ("" if allow_partial is None else "--allow_partial loads what does")
        raise UserError(f"{source} does not fit the model{hint and f' ({hint})'}:", *table.split("\n"))
    model.load_state_dict(fitting, strict=False)
    return table


def mismatch_table(state, own, required, rows=20):
    """Names whose shapes differ, `required` ones missing from the file, and unexpected ones; "" when all match."""
    differences = []
    for key in sorted({*required, *state}):
        in_file = _shape(state.get(key), absent="missing")
        in_model = _shape(own.get(key), absent="unexpected")
        if in_file != in_model:
            differences.append((ascii(key[:120])[1:-1], in_file, in_model))  # foreign names, kept printable
    if not differences:
        return ""
    lines = [("key", "in the file", "in the model"), *differences[:rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    text = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
    return text + (f"\n... and {len(differences) - rows} more" if len(differences) > rows else "")


def _shape(tensor, absent):
    return absent if tensor is None else str(tuple(tensor.shape))


