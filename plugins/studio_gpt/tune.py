"""Supervised fine-tuning on conversations: the loss is on what the assistant says, of all weights or by LoRA.

A JSON line is `{"messages": [{"role": …, "content": …}, …]}` or `{"prompt": …, "completion": …}`. Each is written by
the model's own chat template. LoRA (Hu 2021, arXiv:2106.09685) is peft's; what it learns is merged back, so the result
is a model like any other.

Try it: ``studio train gpt-chat --model FOLDER --chats chats.jsonl --lora 8``
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from studio.devices.precision import autocast, fast_dtype
from studio.errors import InputError, StudioError
from studio.files import open_regular
from studio.training.agreement import fingerprint
from studio.training.best import Best
from studio.training.ema import Ema
from studio.training.run import Run
from studio_gpt.chat import conversation_tokens
from studio_gpt.corpus import TokenFile
from studio_gpt.model import GPT
from studio_gpt.tokens import Tokens
from studio_gpt.train import groups
from studio_gpt.train import loss_of as plain_loss_of
from studio_gpt.train import validate as plain_loss

IGNORED = -100  # a target that has no loss
LAYERS = ["qkv", "out", "up", "down"]  # every matrix of a block


@dataclass(frozen=True)
class Sample:
    """One conversation as tokens, and which of them the assistant said."""

    tokens: tuple[int, ...]
    said: tuple[bool, ...]


def read(path: Path) -> Iterator[list[dict[str, str]]]:
    """The conversations of a JSONL file. A content that is a list of parts of text is their lines.

    Raises InputError with the line that is not a conversation, or whose content is not text.
    """
    hint = 'write `{"messages": [{"role": "user", "content": "…"}, …]}` or `{"prompt": "…", "completion": "…"}`'
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("chats", f"`{path}` cannot be read: {error}", hint="name a UTF-8 file of JSON lines") from None
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a text may hold U+2028
        if not line.strip():
            continue
        try:
            found = list(_messages(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f": {error}" if isinstance(error, _Refused) else ""
            message = f"line {number} of `{path}` is not a conversation{reason}"
            raise InputError("chats", message, hint=hint) from None
        if not any(each["role"] == "assistant" for each in found):
            message = f"in line {number} of `{path}` the assistant says nothing"
            raise InputError("chats", message, hint=hint)
        yield found


class _Refused(ValueError):
    """A conversation that is not one, with the reason."""


def _messages(row: Any) -> Iterator[dict[str, str]]:
    """The messages of a row, in whichever of its forms. Raises what reading anything else raises."""
    if row.get("messages"):
        rows = row["messages"]
    else:
        rows = []
        for name, role in (("prompt", "user"), ("completion", "assistant")):
            said = row[name]
            turns = isinstance(said, list) and any(isinstance(each, dict) and "role" in each for each in said)
            rows += said if turns else [{"role": role, "content": said}]
    for each in rows:
        if not isinstance(each["role"], str):
            raise _Refused(f"a role is {_kind(each['role'])}, not text")
        yield {"role": each["role"], "content": _content(each.get("content"), each["role"])}


def _content(content: Any, role: str) -> str:
    """What a message says: text, or the lines of a list of parts of type text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _Refused(f"the content of `{role}` is {_kind(content)}, not text")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            named = f"of type {json.dumps(kind)[:40]}" if isinstance(part, dict) else _kind(part)
            raise _Refused(f"the content of `{role}` has a part {named}; only parts of type text can be learnt")
    return "\n".join(part["text"] for part in content)


def _kind(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "an object",
        str: "text",
    }
    return names.get(type(value), "a list")


def sample(messages: Sequence[dict[str, str]], tokens: Tokens, context: int) -> Sample | None:
    """A conversation as the model's template writes it; None if it is longer than the context.

    Raises InputError if the model has no template, or one that writes the beginning of a conversation otherwise when
    more follows: then nobody can say which tokens are the answer.
    """
    if tokens.chat_template is None:
        raise InputError("model", "the model has no chat template", hint="put a chat_template.jinja into its folder")

    def ids(count: int, asked: bool) -> list[int]:
        return conversation_tokens(tokens, messages[:count], add_generation_prompt=asked)

    whole = ids(len(messages), False)
    said = [False] * len(whole)
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = ids(place, True), whole if place + 1 == len(messages) else ids(place + 1, False)
            if whole[: len(before)] != before or whole[: len(after)] != after:
                text = "the model's chat template writes a conversation otherwise when it goes on"
                raise InputError("model", text, hint="give each conversation one answer")
            said[len(before) : len(after)] = [True] * (len(after) - len(before))
    return Sample(tuple(whole), tuple(said)) if len(whole) <= context + 1 else None


