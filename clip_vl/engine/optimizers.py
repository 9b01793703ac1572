"""The optimizers of the published runs, by the name that --optim gives them."""

import math

import torch

DECAYED = ("hf_adamw", "bert", "adamw")  # those that follow --weight_decay and --adam_epsilon


class BertAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay that adds epsilon before bias correction, or has no bias correction at all.

    correct_bias: False is the BertAdam of pytorch-pretrained-bert, which LXMERT was trained with:
                  p -= lr * (m / (sqrt(v) + eps) + weight_decay * p)
                  True is the AdamW of transformers 2 to 4, with c = sqrt(1 - beta2^t) / (1 - beta1^t):
                  p -= lr * c * m / (sqrt(v) + eps);  p -= lr * weight_decay * p
    torch's AdamW divides by sqrt(v / (1 - beta2^t)) + eps: its epsilon weighs less in early updates.
    """

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, correct_bias=False):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_step = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_step.setdefault(self._count(parameter), []).append(parameter)
            for step, parameters in by_step.items():
                self._update(parameters, step, group)

    def _count(self, parameter):
        """The number of this update of a parameter, from 1."""
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] = int(state["step"]) + 1
        return state["step"]

    def _update(self, parameters, step, group):
        """One call of torch's fused kernel; after a thousand million updates its own bias correction is 1."""
        lr, decay = effective_rates(group, step)
        many = torch.full((), 1e9, device=parameters[0].device)
        torch._fused_adamw_(
            parameters,
            [p.grad for p in parameters],
            [self.state[p]["exp_avg"] for p in parameters],
            [self.state[p]["exp_avg_sq"] for p in parameters],
            [],
            [many] * len(parameters),
            lr=lr,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=decay,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def effective_rates(group, step):
    """(lr, weight_decay) with which Adam without bias correction and with decay first does a group's update `step`."""
    lr, decay = group["lr"], group["weight_decay"]
    if not group["correct_bias"]:
        return lr, decay
    beta1, beta2 = group["betas"]
    correction = math.sqrt(1 - beta2**step) / (1 - beta1**step)
    kept = 1 - lr * decay  # the decay comes after the update, and shrinks the update too
    return lr * correction * kept, decay / (correction * kept)


def build_optimizer(name, groups, lr, weight_decay=0.0, eps=1e-6):
    """The optimizer that --optim names. adam, adamax, rms and sgd have torch's defaults but for lr, as in LXMERT.

    groups: parameters or groups of them; a group's own weight_decay counts before `weight_decay`
    """
    adam = {"betas": (0.9, 0.999), "eps": eps, "weight_decay": weight_decay}
    if name in ("bert", "hf_adamw"):
        return BertAdam(groups, lr=lr, correct_bias=name == "hf_adamw", **adam)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True, **adam)
    plain = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax, "rms": torch.optim.RMSprop, "sgd": torch.optim.SGD}
    return plain[name](groups, lr=lr)
