"""Momentum contrast with a queue that gives each class a share of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from common.gather import gather_batch
from dbm_loss.margin import full_precision


def partition_queue(
    cls_weight: torch.Tensor, K: int, base_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split K queue slots among the classes: ``base_k`` for each, the rest by class frequency.

    Args:
        cls_weight: class frequencies (C,), float32, summing to 1.
    Returns:
        First slot and number of slots of each class, (C,) int64 on the CPU.
    Raises:
        ValueError: K has no room for ``base_k`` slots of each class.
    """
    cls_weight = cls_weight.float().cpu()  # float32 cumulative sums differ between devices
    num_classes = len(cls_weight)
    if base_k < 1 or base_k * num_classes > K:
        raise ValueError(
            f"base_k {base_k}: a queue of {K} gives {num_classes} classes at most "
            f"{K // num_classes} slots each; raise K or lower base_k (at least 1)"
        )
    base = torch.arange(1, num_classes + 1) * base_k
    position = base + (K - num_classes * base_k) * cls_weight.cumsum(0)
    end = position.ceil().long().clamp_max(K)  # in float32, as in the original
    start = F.pad(end[:-1], (1, 0))
    slots = end - start
    if int(slots.min()) < 1:
        raise ValueError(f"base_k {base_k}: rounding leaves a class without a slot; raise base_k")
    return start, slots


