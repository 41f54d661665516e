"""Supervised fine-tuning (SFT) on conversations, of all weights or with LoRA; the loss is on the assistant's tokens.

A JSON line is `{"messages": [{"role": …, "content": …}, …]}` or `{"prompt": …, "completion": …}`. Each is rendered
with the model's chat template. LoRA (Hu 2021, arXiv:2106.09685) is peft's; adapters are merged into the weights.

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

IGNORED = -100  # target without loss
LAYERS = ["qkv", "out", "up", "down"]  # every matrix of a block


@dataclass(frozen=True)
class Sample:
    """One conversation as tokens, and a mask of the assistant's tokens."""

    tokens: tuple[int, ...]
    assistant: tuple[bool, ...]


def read(path: Path) -> Iterator[list[dict[str, str]]]:
    """The conversations of a JSONL file. The text parts of a content list become lines.

    Raises InputError with the number of a line that is not a conversation, or whose content is not text.
    """
    hint = 'write `{"messages": [{"role": "user", "content": "…"}, …]}` or `{"prompt": "…", "completion": "…"}`'
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("chats", f"`{path}` cannot be read: {error}", hint="give a UTF-8 JSONL file") from None
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
            message = f"line {number} of `{path}` has no message of the assistant"
            raise InputError("chats", message, hint=hint)
        yield found


class _Refused(ValueError):
    """An invalid conversation, with the reason."""


def _messages(row: Any) -> Iterator[dict[str, str]]:
    """The messages of a row, in either form. Raises the error of reading any other row."""
    if row.get("messages"):
        rows = row["messages"]
    else:
        rows = []
        for name, role in (("prompt", "user"), ("completion", "assistant")):
            value = row[name]
            turns = isinstance(value, list) and any(isinstance(each, dict) and "role" in each for each in value)
            rows += value if turns else [{"role": role, "content": value}]
    for each in rows:
        if not isinstance(each["role"], str):
            raise _Refused(f"a role is {_kind(each['role'])}, not text")
        yield {"role": each["role"], "content": _content(each.get("content"), each["role"])}


