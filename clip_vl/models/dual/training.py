"""Training of a dual encoder: BatchNorm over all processes, compiled towers, averaged weights, and its weight files."""

import torch
from torch import nn

from clip_vl.engine import dist
from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.errors import UserError
from clip_vl.models.dual.encoder import CachedTower
from clip_vl.models.loading.settings import as_record


def prepare_training(model, device, *, sync_bn=False, compiled=False):
    """The model on its device, with BatchNorm statistics of all processes and compiled towers where that is wanted."""
    if sync_bn and device.type != "cuda":
        raise UserError("--use_bn_sync is for GPUs; leave it out on CPUs")
    if sync_bn and dist.world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if compiled:
        compile_towers(model)
    return model.to(device, memory_format=torch.channels_last)


def compile_towers(model):
    """torch.compile both towers in place; the names of the weights do not change."""
    for tower in (model.image_tower, model.text_tower):
        if not isinstance(tower, CachedTower):
            tower.compile()


def average_weights(model, decay):
    """A copy of the model whose weights are an exponential moving average: `update_parameters(model)` per step."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    average.n_averaged.fill_(1)  # the first weights count; without this the first update would replace them
    return average


def save_weights(path, epoch, model, settings, state=None):
    """Rank 0 writes a dual encoder after `epoch` epochs, as epoch_N.pt.

    settings: `dual_settings` of the model;  state: instead of the model's own state dict
    """
    if dist.rank() == 0:
        state = model.state_dict() if state is None else state
        weights = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        save_plain(path, {"epoch": epoch, "name": path.parent.name, "state_dict": weights}, as_record(settings))
