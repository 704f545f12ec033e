"""One step of training, spread over parts and processes: what it costs changes, what is learnt does not.

The batch of a step is cut into ``processes x accumulate`` parts by the numbers of its samples. Each process runs its
parts one after the other and adds up gradients of the *summed* loss; the sum over all of them is divided by the number
of labels in the whole batch. So a label counts the same wherever it is, and one process with one part, four processes,
or one process with four parts take the same step.

    none    every process holds the whole model; gradients are summed in one message when all are there
    ddp     the same, but they are summed in pieces while the backward pass still runs
    fsdp    every process holds its share of weights, gradients and optimizer states; a block of the language model is
            gathered when it is due

With FSDP all processes must gather the same blocks in the same order, or they wait for each other for ever. A batch
without pictures does not run the vision tower, so only the language model's blocks are gathered by themselves; a
process with fewer rows than the others runs them again, for nothing. All else is gathered once a part, and gets a
gradient of zero where it was not used.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from nvila_train.trainer import distributed
from nvila_train.trainer.blocks import Recompute, prepared
from nvila_train.trainer.device import placed
from nvila_train.trainer.precision import PrecisionName, computing

Parallel = Literal["none", "ddp", "fsdp"]


class Task(Protocol):
    """What is trained on."""

    def batch(self, step: int, rank: int, world: int) -> Any:
        """Part ``rank`` of ``world`` of batch number ``step``."""
        ...

    def loss(self, batch: Any) -> tuple[Tensor, int, Mapping[str, float]]:
        """The summed loss, how many labels it sums over, and further sums to log as ``name: sum``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a step is spread.

    Args:
        parallel: what each process holds.
        accumulate: parts that a process runs one after the other.
        recompute: what the blocks compute again in the backward pass.
        compiled: blocks go through ``torch.compile``.
        blocks: that are recomputed and compiled.
        shards: that FSDP gathers one by one; a chain, run as a whole once or several times for a part of a batch.
    """

    parallel: Parallel = "none"
    accumulate: int = 1
    recompute: Recompute = "none"
    compiled: bool = False
    blocks: Sequence[nn.Module] = ()
    shards: Sequence[nn.Module] = ()

    @contextmanager
    def over(
        self, task: Task, module: nn.Module, *, precision: PrecisionName = "fp32", seed: int = 0
    ) -> Iterator["Stepper"]:
        """The steps of a task, spread this way; see ``Stepper``."""
        with prepared(self.blocks, recompute=self.recompute, compiled=self.compiled):
            loss = Loss(task, module)
            if self.parallel == "fsdp":
                loss = Sharded(task, module, self.shards, precision)
            wrapped = distributed_data_parallel(loss) if self.parallel == "ddp" else loss
            yield Stepper(
                task, wrapped, accumulate=self.accumulate, summed=self.parallel == "none", precision=precision,
                device=device_of(module), seed=seed,
            )  # fmt: skip


def distributed_data_parallel(loss: nn.Module) -> DistributedDataParallel:
    """Sum gradients while the backward pass runs; those in bfloat16 are summed in float32."""
    wrapped = DistributedDataParallel(loss, find_unused_parameters=True)
    if any(parameter.dtype == torch.bfloat16 for parameter in loss.parameters() if parameter.requires_grad):
        wrapped.register_comm_hook(None, mean_in_float32)
    return wrapped


def mean_in_float32(
    _: None,
    bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
) -> torch.futures.Future[Tensor]:
    """The mean over processes of some gradients."""
    message = dist.all_reduce(bucket.buffer().float(), async_op=True)
    assert message is not None

    def arrived(summed: torch.futures.Future[list[Tensor]]) -> Tensor:
        return bucket.buffer().copy_(summed.value()[0].div_(distributed.world()))

    return message.get_future().then(arrived)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes."""
    return next(module.parameters()).device


class Loss(nn.Module):
    """A task's loss as a module, for wrappers that act around ``forward``."""

    def __init__(self, task: Task, module: nn.Module) -> None:
        super().__init__()
        self.task, self.module = task, module

    def forward(self, batch: Any) -> tuple[Tensor, int, Mapping[str, float]]:
        return self.task.loss(batch)


