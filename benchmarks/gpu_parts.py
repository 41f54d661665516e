"""The parts of gpu.py: each finds something out of a GPU and writes it into `found` as it goes.

Sizes are those for a card, or tiny for a rehearsal on a CPU. Weights are random, from seeds: nothing is fetched. Times
are milliseconds unless a name ends in `_s`; `run` is until the device has done the work, `launch` until the host has
asked for it.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from studio import torch_setup

torch_setup.prepare()

import torch  # noqa: E402  (needs prepare)
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

import studio  # noqa: E402
from studio.attention import Causal, Dense, Dispatch, Lengths, Problem, SpaceTime  # noqa: E402
from studio.devices import Device  # noqa: E402
from studio.engine import Engine, Request  # noqa: E402
from studio.engine.ledger import Ledger, tensor_bytes  # noqa: E402
from studio.engine.parts import Part, Parts  # noqa: E402
from studio.generator import Generator  # noqa: E402
from studio.media import Media  # noqa: E402
from studio.plugins import Plugins  # noqa: E402
from studio.recipe import PluginRef  # noqa: E402
from studio.testing.subject import Subject, apart  # noqa: E402
from studio.weights import Streaming, hosted  # noqa: E402
from studio_diffusion.image import ImageGenerator  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "image": {"prompt": "a red apple", "steps": 4}, "text": {"prompt": "an apple", "max_tokens": 12},
    "dcgan": {}, "ddpm": {"steps": 4}, "video": {"prompt": "a horse bouncing", "frames": 8, "steps": 2},
}  # fmt: skip
ASKS = ((20, 5.0), (12, 3.0), (28, 7.5), (16, 4.0), (24, 1.5), (20, 6.0), (14, 2.5), (26, 8.0))  # steps and guidance
PLUGIN = PluginRef(name="benchmarks", version="1")
Found = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where it runs, and how large: tiny if it is a rehearsal."""

    device: Device
    rehearse: bool

    def of(self, full: Any, tiny: Any) -> Any:
        """A size, a list of sizes or anything else that a rehearsal has in small."""
        return tiny if self.rehearse else full

    @property
    def dtype(self) -> torch.dtype:
        """What the device multiplies quickly."""
        found: torch.dtype = getattr(torch, self.device.fast_dtype())
        return found

    def seconds(self, work: Callable[[], object]) -> float:
        """Until the device has done it; nothing is waiting before."""
        self.device.settle()
        begun = time.perf_counter()
        work()
        self.device.settle()
        return time.perf_counter() - begun

    def timed(self, work: Callable[[], object], rounds: int = 12) -> dict[str, float]:
        """Milliseconds, medians: `launch` until the host has asked for the work, `run` until the device has done it."""
        launches, runs = [], []
        for turn in range(self.of(rounds, 1) + 2):
            self.device.settle()
            begun = time.perf_counter()
            work()
            asked = time.perf_counter()
            self.device.settle()
            if turn > 1:
                launches.append(asked - begun)
                runs.append(time.perf_counter() - begun)
        return {"launch": _ms(launches), "run": _ms(runs)}

    def randn(self, *shape: int, dtype: torch.dtype | None = None, seed: int = 0) -> torch.Tensor:
        """Normal numbers from a seed, made on the host."""
        made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
        return made.to(self.device.name, dtype or self.dtype)


def _ms(seconds: Sequence[float]) -> float:
    return round(statistics.median(seconds) * 1e3, 4)


def facts(bench: Bench, found: Found) -> None:
    """What it is, and its two ceilings: bytes copied on the device (read and written), and products in its dtype."""
    device = bench.device
    found |= {"device": device.label, "versions": {"torch": torch.__version__, **device.versions()}}
    found |= {"dtype": device.fast_dtype(), "float32": device.float32, "built_for": torch.cuda.get_arch_list()}
    found |= {"memory_free": device.free_memory(), "memory_total": device.total_memory()}
    x = torch.ones(bench.of(4 << 30, 1 << 16), dtype=torch.uint8, device=device.name)
    y = torch.empty_like(x)
    found["copy_gb_s"] = round(2 * x.nbytes / bench.timed(lambda: y.copy_(x))["run"] / 1e6, 1)
    side = bench.of(8192, 64)
    a = bench.randn(side, side)
    found["matmul_tflops"] = round(2 * side**3 / bench.timed(lambda: a @ a)["run"] / 1e9, 1)
    small = bench.randn(64, 64)
    found["small_launch_us"] = bench.timed(lambda: [small.add_(1) for _ in range(1000)], 3)["run"]


