"""The figures of a line of history.jsonl: sums over the steps since the last line."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from fasttune.runs.documents import UnloggedMetrics
from fasttune.training import device
from fasttune.training.packing import Step
from fasttune.training.row_budget import GIB


@dataclass
class MetricsSinceLog:
    """Sums over the steps since the last logged one. `loss` (nats) and `hits` (top-1), over supervised tokens, stay on
    the device, so that no step waits for it."""

    loss: torch.Tensor
    hits: torch.Tensor
    supervised: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    samples: int = 0
    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def zero(cls, where: torch.device) -> MetricsSinceLog:
        """The sums over no step, on a device."""
        return cls(torch.zeros((), device=where), torch.zeros((), dtype=torch.long, device=where))

    def add(self, step: Step, loss: torch.Tensor, hits: torch.Tensor, seconds: float) -> None:
        """Add one step; loss and hits are sums over its supervised tokens, `seconds` is the time it took."""
        self.loss, self.hits = self.loss + loss, self.hits + hits
        self.supervised += step.supervised
        self.tokens += step.tokens
        self.computed_tokens += step.computed_tokens
        self.samples += len(step.samples)
        self.steps += 1
        self.seconds += seconds

    def document(self, tokens_seen: int) -> UnloggedMetrics:
        """The sums for a checkpoint, exact: every float32 is a Python float."""
        sums = asdict(self) | {"loss": self.loss.item(), "hits": self.hits.item()}
        return UnloggedMetrics(**sums, tokens_seen=tokens_seen)

    @classmethod
    def read(cls, document: UnloggedMetrics, where: torch.device) -> MetricsSinceLog:
        """The sums that a checkpoint's window.json holds."""
        sums = asdict(document)
        del sums["tokens_seen"]
        on_device = {name: torch.tensor(sums[name], device=where) for name in ("loss", "hits")}
        return cls(**sums | on_device)

    def figures(self) -> dict[str, float]:
        """The fields of a line of history.jsonl, means over the summed steps; waits for the device."""
        loss, hits = self.loss.item(), self.hits.item()
        return {
            "loss": loss / self.supervised,
            "mean_token_accuracy": hits / self.supervised,
            "tokens_per_second": self.tokens / self.seconds,
            "supervised_tokens_per_second": self.supervised / self.seconds,
            "samples_per_second": self.samples / self.seconds,
            "step_seconds": self.seconds / self.steps,
            "computed_tokens": self.computed_tokens,
            "memory_gib": device.used_memory() / GIB,
        }