def _content(content: Any, role: str) -> str:
    """The content of a message: text, or the lines of a list of text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _Refused(f"the content of `{role}` is {_kind(content)}, not text")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            named = f"of type {json.dumps(kind)[:40]}" if isinstance(part, dict) else _kind(part)
            raise _Refused(f"the content of `{role}` has a part {named}; only parts of type text are supported")
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
    """A conversation rendered with the model's chat template; None if it is longer than the context.

    Raises InputError if the model has no template, or one that renders the beginning of a conversation differently when
    more follows: then the answer's tokens are ambiguous.
    """
    if tokens.chat_template is None:
        raise InputError("model", "the model has no chat template", hint="put a chat_template.jinja in its folder")

    def ids(count: int, asked: bool) -> list[int]:
        return conversation_tokens(tokens, messages[:count], add_generation_prompt=asked)

    whole = ids(len(messages), False)
    assistant = [False] * len(whole)
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = ids(place, True), whole if place + 1 == len(messages) else ids(place + 1, False)
            if whole[: len(before)] != before or whole[: len(after)] != after:
                text = "the model's chat template renders earlier turns differently when a conversation continues"
                raise InputError("model", text, hint="use conversations with one answer each")
            assistant[len(before) : len(after)] = [True] * (len(after) - len(before))
    return Sample(tuple(whole), tuple(assistant)) if len(whole) <= context + 1 else None


class Batches:
    """Samples in batches of similar length, every sample once per epoch, shuffled in each."""

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
        """Tokens (B, T) and their next-token targets (B, T), `IGNORED` except for the assistant's tokens."""
        epoch, place = divmod(step, -(-len(self.samples) // self.size))
        return pad([self.samples[i] for i in self._epoch(epoch)[place]])


def pad(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Pad samples on the right to tokens and targets; see `Batches.batch`."""
    longest = max(len(each.tokens) for each in samples)
    tokens = torch.zeros(len(samples), longest, dtype=torch.long)
    targets = torch.full((len(samples), longest), IGNORED)
    for row, each in enumerate(samples):
        tokens[row, : len(each.tokens)] = torch.tensor(each.tokens)
        mask = torch.tensor(each.assistant)
        targets[row, : len(mask)][mask] = tokens[row, : len(mask)][mask]
    return tokens[:, :-1], targets[:, 1:]


def opening(targets: Tensor, phrase: Tensor) -> Tensor:
    """A mask (B, T) of the first phrase of the assistant's answer in `targets` (B, T).

    The phrase ends with the first of the tokens `phrase` (P,), inclusive, or with the answer.
    """
    mask = targets != IGNORED
    ends = mask & torch.isin(targets, phrase)
    return mask & (ends.cumsum(1) - ends.long() == 0)


def loss_of(model: torch.nn.Module, tokens: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of the assistant's tokens, in nats, weighted by `weights` (B, T) if given."""
    mask = targets != IGNORED
    with autocast(tokens.device):
        logits = model(tokens, mask)  # (N, V)
    losses = F.cross_entropy(logits.float(), targets[mask], reduction="none")
    return losses.mean() if weights is None else (losses * weights[mask]).sum() / weights[mask].sum()


def with_lora(model: GPT, rank: int) -> Any:
    """The frozen decoder with LoRA adapters of this rank on the matrices of its blocks. Raises StudioError without
    peft.
    """
    try:
        import peft
    except ImportError:
        hint = "`pip install 'multimodal-studio[train]'`, or train all weights with `--lora 0`"
        raise StudioError("LoRA needs the package `peft`", hint=hint) from None
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LAYERS, bias="none")
    return peft.get_peft_model(model, config)


def probe(model: GPT, samples: Sequence[Sample], *, phrase: Sequence[int] = (), emphasis: float = 1.0,
          batch: int = 512, epochs: int = 2, peak: float = 1e-2, seed: int = 0) -> None:  # fmt: skip
    """Linear probing: fit only the output head to the assistant's tokens, on the decoder's current hidden states.

    Fine-tuning with a random head distorts the features of the layers (Kumar 2022, arXiv:2202.10054). Hidden states are
    computed once, so an epoch is cheap. A tied head changes the embedding too.
    """
    device, ends = model.head.weight.device, torch.tensor(phrase, device=model.head.weight.device)
    states, labels, weights = [], [], []
    short = getattr(torch, fast_dtype(device.type))
    hook = model.norm.register_forward_hook(lambda _, given, made: states.append(made.to(short)))
    with torch.inference_mode(), autocast(device):
        by_length = sorted(samples, key=lambda each: len(each.tokens))  # less padding
        for start in range(0, len(by_length), 64):
            tokens, targets = (each.to(device) for each in pad(by_length[start : start + 64]))
            model(tokens, targets != IGNORED)
            labels.append(targets[targets != IGNORED])
            weights.append((1 + (emphasis - 1) * opening(targets, ends))[targets != IGNORED])
    hook.remove()
    x, y, counts = (torch.cat(each).clone() for each in (states, labels, weights))  # (N, C), (N,), (N,)
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
          held_out: Sequence[Sample] = (), validate_every: int = 400, phrase: Sequence[int] = (),
          emphasis: float = 1.0, texts: TokenFile | None = None, rows: int = 0, seed: int = 0) -> GPT:  # fmt: skip
    """Train, or resume training, in `folder`; return the EMA of the decoder with adapters merged.

    Args:
        batch: conversations per step.
        lora: rank of the adapters; 0 trains all weights.
        peak: peak learning rate.
        held_out: validation conversations, evaluated every `validate_every` steps and at the end; the weights with the
            best score are returned, or the last weights without validation.
        phrase: tokens that end a phrase (see `opening`).
        emphasis: loss weight of the tokens of the first phrase, against 1 of the others.
        texts, rows: number of rows of plain text mixed into each step, each with the weight of a conversation (Ouyang
            2022, arXiv:2203.02155, mixes in pre-training data too, against forgetting).
    """
    device = next(model.parameters()).device
    torch.manual_seed(seed)  # initialisation of adapters
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

    def evaluate() -> None:
        if held_out and not run.peers.rank:
            found = validate(ema.module, held_out, phrase)
            plain = f"; plain text {plain_loss(ema.module, texts, 4):.4f}" if texts and rows else ""
            print(f"step {run.step}: {found}{plain}", file=sys.stderr, flush=True)
            best.offer(ema.module, found.score)

    for step in run:
        if step and step % validate_every == 0:
            evaluate()
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
    evaluate()
    if best.path.exists():
        best.restore(ema.module)
    made: Any = ema.module
    return made.merge_and_unload() if lora else made


@dataclass(frozen=True)
class Validation:
    """Validation results.

    Attributes:
        loss: mean cross-entropy of the assistant's tokens, in nats.
        right: share of the conversations whose first phrase greedy decoding reproduces.
    """

    loss: float
    right: float

    @property
    def score(self) -> float:
        """Higher is better: the share of right first phrases, then the loss."""
        return self.right - 1e-4 * self.loss

    def __str__(self) -> str:
        return f"loss {self.loss:.4f} nats per token; {self.right:.1%} of first phrases right"


@torch.inference_mode()
def validate(
    model: torch.nn.Module, samples: Sequence[Sample], phrase: Sequence[int] = (), batch: int = 64
) -> Validation:
    """Validate a model on conversations; `phrase` are the tokens that end a phrase (see `opening`)."""
    total, count, right = 0.0, 0, 0
    device = next(model.parameters()).device
    ends = torch.tensor(phrase, device=device)
    for start in range(0, len(samples), batch):
        tokens, targets = (each.to(device) for each in pad(samples[start : start + batch]))
        mask = targets != IGNORED
        with autocast(device):
            logits = model(tokens, mask)  # (N, V)
        total += float(F.cross_entropy(logits.float(), targets[mask], reduction="sum"))
        count += int(mask.sum())
        hits = torch.zeros_like(mask)
        hits[mask] = logits.argmax(-1) == targets[mask]
        right += int((hits | ~opening(targets, ends)).all(1).sum())
    return Validation(total / count, right / len(samples))