def correct(bench: Bench, found: Found) -> None:
    """The built-in generators, two requests at unlike positions, beside the CPU; and the same seed twice."""
    generators = Plugins.discover((), user_folder=None).generators
    cases = {name: CASES[name] for name in bench.of(list(CASES), ["image", "text"])}
    for name, given in cases.items():
        given = bench.of(given, {**given, **{key: 2 for key in ("steps", "max_tokens") if key in given}})
        due = _walk(Subject(generators[name], given, "cpu", "float32"))
        exact = Subject(generators[name], given, bench.device.name, "float32")
        made, again = _walk(exact), _walk(exact)
        fast = _walk(Subject(generators[name], given, bench.device.name, bench.device.fast_dtype()))
        found[name] = {
            "float32_apart": max(map(apart, due, made)), "fast_apart": max(map(apart, due, fast)),
            "same_bytes": [each.sha256 for each in made] == [each.sha256 for each in again],
        }  # fmt: skip


def _walk(subject: Subject) -> list[Media]:
    """Start two, step the first, then whichever may together, and finish both."""
    states = [subject.start(0), subject.start(1)]
    states[:1] = subject.step(states[:1])
    while live := [i for i in (0, 1) if not states[i].done]:
        keys = {subject.generator.batch_key(states[i]) for i in live}
        chosen = live if len(keys) == 1 else live[:1]
        for i, state in zip(chosen, subject.step([states[i] for i in chosen]), strict=True):
            states[i] = state
    return [subject.finish([state])[0] for state in states]


