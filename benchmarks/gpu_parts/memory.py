"""Memory of a GPU: weights that leave and come back, loading, streaming, and what the allocator takes and keeps."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import studio
from gpu_parts.bench import Bench, Found, generators
from studio.engine.memory.components import Component, Components
from studio.engine.memory.ledger import Ledger, tensor_bytes
from studio.testing.subject import Subject
from studio.weights.loading import Streaming, hosting


class Layers(nn.Module):
    """Square layers, one after another."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for each in self.layers:
            x = torch.tanh(each(x))
        return x


def offload(bench: Bench, found: Found) -> None:
    """2 GiB: to pinned host memory, back, back beside products, and off while coming back."""
    name, width = bench.device.name, bench.of(4096, 64)
    module = Layers(bench.of(64, 3), width).to(name, bench.dtype).requires_grad_(False)
    component = Component(module, tensor_bytes(module, name), frozenset())
    components = Components(name, Ledger(), str, Ledger())
    components.use([component], "bench")
    before = [each.cpu() for each in module.parameters()]
    gb, x = component.size / 1e9, bench.randn(width, width)

    def back() -> None:
        components.restore([component])
        components.wait([component])

    def products() -> None:
        for _ in range(bench.of(60, 2)):
            x @ x

    for turn in ("first", "again"):
        found[f"off_{turn}_gb_s"] = round(gb / bench.seconds(lambda: components.offload([component])), 2)
        found[f"back_{turn}_gb_s"] = round(gb / bench.seconds(back), 2)
    alone = bench.seconds(products)
    components.offload([component])
    beside = bench.seconds(lambda: (components.restore([component]), products()))
    components.wait([component])
    components.offload([component])
    found |= {"products_s": alone, "products_beside_copy_s": beside, "copy_alone_s": bench.seconds(back)}
    components.offload([component])
    components.restore([component])
    components.offload([component])  # while it comes back
    back()
    same = [torch.equal(each.cpu(), old) for each, old in zip(module.parameters(), before, strict=True)]
    found["same_bytes"] = all(same)


def loading(bench: Bench, found: Found) -> None:
    """1 GiB from a file that the system has cached: loaded, and streamed through a model larger than its memory."""
    count, width = bench.of(32, 4), bench.of(4096, 256)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        weights = {name: torch.randn(width, width).mul_(width**-0.5).to(bench.dtype)
                   for name in Layers(count, width).to("meta").state_dict()}  # fmt: skip
        save_file(weights, file)
        gb, x = file.stat().st_size / 1e9, bench.randn(8, width)
        how = {"device": bench.device.name, "dtype": bench.dtype}

        def load() -> nn.Module:
            return studio.module(lambda: Layers(count, width), [file], **how)

        found["load_gb_s"] = [round(gb / bench.seconds(load), 2) for _ in range(3)]
        whole = load()
        with hosting(None, Streaming(0)):
            streamed = load()
        with torch.inference_mode():
            found["streamed_gb_s"] = [round(gb / bench.seconds(lambda: streamed(x)), 2) for _ in range(4)]
            found["same_bytes"] = torch.equal(streamed(x), whole(x))


def memory(bench: Bench, found: Found) -> None:
    """What the allocator gave and what it took from the card in steps of mixed widths: as Studio sets it, and with
    segments of fixed size in a process of its own. Then many pictures within a small budget.
    """
    found["growing_segments"] = json.loads(mixed(bench))
    found["fixed_segments"] = json.loads(
        bench.child("mixed", bench.of(30, 300), PYTORCH_ALLOC_CONF="expandable_segments:False")
    )
    with bench.host(memory="2GB") as host:
        tickets = [host.submit("image", seed=i, prompt="a house", steps=bench.of(20, 1), stored=False)
                   for i in range(bench.of(64, 2))]  # fmt: skip
        found["done_in_2_gb"] = sum(1 for each in tickets if each.result(200))


def mixed(bench: Bench) -> str:
    """50 steps of mixed widths, as JSON: the step's peak by the engine's gauge, the most that was allocated and
    reserved, and what is reserved when nothing is needed any more.
    """
    subject = Subject(generators()["image"], {"prompt": "a cat", "steps": 60}, bench.device.name,
                      bench.device.fast_dtype())  # fmt: skip
    states = [subject.start(seed) for seed in range(bench.of(48, 3))]
    rng, probe = random.Random(0), bench.device.memory_probe()
    probe.begin(first=True)
    for _ in range(bench.of(50, 2)):
        subject.step(rng.sample(states, rng.randint(1, len(states))))
    bench.device.synchronize()
    found = {"peak": probe.peak(), "allocated": torch.cuda.max_memory_allocated(),
             "reserved": torch.cuda.max_memory_reserved()}  # fmt: skip
    bench.device.release_cached()
    found["kept_by_graphs"] = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    bench.device.drop_recordings()
    bench.device.release_cached()
    return json.dumps({**found, "kept": torch.cuda.memory_reserved() - torch.cuda.memory_allocated()})
