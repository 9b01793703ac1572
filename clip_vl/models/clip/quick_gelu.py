"""OpenAI's approximation of GELU."""

import torch


def quick_gelu(x):
    """OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)
