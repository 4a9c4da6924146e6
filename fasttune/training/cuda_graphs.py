"""Rows as CUDA graphs: forward and backward pass of the decoder layers recorded once and replayed by one launch each.

A row of a 0.5B model is 2,500 launches, 60 to 100 ms of work for the computer; a fast GPU is done with a short row
before the computer is. Recorded is what depends on a row's bucket alone (row_buckets.py): from token ids to hidden
states, and from their gradient to that of the LoRA weights. The loss, whose number of supervised tokens varies, the
loss scale of float16 and the sum of the rows' gradients stay outside.

A graph reads and writes fixed addresses, and a value that Python put into it stays what it was. So each is recorded on
a row of padding, and its 1st, 2nd, 4th, 8th … row is computed without it too: that gradient is used, and both are
compared. Where they differ, or memory runs out, there are no graphs for the rest of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.utils import AutocastKwargs

from fasttune.console import Finding, _, say, show_findings
from fasttune.runs import documents
from fasttune.training import device, engine, graph_capture, prefix_check, row_buckets
from fasttune.training import model as models
from fasttune.training.engine import Batch
from fasttune.training.packing import Row
from fasttune.training.row_buckets import Bucket
from fasttune.training.step_watch import StepWatch

if TYPE_CHECKING:
    from fasttune.training.trainer import StepTrainer

LONGEST_ROW = 8192  # tokens; longer ones keep every GPU busy
MOST_BUCKETS = 16  # each has a graph, which takes time to record
MEASURED_ROWS = 6
HOST_SHARE = 0.9  # of a row's time that launching it takes where the computer is the slower one

LossAndHits = tuple[torch.Tensor, torch.Tensor]
LossAndGradients = tuple[torch.Tensor, Sequence[torch.Tensor]]
State = Literal["off", "first step", "measuring", "on"]


class RowGraphs:
    """Computes the rows of a trainer's steps, as graphs where `train.cuda_graphs` and the rows' times say so.

    The first step is always computed without: it compiles, and its memory is measured.
    """

    def __init__(self, trainer: StepTrainer) -> None:
        self.trainer, self.mode = trainer, trainer.plan.recipe.train.cuda_graphs
        self.state: State = "first step" if self.mode else "off"
        self.times: list[tuple[float, float]] = []  # of each measured row: until it was launched, until it was done
        self.seen: Counter[Bucket] = Counter()
        self.captured: dict[Bucket, CapturedRow] = {}
        self.memory: Memory | None = None
        self.is_fresh = False  # whether `memory` is known to be that of the weights, in this step
        self.is_usual = True  # whether this step did nothing but train

    def train_row(self, row: Row, supervised: int) -> LossAndHits:
        """Add the gradient of a row's loss, divided by `supervised`, to that of the weights; returns its summed loss
        (nats) and top-1 hits. Memory that runs out is raised as torch does."""
        trainer, batch = self.trainer, engine.collate(row, self.trainer.examples)
        if row.tokens > trainer.model.config.max_position_embeddings:
            self.forget()  # for such a row Unsloth makes its RoPE tables anew, and graphs read the old ones
        if self.state in ("off", "first step") or row.tokens > LONGEST_ROW:
            return compute_eagerly(trainer, batch, supervised)
        if self.state == "measuring":
            return self.measure(batch, supervised)
        captured = self.captured_row(batch)
        if captured is None or self.memory is None:
            return compute_eagerly(trainer, batch, supervised)
        found = captured.compute(trainer, batch, supervised)
        if captured.is_compared:
            return self.compare(captured, found, self.memory, batch, supervised)
        captured.rows += 1
        self.memory.add_gradients()
        return found

    def end_step(self) -> bool:
        """To be called after each step; whether its time says how long a step takes."""
        usual, self.is_usual, self.is_fresh = self.is_usual, True, False
        if self.state != "first step":
            return usual
        if why := obstacle(self.trainer):
            self.turn_off(why, "" if self.mode == "auto" and not graph_capture.is_available() else "info")
        else:
            self.become("on" if self.mode is True else "measuring")
        return usual

    def become(self, state: State, why: str = "") -> None:
        """Take a state, and keep in provenance.json whether the rows from here on are graphs, and `why` they aren't."""
        self.state = state
        if state in ("on", "off") and self.trainer.is_rank_zero:
            documents.update_provenance(self.trainer.run, cuda_graphs=state, cuda_graphs_off=why)

    # Whether -------------------------------------------------------------------------------------------------------

    def measure(self, batch: Batch, supervised: int) -> LossAndHits:
        """Compute a row without a graph, timed; decide after MEASURED_ROWS of them."""
        self.is_usual = False
        found, launched, done = device.timed(lambda: compute_eagerly(self.trainer, batch, supervised))
        self.times.append((launched, done))
        if len(self.times) == MEASURED_ROWS:
            self.decide(*(sum(times) / MEASURED_ROWS for times in zip(*self.times, strict=True)))
        return found

    def decide(self, launched: float, done: float) -> None:
        """Graphs from now on, or never, by the mean seconds of a row until it is launched and until it is done."""
        if launched >= HOST_SHARE * done:
            text = _("rows are CUDA graphs from now on: launching one took {launched:.0f} of its {done:.0f} ms, so "
                     "the GPU waited", launched=launched * 1e3, done=done * 1e3)  # fmt: skip
            self.become("on")
        else:
            text = _("rows are not made CUDA graphs: launching one took {launched:.0f} of its {done:.0f} ms, so the "
                     "GPU is busy without", launched=launched * 1e3, done=done * 1e3)  # fmt: skip
            self.become("off", text)
        self.watch_anew()
        say(text)

    def turn_off(self, why: str, level: Literal["", "info", "warning"]) -> None:
        """No graphs for the rest of the run, and their memory given back; said unless `level` is empty."""
        self.is_usual = False
        self.become("off", why)
        self.watch_anew()
        self.forget()
        if level:
            what = _("rows are computed without CUDA graphs; the result is the same")
            show_findings([Finding("cuda-graphs-off", level, "train.cuda_graphs", what, why)])

    def watch_anew(self) -> None:
        """Steps take another time from now on, which is no slow step's."""
        self.trainer.step_watch = StepWatch(has_spoken=self.trainer.step_watch.has_spoken)

    def give_way(self) -> bool:
        """Where memory ran out in a row: turn graphs off for the memory that they hold; whether they held any."""
        holds = bool(self.captured)
        if holds:
            self.turn_off(_("a row ran out of memory, and the graphs held some"), "info")
        return holds

    def forget(self) -> None:
        """Give back the graphs' memory."""
        if self.captured or self.memory:
            self.captured.clear()
            self.memory = None
            device.release_memory()

    # One row -------------------------------------------------------------------------------------------------------

    def captured_row(self, batch: Batch) -> CapturedRow | None:
        """The graph of a row's bucket, made for the second row that falls into it; None where there is none."""
        if not self.is_fresh:
            self.is_fresh, parameters = True, self.trainer.trained_parameters
            if self.memory and not self.memory.is_of(*models.row_leaves(self.trainer.model, parameters)):
                self.forget()
        bucket = row_buckets.bucket_of(batch.layout)
        self.seen[bucket] += 1
        if bucket not in self.captured and self.seen[bucket] > 1 and len(self.captured) < MOST_BUCKETS:
            self.capture(bucket)
        return self.captured.get(bucket)

    def capture(self, bucket: Bucket) -> None:
        """Record the graph of a bucket. Where that fails there are no graphs: what failed names the reason."""
        self.is_usual, why = False, ""
        try:
            if self.memory is None:
                leaves, weights = models.row_leaves(self.trainer.model, self.trainer.trained_parameters)
                self.memory = Memory(
                    leaves, weights, [torch.zeros_like(one) for one in weights], graph_capture.graph_pool()
                )
            self.captured[bucket] = CapturedRow(self.trainer, bucket, self.memory)
        except (RuntimeError, MemoryError) as problem:
            why = reason(problem)
        if why:  # behind the block, in which the exception still holds the tensors of what failed
            self.turn_off(why, "info")

    def compare(
        self, captured: CapturedRow, found: LossAndHits, memory: Memory, batch: Batch, supervised: int
    ) -> LossAndHits:
        """Compute a row without its graph as well, and compare; the graph's gradient is not used."""
        self.is_usual, before = False, [weight.grad for weight in memory.weights]
        for weight in memory.weights:
            weight.grad = None
        expected = compute_eagerly(self.trainer, batch, supervised)
        gradients = [weight.grad for weight in memory.weights]
        difference = difference_of((found[0], memory.gradients), (expected[0], gradients), len(batch.labels))
        if before[0] is not None:
            torch._foreach_add_(gradients, before)
        if difference is None:  # overflowed in float16, or nothing to learn: the next row is compared
            return expected
        captured.rows += 1
        tolerance = prefix_check.TOLERANCE[captured.hidden.dtype]
        if not difference.within(tolerance):
            why = _("a row's graph gave another loss or gradient than the row itself; relative difference: loss "
                    "{loss:.1e}, gradient {gradient:.1e}",
                    loss=difference.loss, gradient=difference.gradient)  # fmt: skip
            self.turn_off(why, "warning")
        return expected