class MoCo(nn.Module):
    """Query encoder, key encoder and the labelled queue of GML (ICML 2023), after MoCo and PaCo.

    The queue holds features of the key encoder, before its projection: the projection of all K of
    them is recomputed in every step. The key encoder is a momentum copy of the query encoder or,
    after :meth:`set_distiller`, a frozen teacher with a projection that is trained.

    Args:
        base_encoder: ``base_encoder(num_classes=, use_norm=)`` makes an encoder with
            ``feature_dim`` and ``forward(x, return_features=True) -> (logits, features)``.
        dim: d, size of the projection.
        K: length of the queue.
        m: momentum of the key encoder.
        mlp: projection of two layers with batch norm instead of one layer.
        feat_t: feature size of the teacher; None is that of the encoder.
        normalize: cosine classifier.
        num_classes: C.
        align_labels: enqueue every feature with its own label. False repeats the original without
            a teacher, where features are enqueued in shuffled order, labels in batch order.
    """

    queue_k: torch.Tensor
    queue_l: torch.Tensor
    queue_i: torch.Tensor
    queue_ptr: torch.Tensor

    def __init__(
        self,
        base_encoder: Callable[..., nn.Module],
        dim: int = 128,
        K: int = 4096,
        m: float = 0.999,
        mlp: bool = True,
        feat_t: int | None = None,
        normalize: bool = True,
        num_classes: int = 1000,
        align_labels: bool = True,
    ):
        super().__init__()
        self.K, self.num_classes = K, num_classes
        self._ema = get_ema_multi_avg_fn(m)
        self.align_labels = align_labels
        self.base_k = 0
        self.has_teacher = False

        self.encoder_q = base_encoder(num_classes=num_classes, use_norm=normalize)
        self.encoder_k = base_encoder(num_classes=num_classes, use_norm=normalize)
        feat_dim = self.encoder_q.feature_dim
        feat_t = feat_t or feat_dim
        self.embed_q = _projection(feat_dim, dim, mlp)
        self.embed_k = _projection(feat_t, dim, mlp)
        _copy_parameters(self.encoder_q, self.encoder_k)
        if feat_t == feat_dim:
            _copy_parameters(self.embed_q, self.embed_k)
        self.encoder_k.requires_grad_(False)
        self.embed_k.requires_grad_(False)

        self.register_buffer("queue_k", F.normalize(torch.randn(K, feat_t), dim=1))
        self.register_buffer("queue_l", torch.randint(0, num_classes, (K,)))
        self.register_buffer("queue_i", torch.arange(-K, 0))
        self.register_buffer("queue_ptr", torch.zeros(num_classes, dtype=torch.int64))
        for name in ("_start", "_slots"):
            self.register_buffer(name, torch.zeros_like(self.queue_ptr), persistent=False)

    def set_distiller(self, teacher: nn.Module) -> None:
        """Take a trained network as key encoder: frozen, always in evaluation mode."""
        if teacher.feature_dim != self.queue_k.shape[1]:
            raise ValueError(
                f"the teacher has features of size {teacher.feature_dim}, "
                f"feat_t says {self.queue_k.shape[1]}"
            )
        self.encoder_k = teacher.requires_grad_(False).eval()
        self.embed_k.requires_grad_(True)
        self.has_teacher = True

    def set_cls_weight(self, cls_weight: torch.Tensor, base_k: int) -> None:
        """Give each class its share of the queue (see :func:`partition_queue`).

        To be called before training and again after a checkpoint is loaded.
        """
        start, slots = partition_queue(cls_weight, self.K, base_k)
        self._start.copy_(start)
        self._slots.copy_(slots)
        self.queue_l.copy_(torch.repeat_interleave(torch.arange(len(slots)), slots))
        self.base_k = base_k

    def train(self, mode: bool = True) -> MoCo:
        """Set the mode; a teacher stays in evaluation mode."""
        super().train(mode)
        if self.has_teacher:
            self.encoder_k.eval()
        return self

    def forward(
        self,
        im_cls: torch.Tensor,
        im_q: torch.Tensor | None = None,
        im_k: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
        contrast: bool = True,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """One training step's worth of outputs; in evaluation mode the logits of ``im_cls`` only.

        Args:
            im_cls, im_q, im_k: the views for classifier, query and key, (B, 3, H, W).
            labels: (B,) int64. index: (B,) int64, which training image each is.
            contrast: False leaves out the key side: momentum update, teacher and queue.
        Returns:
            Arguments of :class:`GMLLoss`: ``logits`` (B, C) and, with ``contrast``, ``t_logits``
            (B, C), ``query`` (B, d), ``key`` (K, d), ``k_labels`` and ``k_index`` (K,).
        """
        if not self.training:
            return self.encoder_q(im_cls)
        B = len(im_cls)
        # One pass, so that both views share the batch statistics.
        logits, features = self.encoder_q(torch.cat([im_cls, im_q]), return_features=True)
        if not contrast:
            return {"logits": logits[:B]}
        query = F.normalize(full_precision(self.embed_q(features[B:])), dim=1)
        with torch.no_grad():
            t_logits, keys = self._key_side(im_cls, im_k)
            self.enqueue(keys, gather_batch(labels), gather_batch(index))
        # Autocast keeps the half-precision weights of embed_k; in older versions of torch those
        # made without gradients, with which the next line would not train them. A compiled step
        # keeps none, and in older versions this call would cut it in two.
        if not torch.compiler.is_compiling():
            torch.clear_autocast_cache()
        key = F.normalize(full_precision(self.embed_k(self.queue_k)), dim=1)  # K x d
        return {
            "logits": logits[:B],
            "t_logits": t_logits,
            "query": query,
            "key": key,
            "k_labels": self.queue_l,
            "k_index": self.queue_i,
        }

    def _key_side(
        self, im_cls: torch.Tensor, im_k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the key encoder for ``im_cls``, features for the ``im_k`` of all processes."""
        B = len(im_cls)
        order = None
        if not self.has_teacher:
            self._update_key_encoder()
            # Shuffling batch norm (MoCo, section 3.3): keys see the statistics of another batch.
            world_size = dist.get_world_size() if dist.is_initialized() else 1
            order = torch.randperm(B * world_size).to(im_k.device, non_blocking=True)
            if world_size > 1:
                dist.broadcast(order, src=0)
                im_k = gather_batch(im_k)[order.view(world_size, B)[dist.get_rank()]]
            else:
                im_k = im_k[order]
        logits, features = self.encoder_k(torch.cat([im_cls, im_k]), return_features=True)
        self.embed_k(features[B:])  # moves its running statistics, as in the original
        features = gather_batch(features[B:])
        if order is not None and self.align_labels:
            features = features[order.argsort()]
        return logits[:B], features

    def _update_key_encoder(self) -> None:
        """θ_k <- m θ_k + (1 - m) θ_q (Equation 2 of MoCo, arXiv 1911.05722); not the buffers."""
        key_side = [*self.encoder_k.parameters(), *self.embed_k.parameters()]
        query_side = [*self.encoder_q.parameters(), *self.embed_q.parameters()]
        self._ema(key_side, query_side, None)

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor, labels: torch.Tensor, index: torch.Tensor) -> None:
        """Write one batch of all processes over the oldest entries.

        Each class has a ring of its own; of more samples of a class than it has slots the first
        ones stay. Without class shares there is one ring, and ``index`` is not written.

        Args:
            keys: (B, feat_t). labels, index: (B,) int64.
        """
        device, keys = labels.device, keys.to(self.queue_k.dtype)
        arrival = torch.arange(len(labels), device=device)
        if self.base_k == 0:
            if len(labels) > self.K:
                raise ValueError(f"K {self.K}: the queue is shorter than a batch of {len(labels)}")
            position = (self.queue_ptr[0] + arrival) % self.K
            self.queue_k[position] = keys
            self.queue_l[position] = labels
            self.queue_ptr[0] = (self.queue_ptr[0] + len(labels)) % self.K
            return
        count = torch.zeros_like(self.queue_ptr).index_add(0, labels, torch.ones_like(labels))
        first = count.cumsum(0) - count
        order = labels.argsort(stable=True)  # class by class, in order of arrival
        label = labels[order]
        rank, slots = arrival - first[label], self._slots[label]
        position = self._start[label] + (self.queue_ptr[label] + rank) % slots
        # A surplus sample writes again what the one it would displace has written: no decision on
        # the host, no order of writes that matters.
        source = order[first[label] + rank % slots]
        self.queue_k[position] = keys[source]
        self.queue_l[position] = label
        self.queue_i[position] = index[source]
        self.queue_ptr.add_(torch.minimum(count, self._slots)).remainder_(self._slots)


def _projection(feat_dim: int, dim: int, mlp: bool) -> nn.Module:
    if not mlp:
        return nn.Linear(feat_dim, dim)
    return nn.Sequential(
        nn.Linear(feat_dim, feat_dim),
        nn.BatchNorm1d(feat_dim),
        nn.ReLU(),
        nn.Linear(feat_dim, dim),
    )


@torch.no_grad()
def _copy_parameters(source: nn.Module, target: nn.Module) -> None:
    for own, other in zip(target.parameters(), source.parameters(), strict=True):
        own.copy_(other)
