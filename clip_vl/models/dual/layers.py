"""How deep in a tower each parameter sits, found from the tree of modules, for layer-wise learning rates."""

from collections import Counter

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
BLOCK_SHARE = 0.25  # of a module's weights, without embeddings, in repeated blocks: then it is a shell around them


def layer_of_parameters(tower):
    """({parameter name: layer}, L): 0 before the first of L blocks, 1..L in them, L + 1 after the last.

    A block is a module whose class stands in the tower more than once and that has two weight matrices or more: a
    transformer layer, a bottleneck. What stands between two blocks (a patch merging, a transition) goes with the later
    one; embeddings, class tokens and position tables with the input; other free-standing parameters named like a
    projection with the output. A tower without blocks (VGG) counts each of its matrices as one.
    """
    units = list(_units("", tower, is_root=True))
    blocks = _blocks([module for _, module in units])
    layers, passed, L = {}, 0, len(blocks)
    for name, module in units:
        is_block = module in blocks
        passed += is_block
        inside = passed if is_block or passed == 0 else passed + 1
        for key, _ in module.named_parameters(prefix=name):
            layers[key] = 0 if _is_table(module) else inside
    for key, _ in tower.named_parameters():
        if key not in layers:  # directly on a shell
            layers[key] = L + 1 if "proj" in key.rpartition(".")[2] or "logit" in key else 0
    return layers, L


def _units(name, module, is_root=False):
    """(name, module) of the parts that are not taken apart further, in the order of their registration."""
    if not (is_root or isinstance(module, CONTAINERS) or _is_shell(module)):
        yield name, module
        return
    children = [(key, child) for key, child in module.named_children() if any(True for _ in child.parameters())]
    for key, child in children:
        path = f"{name}.{key}" if name else key
        wraps_all = is_root and len(children) == 1  # a wrapper around the library's own model
        yield from _units(path, child, is_root=wraps_all and any(True for _ in child.children()))


def _blocks(modules):
    """Those that count as layers, as a set."""
    kinds = Counter(type(module) for module in modules if _is_block(module))
    repeated = {module for module in modules if kinds[type(module)] > 1 and _is_block(module)}
    return repeated or {module for module in modules if _matrices(module) and not _is_table(module)}


def _is_block(module):
    return not isinstance(module, CONTAINERS) and any(True for _ in module.children()) and _matrices(module) > 1


def _matrices(module):
    """Weights of two dimensions or more, not counting a class token's or a scale's leading ones."""
    return sum(parameter.squeeze().dim() > 1 for parameter in module.parameters())


def _is_shell(module):
    """Whether repeated blocks in its containers hold a good part of its weights."""
    inside = [child for part in module.modules() if isinstance(part, CONTAINERS) for child in part.children()]
    blocks = [child for child in inside if _is_block(child)]
    kinds = Counter(map(type, blocks))
    repeated = sum(_size(block) for block in blocks if kinds[type(block)] > 1)
    return repeated > BLOCK_SHARE * (_size(module) - sum(_size(m) for m in module.modules() if _is_table(m)))


def _is_table(module):
    return isinstance(module, nn.Embedding)


def _size(module):
    return sum(parameter.numel() for parameter in module.parameters())