class Sharded(Loss):
    """The loss of a module whose weights are cut over all processes, in place."""

    def __init__(self, task: Task, module: nn.Module, shards: Sequence[nn.Module], precision: PrecisionName) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        super().__init__(task, module)
        apart = {id(parameter) for block in shards for parameter in block.parameters()}
        self.whole = [
            name
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and id(parameter) not in apart
        ]
        self.chain = tuple(shards)
        self.given: dict[int, tuple[Any, ...]] = {}
        self.idle = False
        policy = MixedPrecisionPolicy()
        if precision != "fp32":
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        mesh = init_device_mesh(device_of(module).type, (distributed.world(),))
        for block in shards:
            fully_shard(block, mesh=mesh, mp_policy=policy)
            block.register_forward_pre_hook(self._about_to_run, prepend=True)  # before it is gathered
        fully_shard(self, mesh=mesh, mp_policy=policy)

    def forward(self, batch: Any) -> tuple[Tensor, int, Mapping[str, float]]:
        loss, count, extra = self.task.loss(batch)
        self.idle = True
        while self.chain and distributed.most(0):
            loss = loss + 0.0 * self._run_again().sum()
        self.idle = False
        parameters = dict(self.module.named_parameters())
        return Touch.apply(loss, *(parameters[name] for name in self.whole)), count, extra

    def _about_to_run(self, block: nn.Module, given: tuple[Any, ...]) -> None:
        """Before each run of the chain processes tell each other that one of them needs it."""
        if not self.idle:
            self.given[id(block)] = given
            if block is self.chain[0]:
                distributed.most(1)

    def _run_again(self) -> Tensor:
        """Run the chain on what it was given last, for the sake of the others."""
        first = self.given[id(self.chain[0])][0]
        state = first.detach().requires_grad_(first.requires_grad)  # or its gradients would not be sent
        for block in self.chain:
            state = block(state, *self.given[id(block)][1:])
        return state


class Touch(torch.autograd.Function):
    """The loss as it is, and a gradient of zero for parameters that it may not depend on."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which parts of a batch are whose."""

    accumulate: int

    @property
    def count(self) -> int:
        return distributed.world() * self.accumulate

    def mine(self) -> range:
        return range(distributed.rank(), self.count, distributed.world())


class Stepper:
    """Gradients of whole steps.

    Random numbers (of dropout) begin anew with each part of a batch, from the seed, the step and the part alone: so
    they are the same in a run that was stopped, and however parts are spread over processes.

    Args:
        summed: gradients still have to be summed over processes; wrappers that do so leave their mean.
        device: where batches are put.
        seed: of random numbers.
    """

    def __init__(
        self,
        task: Task,
        loss: nn.Module,
        *,
        accumulate: int,
        summed: bool,
        precision: PrecisionName,
        device: torch.device,
        seed: int,
    ) -> None:
        self.task, self.loss = task, loss
        self.device, self.seed = device, seed
        self.parts = Parts(accumulate=accumulate)
        self.summed = summed
        self.precision: PrecisionName = precision

    def gradients(self, step: int, parameters: Sequence[nn.Parameter]) -> dict[str, float]:
        """Leave the gradient of the step's mean loss in the parameters; returns the sums over the batch's labels."""
        sums: dict[str, float] = {}
        mine = self.parts.mine()
        for part in mine:
            batch = placed(self.task.batch(step, part, self.parts.count), self.device)
            torch.manual_seed(Random(f"{self.seed}/{step}/{part}").getrandbits(63))
            with self._alone(last=part == mine[-1]):
                with computing(self.precision, self.device.type):
                    loss, count, extra = self.loss(batch)
                loss.backward()
            for name, value in {**extra, "loss": float(loss.detach()), "labels": float(count)}.items():
                sums[name] = sums.get(name, 0.0) + value
        totals = distributed.sum_named(sums)
        if self.summed:
            distributed.sum_gradients(parameters)
        share = (1 if self.summed else distributed.world()) / max(1.0, totals["labels"])
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(share)
        return totals

    @contextmanager
    def _alone(self, *, last: bool) -> Iterator[None]:
        """Nothing is sent before the last part."""
        if last or not isinstance(self.loss, DistributedDataParallel):
            yield
        else:
            with self.loss.no_sync():
                yield