def attention(bench: Bench, found: Found) -> None:
    """Each backend refuses a problem or serves it rightly: sizes of heads, dtypes, biases, grouped heads."""
    dispatch, wrong = Dispatch(), []
    tokens, right, refused = bench.of(256, 16), 0, 0
    sizes = bench.of((32, 40, 64, 80, 128, 160, 256, 512), (32, 512))
    dtypes = bench.of((torch.bfloat16, torch.float16, torch.float32), (torch.float32,))
    shapes: dict[str, tuple[int, Any]] = {
        "open": (tokens, None), "causal": (tokens, Causal()), "oblong": (tokens + 72, Causal()),
        "lengths": (tokens, Lengths([tokens // 2, tokens])),
        "mask": (tokens, Dense(torch.ones(tokens, tokens, device=bench.device.name).tril().bool())),
    }  # fmt: skip
    for dim, dtype, (kind, (keys, bias)), groups in product(sizes, dtypes, shapes.items(), (8, 2)):
        q, k, v = (bench.randn(2, n, h, dim, dtype=dtype, seed=s)
                   for s, (n, h) in enumerate(((tokens, 8), (keys, groups), (keys, groups))))  # fmt: skip
        due = dispatch.attend(*(each.double() for each in (q, k, v)), bias=bias, backend="reference")
        for name, reasons in dispatch.explain(Problem.of(q, k, v, bias)).items():
            if reasons or name == "flex":  # flex compiles each: see `windows`
                refused += 1
                continue
            off = error_of(lambda n=name, x=(q, k, v), b=bias: dispatch.attend(*x, bias=b, backend=n), due)
            within = isinstance(off, float) and off <= (2e-2 if dtype != torch.float32 else 1e-4)
            right += within
            wrong += [] if within else [[name, kind, dim, str(dtype), groups, off]]
    found |= {"right": right, "refused": refused, "wrong": wrong}


def error_of(work: Callable[[], torch.Tensor], due: torch.Tensor) -> float | str:
    """The greatest difference, or what it raised."""
    try:
        return float((work().double() - due).abs().max())
    except Exception as error:  # a kernel that does not refuse what it cannot do is what is looked for
        return f"{type(error).__name__}: {error}"[:200]


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
    part = Part(module, tensor_bytes(module, name), frozenset())
    parts = Parts(name, Ledger(), str, Ledger())
    parts.use([part], "bench")
    before = [each.cpu() for each in module.parameters()]
    gb, x = part.size / 1e9, bench.randn(width, width)

    def back() -> None:
        parts.bring_back([part])
        parts.wait([part])

    def products() -> None:
        for _ in range(bench.of(60, 2)):
            x @ x

    for turn in ("first", "again"):
        found[f"off_{turn}_gb_s"] = round(gb / bench.seconds(lambda: parts.put_off([part])), 2)
        found[f"back_{turn}_gb_s"] = round(gb / bench.seconds(back), 2)
    alone = bench.seconds(products)
    parts.put_off([part])
    beside = bench.seconds(lambda: (parts.bring_back([part]), products()))
    parts.wait([part])
    parts.put_off([part])
    found |= {"products_s": alone, "products_beside_copy_s": beside, "copy_alone_s": bench.seconds(back)}
    parts.put_off([part])
    parts.bring_back([part])
    parts.put_off([part])  # while it comes back
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
        with hosted(None, Streaming(0)):
            streamed = load()
        with torch.inference_mode():
            found["streamed_gb_s"] = [round(gb / bench.seconds(lambda: streamed(x)), 2) for _ in range(4)]
            found["same_bytes"] = torch.equal(streamed(x), whole(x))


def unet(bench: Bench, found: Found) -> None:
    """The U-Net of Stable Diffusion 1.5 (860 M, random), two samples a picture: by width and memory format."""
    net, side, wide = _unet(bench), bench.of(64, 8), bench.of(768, 32)
    for layout in (torch.contiguous_format, torch.channels_last):
        net.to(memory_format=layout)
        for width in bench.of((1, 2, 4, 8, 16), (1, 2)):
            x = bench.randn(2 * width, 4, side, side).to(memory_format=layout)
            words, t = bench.randn(2 * width, 77, wide), torch.ones(2 * width, device=bench.device.name)
            with torch.inference_mode():
                found[f"{str(layout).partition('.')[2]}_{width}"] = bench.timed(partial(net, x, t, words), 8)


def _unet(bench: Bench) -> nn.Module:
    from diffusers import UNet2DConditionModel

    tiny = {"block_out_channels": (32, 64), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "norm_num_groups": 8}  # fmt: skip
    torch.manual_seed(0)
    with torch.device(bench.device.name):
        net = UNet2DConditionModel(sample_size=bench.of(64, 8), cross_attention_dim=bench.of(768, 32),
                                   **bench.of({}, tiny))  # fmt: skip
    made: nn.Module = net.to(bench.dtype).eval().requires_grad_(False)
    return made


def pictures(bench: Bench, found: Found) -> None:
    """Eight pictures of Stable Diffusion's size (random weights) with unlike steps and guidance: at once, and by stock
    diffusers one after another.
    """
    from diffusers import StableDiffusionPipeline

    with tempfile.TemporaryDirectory() as folder:
        _stable_diffusion(bench, Path(folder))
        pipe = StableDiffusionPipeline.from_pretrained(f"{folder}/model", dtype=bench.dtype).to(bench.device.name)
        pipe.set_progress_bar_config(disable=True)
        found["stock_s"] = [round(bench.seconds(partial(_by_stock, bench, pipe)), 3) for _ in range(2)]
        del pipe
        generator, side = ImageGenerator(Path(folder) / "model"), bench.of(512, 64)
        with Engine(bench.device.name) as engine:
            found["at_once_s"] = [_at_once(bench, engine, generator, side) for _ in range(bench.of(4, 1))]
    found["times_stock"] = round(min(found["stock_s"]) / min(found["at_once_s"]), 2)


def _by_stock(bench: Bench, pipe: Any) -> None:
    """One after another, by diffusers."""
    side = bench.of(512, 64)
    for seed, (count, guidance) in enumerate(bench.of(ASKS, ASKS[:2])):
        rng = torch.Generator().manual_seed(seed)
        pipe("a red apple", side, side, num_inference_steps=bench.of(count, 2), guidance_scale=guidance, generator=rng)


def _at_once(bench: Bench, engine: Engine, generator: ImageGenerator, side: int) -> float:
    """Seconds until all pictures that are asked for are there."""
    begun = time.perf_counter()
    tickets = []
    for seed, (count, guidance) in enumerate(bench.of(ASKS, ASKS[:2])):
        inputs = generator.Inputs(prompt="a red apple", steps=bench.of(count, 2), guidance=guidance,
                                  size=f"{side}x{side}")  # fmt: skip
        tickets.append(engine.submit(Request(generator, inputs, seed=seed, plugin=PLUGIN)))
    for ticket in tickets:
        ticket.result(300)
    return round(time.perf_counter() - begun, 3)


def _stable_diffusion(bench: Bench, folder: Path) -> None:
    """A folder in the stock layout, with the U-Net, VAE and text encoder of version 1.5 in size."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    from studio_clip import tokenizer
    from studio_diffusion import export

    tokenizer.train(["a red apple", "octopus"] * 3, folder / "tokenizer", context=77)
    size = len(json.loads((folder / "tokenizer" / "vocab.json").read_text("utf-8")))
    blocks, channels = bench.of(4, 2), bench.of((128, 256, 512, 512), (16, 32))
    with torch.device(bench.device.name):
        text_encoder = CLIPTextModel(CLIPTextConfig(
            vocab_size=size, hidden_size=bench.of(768, 32), intermediate_size=bench.of(3072, 64),
            num_hidden_layers=bench.of(12, 2), num_attention_heads=bench.of(12, 2), bos_token_id=size - 2,
            eos_token_id=size - 1, pad_token_id=size - 1,
        ))  # fmt: skip
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=channels, layers_per_block=2, latent_channels=4, norm_num_groups=bench.of(32, 4),
            sample_size=bench.of(512, 16),
        )  # fmt: skip
    made = [each.to(bench.dtype) for each in (vae, _unet(bench), text_encoder)]
    export.save(folder / "model", *made, folder / "tokenizer")


def steps(bench: Bench, found: Found) -> None:
    """A step of the starter picture model, as the engine makes it, by width."""
    generators = Plugins.discover((), user_folder=None).generators
    subject = Subject(generators["image"], {"prompt": "a cat", "steps": 50}, bench.device.name,
                      bench.device.fast_dtype())  # fmt: skip
    for width in bench.of((1, 4, 16, 64), (1, 2)):
        states = [subject.start(seed) for seed in range(width)]
        found[str(width)] = bench.timed(partial(subject.step, states))


def text(bench: Bench, found: Found) -> None:
    """GPT-2 124M (random), 512 tokens in the cache: tokens a second by how many write together."""
    generators = Plugins.discover((), user_folder=None).generators
    with tempfile.TemporaryDirectory() as folder:
        words = bench.of(50257, 300)
        _gpt(Path(folder), words, bench.of(12, 2), bench.of(768, 64))
        prompt = " ".join(f"w{i % words}" for i in range(bench.of(512, 20)))
        given = {"prompt": prompt, "model": folder, "max_tokens": bench.of(200, 12)}
        subject = Subject(generators["text"], given, bench.device.name, bench.device.fast_dtype())
        for width in bench.of((1, 8, 32, 128), (1, 2)):
            states = [subject.start(seed) for seed in range(width)]
            while min(state.position for state in states) < bench.of(6, 2):  # the prompt has been read by then
                states = subject.step(states)
            took = []
            for _ in range(bench.of(30, 3)):
                begun = time.perf_counter()
                states = subject.step(states)
                bench.device.settle()
                took.append(time.perf_counter() - begun)
            found[str(width)] = {"run": _ms(took), "tokens_s": round(width / statistics.median(took))}


def _gpt(folder: Path, words: int, layers: int, width: int) -> None:
    """A decoder of random weights and a tokenizer of numbered words, as transformers has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from studio_gpt.load import save
    from studio_gpt.model import GPT, Config

    torch.manual_seed(0)
    save(GPT(Config(vocab=words, layers=layers, heads=width // 64, width=width)), folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def windows(bench: Bench, found: Found) -> None:
    """16,384 tokens in space and time, 8 heads of 64: everything seen, and windows, by backend; the first call apart,
    in which flex compiles.
    """
    grid = bench.of((16, 32, 32), (2, 8, 8))
    q, k, v = (bench.randn(1, grid[0] * grid[1] * grid[2], 8, 64, seed=seed) for seed in range(3))
    spans = bench.of({"eighth": (8, 16, 16), "twentieth": (6, 12, 11)}, {"eighth": (2, 4, 4)})
    dispatch = Dispatch()
    for kind, bias in {"full": None, **{name: SpaceTime(grid, span) for name, span in spans.items()}}.items():
        for name, reasons in dispatch.explain(Problem.of(q, k, v, bias)).items():
            if reasons or name in bench.of(("reference",), ("reference", "flex")):  # flex takes long to compile
                continue

            def work(name: str = name, bias: Any = bias) -> torch.Tensor:
                return dispatch.attend(q, k, v, bias=bias, backend=name)

            first = bench.seconds(work)
            found[f"{kind}_{name}"] = {"first_s": round(first, 3), **bench.timed(work, 5)}


def memory(bench: Bench, found: Found) -> None:
    """50 steps of mixed widths: what the allocator gave and what it took from the card; then a small budget."""
    generators = Plugins.discover((), user_folder=None).generators
    subject = Subject(generators["image"], {"prompt": "a cat", "steps": 60}, bench.device.name,
                      bench.device.fast_dtype())  # fmt: skip
    states = [subject.start(seed) for seed in range(bench.of(48, 3))]
    rng, gauge = random.Random(0), bench.device.gauge()
    gauge.begin(first=True)
    for _ in range(bench.of(50, 2)):
        subject.step(rng.sample(states, rng.randint(1, len(states))))
    bench.device.settle()
    found |= {"peak": gauge.peak(), "allocated": torch.cuda.max_memory_allocated()}
    found["reserved"] = torch.cuda.max_memory_reserved()
    del states, subject
    with _host(bench, memory="2GB") as host:
        tickets = [host.submit("image", seed=i, prompt="a house", steps=bench.of(20, 1), stored=False)
                   for i in range(bench.of(64, 2))]  # fmt: skip
        found["done_in_2_gb"] = sum(1 for each in tickets if each.result(200))


@contextmanager
def _host(bench: Bench, **more: Any) -> Iterator[studio.Studio]:
    """A Studio of its own folder on the device."""
    with tempfile.TemporaryDirectory() as folder, studio.Studio(home=folder, device=bench.device.name, **more) as host:
        yield host


def together(bench: Bench, found: Found) -> None:
    """Eight pictures of the starter with unlike steps and guidance, at once; and a text beside a running clip."""
    with Engine(bench.device.name) as engine:  # widths are learned in the first round
        found["at_once_s"] = [_at_once(bench, engine, ImageGenerator(), 128) for _ in range(bench.of(4, 1))]
    with _host(bench) as host:
        clip = {"prompt": "a horse bouncing", "frames": bench.of(32, 8), "steps": bench.of(100, 2)}
        host.generate("text", prompt="an apple", max_tokens=4)
        running = host.submit("video", seed=1, priority="background", stored=False, **clip)
        times = [time.perf_counter() for _ in host.stream("text", prompt="an apple", max_tokens=bench.of(200, 8))]
        gaps = sorted(after - before for before, after in pairwise(times))
        running.result(200)
        found["token_beside_clip"] = {"median": _ms(gaps), "p99": round(gaps[int(len(gaps) * 0.99)] * 1e3, 3)}


def failures(bench: Bench, found: Found) -> None:
    """An illegal index in a process of its own: what the engine says, and that the next process is well."""
    command = [sys.executable, str(Path(__file__).with_name("gpu.py")), "--lose", "--device", bench.device.name]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found["said"] = told.stdout.strip()[-400:] or told.stderr[-400:]
    found["well_after"] = float((bench.randn(8, 8) @ bench.randn(8, 8)).isfinite().all())


class Illegal(Generator):
    """Index beyond the end."""

    name, output = "illegal", studio.Text

    def generate(self, model: Any, inputs: Any, rng: Any) -> Media:
        table, places = torch.ones(4, device=model), torch.full((2,), 9, device=model)
        return studio.Text(str(table[places].tolist()))

    def load(self, device: str, dtype: str) -> str:
        return device


def lose(device: str) -> str:
    """What two requests are told when the first breaks the device."""
    generator, told = Illegal(), []
    with Engine(device) as engine:
        tickets = [engine.submit(Request(generator, generator.Inputs(), seed=i, plugin=PLUGIN)) for i in (1, 2)]
        for ticket in tickets:
            try:
                told.append(str(ticket.result(30)))
            except studio.StudioError as error:
                told.append(f"{type(error).__name__}: {error}")
    return " | ".join(told)