class Batches:
    """Samples in batches of about equal length, every sample once an epoch, in another order each."""

    def __init__(self, samples: Sequence[Sample], size: int) -> None:
        self.samples, self.size = samples, size
        self.lengths = np.array([len(each.tokens) for each in samples])
        self._epoch = lru_cache(maxsize=1)(self._order)

    def _order(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng(epoch)
        order = np.argsort(self.lengths * rng.uniform(0.8, 1.25, len(self.lengths)), kind="stable")
        parts = np.array_split(order, -(-len(order) // self.size))
        return [parts[i] for i in rng.permutation(len(parts))]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) and what should follow each (B, T), `IGNORED` where the assistant does not speak."""
        epoch, place = divmod(step, -(-len(self.samples) // self.size))
        return pad([self.samples[i] for i in self._epoch(epoch)[place]])


def pad(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """See `Batches.batch`. Padding stands behind: a causal decoder does not see it."""
    longest = max(len(each.tokens) for each in samples)
    tokens = torch.zeros(len(samples), longest, dtype=torch.long)
    targets = torch.full((len(samples), longest), IGNORED)
    for row, each in enumerate(samples):
        tokens[row, : len(each.tokens)] = torch.tensor(each.tokens)
        said = torch.tensor(each.said)
        targets[row, : len(said)][said] = tokens[row, : len(said)][said]
    return tokens[:, :-1], targets[:, 1:]


def opening(targets: Tensor, phrase: Tensor) -> Tensor:
    """Where the first phrase of what the assistant says stands: a mask (B, T) of `targets` (B, T).

    It ends with the first of the tokens `phrase` (P,), which is part of it, or with all that is said.
    """
    said = targets != IGNORED
    ends = said & torch.isin(targets, phrase)
    return said & (ends.cumsum(1) - ends.long() == 0)


def loss_of(model: torch.nn.Module, tokens: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy, in nats, of the assistant's tokens; `weights` (B, T) says how much each counts."""
    said = targets != IGNORED
    with autocast(tokens.device):
        logits = model(tokens, said)  # (N, V)
    losses = F.cross_entropy(logits.float(), targets[said], reduction="none")
    return losses.mean() if weights is None else (losses * weights[said]).sum() / weights[said].sum()


def with_lora(model: GPT, rank: int) -> Any:
    """The decoder frozen, with adapters of this rank on the matrices of its blocks. Raises StudioError without peft."""
    try:
        import peft
    except ImportError:
        hint = "`pip install 'multimodal-studio[train]'`, or train all weights with `--lora 0`"
        raise StudioError("LoRA needs the library `peft`", hint=hint) from None
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LAYERS, bias="none")
    return peft.get_peft_model(model, config)


def probe(model: GPT, samples: Sequence[Sample], *, phrase: Sequence[int] = (), emphasis: float = 1.0,
          batch: int = 512, epochs: int = 2, peak: float = 1e-2, seed: int = 0) -> None:  # fmt: skip
    """Fit the head alone to what the assistant says, on the states that the decoder has of it now.

    Fine-tuning that begins with a random head spoils what the layers know before the head can use it (Kumar 2022,
    arXiv:2202.10054). States are computed once, so an epoch costs little. A tied head's embedding moves with it.
    """
    device, ends = model.head.weight.device, torch.tensor(phrase, device=model.head.weight.device)
    states, said, weights = [], [], []
    short = getattr(torch, fast_dtype(device.type))
    hook = model.norm.register_forward_hook(lambda _, given, made: states.append(made.to(short)))
    with torch.inference_mode(), autocast(device):
        alike = sorted(samples, key=lambda each: len(each.tokens))  # less padding
        for start in range(0, len(alike), 64):
            tokens, targets = (each.to(device) for each in pad(alike[start : start + 64]))
            model(tokens, targets != IGNORED)
            said.append(targets[targets != IGNORED])
            weights.append((1 + (emphasis - 1) * opening(targets, ends))[targets != IGNORED])
    hook.remove()
    x, y, counts = (torch.cat(each).clone() for each in (states, said, weights))  # (N, C), (N,), (N,)
    head = model.head.weight.requires_grad_(True)
    optimizer, generator = torch.optim.Adam([head], lr=peak), torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for rows in (rows for _ in range(epochs) for rows in torch.randperm(len(x), generator=generator).split(batch)):
        with autocast(device):
            logits = F.linear(x[rows], head)  # (B, V)
        loss = (F.cross_entropy(logits.float(), y[rows], reduction="none") * counts[rows]).sum() / counts[rows].sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def train(model: GPT, samples: Sequence[Sample], folder: Path, *, steps: int, minutes: float = math.inf,
          batch: int = 32, lora: int = 0, peak: float = 1e-3, warmup: int = 50, save_every: float = 60.0,
          kept: Sequence[Sample] = (), judge_every: int = 400, phrase: Sequence[int] = (),
          emphasis: float = 1.0, texts: TokenFile | None = None, rows: int = 0, seed: int = 0) -> GPT:  # fmt: skip
    """Train, or go on training, in `folder`; return the averaged decoder, adapters merged in.

    Args:
        batch: conversations a step.
        lora: rank of the adapters; 0 trains all weights.
        peak: highest learning rate.
        kept: conversations that are judged every `judge_every` steps and at the end; the weights that judged best are
            what is returned, or the last where there are none.
        phrase: tokens that end a phrase (see `opening`).
        emphasis: how much more a token of the first phrase counts than one after it.
        texts, rows: so many rows of plain text are learnt in each step beside the conversations, one of them counting
            as much as one of those (Ouyang 2022, arXiv:2203.02155, mixes pre-training in for the same reason: what
            is not practised is forgotten).
    """
    device = next(model.parameters()).device
    torch.manual_seed(seed)  # what adapters begin with
    learner: Any = (with_lora(model, lora) if lora else model.requires_grad_(True)).train()
    optimizer = torch.optim.AdamW(groups(learner, 0.01), lr=peak, betas=(0.9, 0.95))
    ema = Ema(learner, 0.99)
    run = Run(
        folder, learner, optimizer, ema, steps=steps, minutes=minutes, save_every=save_every,
        fixed={"conversations": fingerprint([each.tokens for each in samples]), "lora": lora},
        changeable={"batch": batch, "rate": peak, "emphasis": emphasis, "rows": rows, "seed": seed},
    )  # fmt: skip
    batches, best = Batches(samples, batch), Best(folder / "best.safetensors")
    ends = torch.tensor(phrase, device=device)

    def judge() -> None:
        if kept and not run.peers.rank:
            found = validate(ema.module, kept, phrase)
            plain = f"; plain text {plain_loss(ema.module, texts, 4):.4f}" if texts and rows else ""
            print(f"step {run.step}: {found}{plain}", file=sys.stderr, flush=True)
            best.offer(ema.module, found.score)

    for step in run:
        if step and step % judge_every == 0:
            judge()
        run.rate(peak, warmup)
        tokens, targets = batches.batch(step * run.peers.count + run.peers.rank)
        tokens, targets = tokens.to(device), targets.to(device)
        loss = loss_of(learner, tokens, targets, 1 + (emphasis - 1) * opening(targets, ends))
        losses, total = {"loss": loss.detach()}, loss
        if texts and rows:
            first = (step * run.peers.count + run.peers.rank) * rows
            read = torch.from_numpy(texts.rows([texts.drawn(first + i) for i in range(rows)])).to(device)
            plain = plain_loss_of(learner, read)
            losses["plain"], total = plain.detach(), (batch * loss + rows * plain) / (batch + rows)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        run.share(learner.parameters())
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        ema.update(learner)
        run.log(**losses)
    judge()
    if best.path.exists():
        best.restore(ema.module)
    made: Any = ema.module
    return made.merge_and_unload() if lora else made


@dataclass(frozen=True)
class Judged:
    """How well a model answers.

    Attributes:
        loss: mean nats of the assistant's tokens.
        right: share of the conversations whose first phrase greedy decoding says as it stands there.
    """

    loss: float
    right: float

    @property
    def score(self) -> float:
        """More is better: what begins right, and among equals the loss."""
        return self.right - 1e-4 * self.loss

    def __str__(self) -> str:
        return f"loss {self.loss:.4f} nats a token; {self.right:.1%} of the answers begin right"


@torch.inference_mode()
def validate(model: torch.nn.Module, samples: Sequence[Sample], phrase: Sequence[int] = (), batch: int = 64) -> Judged:
    """Judge a model by conversations; `phrase` are the tokens that end a phrase (see `opening`)."""
    total, count, right = 0.0, 0, 0
    device = next(model.parameters()).device
    ends = torch.tensor(phrase, device=device)
    for start in range(0, len(samples), batch):
        tokens, targets = (each.to(device) for each in pad(samples[start : start + batch]))
        said = targets != IGNORED
        with autocast(device):
            logits = model(tokens, said)  # (N, V)
        total += float(F.cross_entropy(logits.float(), targets[said], reduction="sum"))
        count += int(said.sum())
        hits = torch.zeros_like(said)
        hits[said] = logits.argmax(-1) == targets[said]
        right += int((hits | ~opening(targets, ends)).all(1).sum())
    return Judged(total / count, right / len(samples))
