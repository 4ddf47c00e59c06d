"""The three networks of the CIFAR program, all on a ResNet-32, with the authors' ``state_dict``.

In training mode each returns what its loss compares; ``classify`` gives the logits alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.models.heads import LinearHead, NormedLinear
from common.models.resnet_cifar import ResNetCIFAR, kaiming_redraw
from dbm_loss.margin import full_precision

BLOCKS = 5  # per stage: ResNet-32


class Classifier(ResNetCIFAR):
    """ResNet-32 with a linear or cosine classifier: images (N, 3, H, W) -> logits (N, C)."""

    def __init__(self, num_classes: int, use_norm: bool = False):
        super().__init__(BLOCKS, num_classes, use_norm)

    def classify(self, x: Tensor) -> Tensor:
        """Logits (N, C)."""
        return self(x)


def _projection(in_features: int = 64, hidden: int = 512, out_features: int = 128) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out_features),
    )


class BCLModel(nn.Module):
    """Encoder, classifier and two projections of balanced contrastive learning (arXiv 2207.09052).

    The class centres are a projection of the classifier's own weights, neither detached nor
    normalised before: the contrastive loss trains the classifier too.
    """

    def __init__(self, num_classes: int, use_norm: bool = False):
        super().__init__()
        self.encoder = ResNetCIFAR(BLOCKS, num_classes=None, redraw=False)
        self.head = _projection()
        dim = self.encoder.feature_dim
        self.fc = NormedLinear(dim, num_classes) if use_norm else LinearHead(dim, num_classes)
        self.head_fc = _projection()
        kaiming_redraw(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, 3, H, W) -> features (N, 128) and centres (C, 128), unit vectors, and logits.

        Returns (features, logits (N, C), centres). In training mode the batch norm of the centres
        runs over the C classes.
        """
        features = self.encoder(x)
        weight = self.fc.weight.T if isinstance(self.fc, NormedLinear) else self.fc.weight
        projected = F.normalize(full_precision(self.head(features)), dim=1)
        centers = F.normalize(full_precision(self.head_fc(weight)), dim=1)
        return projected, self.fc(features), centers

    def classify(self, x: Tensor) -> Tensor:
        """Logits (N, C)."""
        return self.fc(self.encoder(x))


class FCNorm(nn.Module):
    """Cosine classifier with one row per class: ``weight`` (out_features, in_features)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        # As in the authors' code it is the columns that start as unit vectors; forward does rows.
        weight = torch.empty(out_features, in_features).uniform_(-1, 1)
        self.weight = nn.Parameter(weight.renorm_(2, 1, 1e-5).mul_(1e5))

    def forward(self, x: Tensor) -> Tensor:
        """Cosines (N, out_features) of the rows of ``x`` and of the weight."""
        with torch.autocast(x.device.type, enabled=False):  # they will be scaled: rounding shows
            x = x.to(self.weight.dtype)
            return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class KeyQueue(nn.Module):
    """The latest ``size`` keys of a momentum encoder and the loss against them (MoCo)."""

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, dim: int, size: int, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.register_buffer("queue", F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """InfoNCE of unit vectors (B, dim): a query against its key and the queue, then enqueue.

        The keys take no gradient. The pointer stays on the device: no step waits for it.
        """
        positive = (query * key).sum(1, keepdim=True)  # B x 1
        with torch.autocast(query.device.type, enabled=False):
            # the queue is about to change, and the backward pass needs it as it was
            negative = query @ self.queue.clone()
        logits = torch.cat([positive, negative], dim=1) / self.temperature
        target = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        self._enqueue(key)
        return F.cross_entropy(logits, target)

    @torch.no_grad()
    def _enqueue(self, key: Tensor) -> None:
        size = self.queue.shape[1]
        column = (self.queue_ptr + torch.arange(len(key), device=key.device)) % size
        self.queue.index_copy_(1, column, key.T)
        self.queue_ptr.add_(len(key)).remainder_(size)


class NCLModel(nn.Module):
    """The networks of nested collaborative learning (NCL, arXiv 2203.15359), three of them.

    Each has a classifier, a projection, a moving-average copy of its trunk with a projection of its
    own, and a queue of that copy's keys. As in the authors' code the copies start from weights of
    their own and their projections stay at their random start.
    """

    networks = 3
    momentum = 0.999
    queue_size = 1024

    def __init__(self, num_classes: int, use_norm: bool = False, dim: int = 64):
        super().__init__()

        def trunks() -> nn.ModuleList:
            return nn.ModuleList(
                ResNetCIFAR(BLOCKS, num_classes=None) for _ in range(self.networks)
            )

        def projections() -> nn.ModuleList:
            return nn.ModuleList(
                nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, dim))
                for _ in range(self.networks)
            )

        self.MOCO = nn.ModuleList(
            KeyQueue(dim, self.queue_size, temperature=0.2) for _ in range(self.networks)
        )
        self.backbone = trunks()
        self.classifier = projections()
        self.backbone_MA = trunks()
        self.classifier_MA = projections()
        head = FCNorm if use_norm else LinearHead
        self.classifier_ce = nn.ModuleList(head(64, num_classes) for _ in range(self.networks))
        self.backbone_MA.requires_grad_(False)
        self.classifier_MA.requires_grad_(False)

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views (B, 3, H, W) -> logits (3, B, C), queries and keys (3, B, D), not normalised.

        The authors shuffle the keys' images and put the keys back in order, which matters to
        batch norm on several GPUs only; it is left out.
        """
        features = [backbone(query) for backbone in self.backbone]
        with torch.no_grad():
            keys = [
                project(backbone(key))
                for backbone, project in zip(self.backbone_MA, self.classifier_MA, strict=True)
            ]
        return (
            self._heads(self.classifier_ce, features),
            self._heads(self.classifier, features),
            torch.stack(keys),
        )

    @staticmethod
    def _heads(heads: nn.ModuleList, features: list[Tensor]) -> Tensor:
        return torch.stack([head(x) for head, x in zip(heads, features, strict=True)])

    def classify(self, x: Tensor) -> Tensor:
        """Logits (N, C): the mean of the three networks."""
        features = [backbone(x) for backbone in self.backbone]
        return self._heads(self.classifier_ce, features).mean(0)

    def contrast(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Sum of the three contrastive losses of (3, B, D); puts the keys into the queues."""
        queries = F.normalize(full_precision(queries), dim=-1)
        keys = F.normalize(full_precision(keys), dim=-1)
        return sum(queue(q, k) for queue, q, k in zip(self.MOCO, queries, keys, strict=True))

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the copies' parameters towards the trunks', before the optimiser changes these.

        The authors' loop over the three networks updates all three in each round: one step decays
        by momentum cubed. Batch norm statistics are the copies' own.
        """
        copies, trunks = list(self.backbone_MA.parameters()), list(self.backbone.parameters())
        torch._foreach_lerp_(copies, trunks, 1 - self.momentum**self.networks)


def build_model(loss_fn: str, num_classes: int, use_norm: bool) -> nn.Module:
    """The network that a ``--loss_fn`` trains."""
    kind = {"bcl": BCLModel, "ncl": NCLModel}.get(loss_fn, Classifier)
    return kind(num_classes, use_norm)
