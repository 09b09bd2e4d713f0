"""Muon: momentum whose matrices are orthogonalized before they become an update.

Jordan (2024), "Muon: An optimizer for hidden layers in neural networks". The singular values of an update of a hidden
weight are all made nearly 1, so that directions with a small gradient count as much as those with a large one. All
other parameters have AdamW's update with the same learning rate: the orthogonalized one is scaled to the same root mean
square, 0.2 (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2).
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

MOMENTUM = 0.95
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of the other parameters
ROOT_MEAN_SQUARE = 0.2  # of an update, in units of the learning rate
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # Jordan's: a singular value ends between 0.7 and 1.2


def orthogonalized(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest (semi-)orthogonal matrix to one (rows, columns), roughly: U V^T of its U S V^T.

    Five Newton-Schulz iterations of a polynomial of fifth degree, which acts on the singular values alone. dtype: in
    which its products are computed.
    """
    a, b, c = COEFFICIENTS
    wide = len(matrix) <= matrix.shape[1]
    x = matrix if wide else matrix.T  # the products below are of the shorter side
    x = (x / (x.norm() + 1e-7)).to(dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.T).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for the parameters of groups with `matrices`, AdamW for the others; weight decay is decoupled in both.

    A filter (out, in, height, width) counts as a matrix of a row per output channel. dtype: of the products.
    """

    def __init__(
        self, parameters: Iterable, lr: float, weight_decay: float = 0.0, dtype: torch.dtype = torch.float32,
        capturable: bool = False,
    ) -> None:  # fmt: skip
        """capturable: has PyTorch put the count of steps on the parameters' device when a state is loaded."""
        defaults = {"lr": lr, "weight_decay": weight_decay, "matrices": False, "capturable": capturable}
        super().__init__(parameters, defaults)
        self._dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        """One update. Reads nothing from the host, so that a graph can capture it."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            updates = (self._of_matrices if group["matrices"] else self._of_others)(parameters, gradients)
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
            torch._foreach_mul_(updates, -group["lr"])
            torch._foreach_add_(parameters, updates)

    def _states(self, parameters: list[Tensor], *names: str) -> list[list[Tensor]]:
        """The state of these names of each parameter, from 0 on."""
        for p in parameters:
            for name in names:
                if name not in self.state[p]:
                    like = torch.zeros((), device=p.device) if name == "step" else torch.zeros_like(p)
                    self.state[p][name] = like
        return [[self.state[p][name] for p in parameters] for name in names]

    def _of_matrices(self, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        (momenta,) = self._states(parameters, "momentum_buffer")
        torch._foreach_mul_(momenta, MOMENTUM)
        torch._foreach_add_(momenta, gradients)
        ahead = torch._foreach_add(gradients, momenta, alpha=MOMENTUM)  # Nesterov's
        return [
            orthogonalized(matrix, self._dtype).mul_(ROOT_MEAN_SQUARE * max(matrix.shape) ** 0.5).view(update.shape)
            for update in ahead
            for matrix in (update.flatten(1),)
        ]

    def _of_others(self, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        means, squares, steps = self._states(parameters, "exp_avg", "exp_avg_sq", "step")
        torch._foreach_add_(steps, 1)
        # The bias corrections, 1 - beta^t, as accurate as the numbers; all parameters are as many steps old.
        first, second = (-torch.expm1(steps[0] * math.log(beta)) for beta in BETAS)
        torch._foreach_lerp_(means, gradients, 1 - BETAS[0])
        torch._foreach_mul_(squares, BETAS[1])
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - BETAS[1])
        divisors = torch._foreach_sqrt(torch._foreach_div(squares, second))
        torch._foreach_add_(divisors, EPSILON)
        return list(torch._foreach_div(torch._foreach_div(means, first), divisors))
