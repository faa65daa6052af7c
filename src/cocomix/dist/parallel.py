"""A model put over ranks from outside: DDP, FSDP2, hybrid sharding. Its own code knows nothing of it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from cocomix.dist.settings import DistSettings
from cocomix.dist.world import World
from cocomix.errors import UserError


class Spread:
    """A model over ranks: what is called, and how gradients of several micro-batches are summed.

    Both DDP and FSDP2 make the mean of the ranks' gradients; a loss that is to be a sum over ranks is multiplied by
    :attr:`ranks` before its backward pass.
    """

    def __init__(self, plain: nn.Module, called: Any, ranks: int) -> None:
        self.plain = plain
        """The model itself; parameters (sharded ones too) have its names."""
        self.called = called
        """What a forward pass in training goes through."""
        self.ranks = ranks

    @property
    def sharded(self) -> bool:
        """Whether each rank holds only a part of the weights: every forward pass is work of all ranks then."""
        return isinstance(self.plain, FSDPModule)

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients live on between steps, to be set to zero: under DDP they lie in the buckets that ranks
        exchange, and micro-batches are summed there instead of beside them."""
        return isinstance(self.called, DistributedDataParallel)

    @contextlib.contextmanager
    def micro_batch(self, last: bool) -> Any:
        """Context of a micro-batch's forward and backward pass: ranks exchange gradients only in the last one."""
        if isinstance(self.called, FSDPModule):
            self.called.set_requires_gradient_sync(last)
            yield
        elif isinstance(self.called, DistributedDataParallel) and not last:
            with self.called.no_sync():
                yield
        else:
            yield


def put_over(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    others: Sequence[nn.Module],
    settings: DistSettings,
    world: World,
    device: torch.device,
    bf16: bool = False,
    unused: bool = False,
) -> Spread:
    """``model`` over the ranks of ``world``; alone, the model as it is.

    ``fsdp`` shards each of ``blocks`` and ``others`` as one unit, the rest with the root, so that tied weights outside
    of them stay tied. With ``bf16`` the blocks' weights are gathered in bfloat16, gradients are summed in float32.
    ``unused``: some parameters get no gradient. Raises :class:`UserError` when the ranks do not divide.
    """
    if world.size == 1:
        return Spread(model, model, 1)
    if settings.strategy == "ddp":
        ids = [device] if device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch 2.13 renames broadcast_buffers, 2.11 knows no other
            wrapped = DistributedDataParallel(
                model,
                device_ids=ids,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=unused,
            )
        return Spread(model, wrapped, world.size)
    shard(model, blocks, others, settings, mesh_of(settings, world.size, device.type), bf16)
    return Spread(model, model, world.size)


def check_replicas(settings: DistSettings, ranks: int) -> None:
    """Raises :class:`UserError` when the ranks do not divide into the groups that were asked for."""
    if settings.strategy == "fsdp" and ranks > 1 and ranks % settings.replicas:
        raise UserError(
            f"dist.replicas={settings.replicas} does not divide the {ranks} ranks: give a number of groups that does"
        )


def mesh_of(settings: DistSettings, ranks: int, device_type: str) -> DeviceMesh:
    """One dimension (``shard``), or with replicas two (``replicate``, ``shard``): sharded within a group."""
    check_replicas(settings, ranks)
    if settings.replicas == 1:
        return init_device_mesh(device_type, (ranks,), mesh_dim_names=("shard",))
    shape = (settings.replicas, ranks // settings.replicas)
    return init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))


def shard(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    others: Sequence[nn.Module],
    settings: DistSettings,
    mesh: DeviceMesh,
    bf16: bool,
) -> None:
    """FSDP2 on ``model``, in place."""
    common: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": settings.reshard,
        "offload_policy": CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
        if settings.offload
        else OffloadPolicy(),
    }
    # Autocast does the arithmetic in bfloat16; what is gathered in bfloat16 is gathered at half the cost. Inputs are
    # not cast: the residual stream stays in float32, as on one rank.
    half = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    full = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mp_policy=half, **common)
    for unit in others:
        fully_shard(unit, mp_policy=full, **common)
    fully_shard(model, mp_policy=full, **common)