@dataclass
class Memory:
    """What all graphs share: the tensors that a row's gradient is of (`leaves`), the weights these belong to, one
    buffer in float32 for the gradient of each, and the memory pool of what is computed between."""

    leaves: Sequence[torch.Tensor]
    weights: Sequence[torch.Tensor]
    gradients: Sequence[torch.Tensor]
    pool: Any

    def is_of(self, leaves: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> bool:
        """Whether these tensors lie where the graphs read them."""
        now, then = [*leaves, *weights], [*self.leaves, *self.weights]
        return len(now) == len(then) and all(a.data_ptr() == b.data_ptr() for a, b in zip(now, then, strict=True))

    def add_gradients(self) -> None:
        """Add the buffers to the weights' gradients, which never are the buffers themselves."""
        if self.weights[0].grad is None:
            for weight in self.weights:
                weight.grad = torch.empty_like(weight)
            torch._foreach_copy_([weight.grad for weight in self.weights], self.gradients)
        else:
            torch._foreach_add_([weight.grad for weight in self.weights], self.gradients)


class CapturedRow:
    """The two graphs of a bucket, forward and backward, and the tensors that they read and write."""

    def __init__(self, trainer: StepTrainer, bucket: Bucket, memory: Memory) -> None:
        self.bucket, self.rows = bucket, 0
        static = row_buckets.placeholder(bucket).to(trainer.args.device)
        self.inputs = inputs_of(static)
        self.hidden = self.upstream = torch.empty(0)

        def forward() -> None:
            # A layout of its own each time: what its segments keep of their tensors' values is computed in the graph.
            batch = replace(static, layout=static.layout.with_tensors(static.layout.tensors()))
            with trainer.accelerator.autocast(AutocastKwargs(cache_enabled=False)):
                self.hidden = models.hidden_states(trainer.model, batch)

        def backward() -> None:
            found = torch.autograd.grad(self.hidden, memory.leaves, self.upstream)
            torch._foreach_copy_(memory.gradients, found)

        def both() -> None:
            forward()
            self.upstream = torch.zeros_like(self.hidden)
            backward()

        graph_capture.warm_up(both)
        self.replay_forward = graph_capture.capture(forward, memory.pool)
        self.replay_backward = graph_capture.capture(backward, memory.pool)
        self.hidden = self.hidden.detach()

    @property
    def is_compared(self) -> bool:
        """Whether the next row, counted from 1, is a power of two."""
        return (self.rows + 1) & self.rows == 0

    def compute(self, trainer: StepTrainer, batch: Batch, supervised: int) -> LossAndHits:
        """Leave a row's gradient in `Memory.gradients`; returns its summed loss and hits."""
        moved = row_buckets.padded(batch, self.bucket).to(trainer.args.device)
        torch._foreach_copy_(self.inputs, inputs_of(moved))
        self.replay_forward()
        states = self.hidden.detach().requires_grad_()
        with trainer.accelerator.autocast():
            loss, hits = engine.loss(states, models.lm_head_weight(trainer.model), moved)
        trainer.accelerator.backward(loss / supervised)
        self.upstream.copy_(states.grad)
        self.replay_backward()
        return loss.detach(), hits


def inputs_of(batch: Batch) -> list[torch.Tensor]:
    """What the decoder layers read of a row."""
    return [batch.input_ids, batch.position_ids, *batch.layout.tensors()]


def compute_eagerly(trainer: StepTrainer, batch: Batch, supervised: int) -> LossAndHits:
    """The same without a graph, the gradient added to that of the weights."""
    loss, hits = trainer.batch_loss(batch)
    trainer.accelerator.backward(loss / supervised)
    models.collect_gradients(trainer.model)
    return loss.detach(), hits


def difference_of(
    found: LossAndGradients, expected: LossAndGradients, supervised: int
) -> prefix_check.Difference | None:
    """How far summed losses of so many tokens and gradients are apart; None where the expected gradient is 0 or not
    finite. One nat a token is added to both losses, or rounding would count for much where the loss is nearly 0."""
    if not prefix_check.is_finite_and_not_zero(expected[1]):
        return None
    loss, other = (one[0] / supervised + 1 for one in (found, expected))
    return prefix_check.relative_difference((loss, found[1]), (other, expected[1]))


def obstacle(trainer: StepTrainer) -> str:
    """Why this training's rows can't be graphs; empty where they can."""
    if not graph_capture.is_available():
        return _("there is no GPU")
    if trainer.plan.recipe.lora.dropout > 0:
        return _("lora.dropout draws random numbers in each row")
    if trainer.gradient_checkpointing:
        return _("with gradient checkpointing a row reads the state of the random numbers, which no graph may")
    return ""


def reason(problem: BaseException | None) -> str:
    """Why recording failed, in words. An error hides behind that of the recording which it broke off."""
    first, has_memory = problem, True
    while problem is not None:
        has_memory = has_memory and not device.is_out_of_memory(problem)
        first, problem = problem, problem.__context__
    if not has_memory:
        return _("memory ran out while a graph was recorded")
    return _("a graph could not be recorded: {problem}", problem=str(first).strip().partition("\n")[0])
