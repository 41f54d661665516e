"""Train the text tower by distillation of MiniLM into transformers' `CLIPTextModelWithProjection`.

The texts are captions (English and Chinese), WordNet's nouns and their definitions; the target of each is a sentence
embedding of the teacher: for a caption that of its record's English label and tags (so Chinese maps to the English
meaning), for a noun its own, for a definition the mean of its own and its noun's (a reverse dictionary). The
loss is InfoNCE against the batch's targets plus the cosine distance.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from recipes.data.wordnet import LEXNAMES, WordNet
from recipes.text import captions, teacher
from studio.devices.precision import autocast
from studio.files import write_atomically
from studio.training.agreement import fingerprint
from studio.training.ema import Ema
from studio.training.run import Run
from studio_clip import train_pairs

CONTEXT = 48
TEMPERATURE = 0.05
SPAN = 4096  # texts of similar length, from which those of a step are drawn


@dataclass(frozen=True)
class Corpus:
    """Texts and their target embeddings, unit vectors.

    Attributes:
        records: the pictures' captions; `record_targets` is (len(records), 384).
        texts: WordNet's nouns and definitions, with `text_targets` (len(texts), 384).
    """

    records: list[dict[str, Any]]
    record_targets: Tensor
    texts: list[str]
    text_targets: Tensor


def corpus(records: list[dict[str, Any]], wordnet: WordNet, minilm: Path, cached: Path) -> Corpus:
    """Embed all texts with the teacher, once: six minutes on one core, cached in the safetensors file `cached`."""
    synsets = [synset for synset in wordnet.synsets.values() if synset.lexname in LEXNAMES]
    # Capitalised names are persons, places or genera, which picture prompts rarely have.
    synsets = [synset for synset in synsets if synset.words[0].islower()]
    nouns = list(dict.fromkeys(word for synset in synsets for word in synset.words if word.islower()))
    if not cached.exists():
        labels = teacher.embed(minilm, [record["label"] for record in records]).float()
        tagged = teacher.embed(
            minilm, [", ".join([record["label"], *record["tags"][:4]]) for record in records]
        ).float()
        vectors = teacher.embed(minilm, nouns).float()
        glosses = teacher.embed(minilm, [synset.gloss for synset in synsets]).float()
        row = {noun: index for index, noun in enumerate(nouns)}
        heads = vectors[[row[synset.words[0]] for synset in synsets]]
        targets = {"records": F.normalize(labels + 0.5 * tagged, dim=-1),
                   "texts": torch.cat([vectors, F.normalize(glosses + heads, dim=-1)])}  # fmt: skip
        write_atomically(cached, safetensors.torch.save(targets))
    found = safetensors.torch.load_file(cached)
    texts = [*nouns, *(synset.gloss for synset in synsets)]
    if len(found["records"]) != len(records) or len(found["texts"]) != len(texts):
        raise ValueError(f"{cached} is of another data set: remove it and run again")
    return Corpus(records, found["records"], texts, found["texts"])


def embed(model: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer, texts: list[str], parts: int = 6) -> Tensor:
    """Embeddings (len(texts), 384) in float32. Texts of similar length are batched: half the work.

    The tower is causal and pools at the text's end, so padding changes nothing.
    """
    ids = tokenizer(texts, truncation=True, max_length=CONTEXT).input_ids
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    size = -(-len(ids) // parts)
    made = []
    for start in range(0, len(ids), size):
        rows = [torch.tensor(ids[i]) for i in order[start : start + size]]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        made.append(model(input_ids=padded.to(model.device)).text_embeds.float())
    back = torch.empty(len(ids), dtype=torch.long)
    back[order] = torch.arange(len(ids))
    return torch.cat(made)[back.to(model.device)]


def train(data: Corpus, tokenizer: CLIPTokenizer, folder: Path, *, device: torch.device, steps: int, minutes: float,
          peak: float = 1.5e-3, batch: int = 384, seed: int = 0,
          begin: CLIPTextModelWithProjection | None = None) -> CLIPTextModelWithProjection:  # fmt: skip
    """Train, or resume training, in `folder`; return the EMA of the tower. Half of each batch are captions.

    Args:
        batch: texts per step, over all processes of the run.
        begin: a tower whose weights initialise a new run.
    """
    torch.manual_seed(seed)
    model = (begin or train_pairs.text_tower(len(tokenizer), CONTEXT, teacher.WIDTH)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.02)
    ema = Ema(model, 0.998)
    run = Run(
        folder, model, optimizer, ema, steps=steps, minutes=minutes,
        fixed={"data": fingerprint(data.records, data.record_targets, data.texts, data.text_targets)},
        changeable={"batch": batch, "rate": peak, "seed": seed},
    )  # fmt: skip
    rng = random.Random(f"{seed}-{run.step}-{run.peers.rank}")
    batch = max(2, batch // run.peers.count)
    order = sorted(range(len(data.texts)), key=lambda i: len(data.texts[i]))  # by length
    for _ in run:
        run.rate(peak)
        chosen = rng.choices(range(len(data.records)), k=batch // 2)
        start = rng.randrange(max(1, len(order) - SPAN))
        others = rng.choices(order[start : start + SPAN], k=batch - len(chosen))
        texts = [captions.caption(data.records[i], rng) for i in chosen] + [data.texts[i] for i in others]
        target = torch.cat([data.record_targets[chosen], data.text_targets[others]]).to(device)  # (B, 384)
        with autocast(device):
            made = F.normalize(embed(model, tokenizer, texts), dim=-1)  # (B, 384)
        same = target @ target.T > 0.999  # other captions of the same record are not negatives
        logits = (made @ target.T / TEMPERATURE).masked_fill(
            same & ~torch.eye(len(same), dtype=torch.bool, device=device), -1e4
        )
        contrast = F.cross_entropy(logits, torch.arange(len(made), device=device))
        cosine = (made * target).sum(-1).mean()
        loss = contrast + 3 * (1 - cosine)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.share(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
        run.log(loss=loss, contrast=contrast, cosine=cosine)
    return ema.module
