"""Classifier heads that the papers share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearHead(nn.Linear):
    """Linear classifier; in evaluation computed in the precision of the weight, under autocast too.

    Rounded to bfloat16 the two largest logits are equal now and then, and argmax takes the lower
    index: in a long tail mostly the more frequent class.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, out_features) of features (N, in_features)."""
        if self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class NormedLinear(nn.Module):
    """Cosine classifier of LDAM (Cao et al., NeurIPS 2019), without scale or bias.

    ``weight`` has shape (in_features, out_features): one column per class, drawn as unit vectors.
    The output is ``normalize(x) @ normalize(weight)`` and lies in [-1, 1]; the losses apply their
    scale. Computed in the precision of the weight, also under autocast.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        # Columns are cut to the norm 1e-5 and stretched again: unit vectors but for rounding.
        weight = torch.empty(in_features, out_features).uniform_(-1, 1)
        self.weight = nn.Parameter(weight.renorm_(2, 1, 1e-5).mul_(1e5))

    def forward(self, x: Tensor) -> Tensor:
        """Cosines (N, out_features) of the rows of ``x`` (N, in_features) and the class vectors."""
        # The losses multiply the cosines by 30 or so: half precision would show.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.weight.dtype)
            return F.normalize(x, dim=1) @ F.normalize(self.weight, dim=0)

    def extra_repr(self) -> str:
        in_features, out_features = self.weight.shape
        return f"in_features={in_features}, out_features={out_features}"
