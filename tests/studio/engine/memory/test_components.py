"""Parts that models share, and models that are put off to host memory and come back: counted once, the same bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import studio
from studio.engine.calls.call import run_inline
from studio.engine.memory import model_cache
from studio.engine.memory.ledger import Ledger
from studio.engine.memory.model import NotEnoughMemory
from studio.engine.memory.model_cache import ModelCache
from tests.studio.engine.bench import ask

WIDE, KIB = 64, 1 << 10
PART = (WIDE * WIDE + WIDE) * 4  # bytes of a layer in float32


class Pair(torch.nn.Module):
    """A layer, a tied one and a buffer."""

    def __init__(self, slope=0.5):
        super().__init__()
        self.config = {"slope": slope}
        self.one = torch.nn.Linear(WIDE, WIDE)
        self.two = torch.nn.Linear(WIDE, WIDE, bias=False)
        self.two.weight = self.one.weight
        self.register_buffer("shift", torch.full((1,), slope), persistent=False)

    def forward(self, x):
        return self.two(torch.tanh(self.one(x))) + self.shift


def component(folder, name, seed):
    file = folder / f"{name}.safetensors"
    weights = torch.nn.Linear(WIDE, WIDE).state_dict()
    rng = torch.Generator().manual_seed(seed)
    save_file({f"one.{key}": torch.randn(value.shape, generator=rng) for key, value in weights.items()}, file)
    return file


def generator(name, files, slope=0.5):
    """A generator of a class of its own, whose `load` no other shares."""

    class Made(studio.Generator):
        """Run its parts, one after another."""

        output = studio.Text
        loads = 0

        def weights(self, ref):
            return files

        def load(self, ref, device, dtype):
            self.loads += 1
            return [
                studio.module(lambda: Pair(slope), [file], device=device, dtype=dtype,
                              rename=lambda stored: stored) for file in files
            ]  # fmt: skip

    made = Made()
    made.name = name
    return made


@pytest.fixture
def files(tmp_path):
    """Three parts, and a copy of the first under another name."""
    found = {name: component(tmp_path, name, seed) for seed, name in enumerate("abc")}
    found["a2"] = component(tmp_path, "a2", 0)
    return found


def run(model):
    x = torch.linspace(-1, 1, WIDE)[None]
    with torch.inference_mode():
        for each in model.value:
            x = each(x)
    return x


def test_a_part_that_two_models_use_is_held_and_counted_once(files):
    ledger = Ledger(100 * PART)
    source = ModelCache("cpu", ledger=ledger)
    one = run_inline(source.get(ask(generator("one", [files["a"], files["b"]]))))
    alone = ledger.used
    other = run_inline(source.get(ask(generator("other", [files["a2"], files["c"]]))))
    assert one.value[0] is other.value[0], "equal content is one part, whatever the file is called"
    assert one.value[1] is not other.value[1]
    assert ledger.used - alone == other.components[1].size + other.unshared
    assert ledger.used < alone * 2 - PART / 2


def test_what_is_configured_otherwise_is_another_part(files):
    source = ModelCache("cpu", ledger=Ledger(100 * PART))
    one = run_inline(source.get(ask(generator("one", [files["a"]], 0.5))))
    other = run_inline(source.get(ask(generator("other", [files["a"]], 0.25))))
    narrow = run_inline(source.get(ask(generator("narrow", [files["a"]], 0.5), dtype="bfloat16")))
    assert len({id(each.value[0]) for each in (one, other, narrow)}) == 3


def test_a_shared_part_outlives_either_model(files):
    ledger = Ledger(100 * PART)
    source = ModelCache("cpu", ledger=ledger)
    one = run_inline(source.get(ask(generator("one", [files["a"], files["b"]]))))
    kept = generator("kept", [files["a"], files["c"]])
    other = run_inline(source.get(ask(kept)))
    before = run(other)
    gone = one.bytes_freed
    was = ledger.used
    assert source.evict_all(lambda model: 0 if model is one else None) == 1
    assert ledger.used == was - gone
    assert torch.equal(run(other), before)
    source.evict_all(lambda model: 0)
    assert ledger.used == 0
    assert torch.equal(run(run_inline(source.get(ask(kept)))), before)


def test_two_that_share_leave_together_for_a_third(files):
    source = ModelCache("cpu", ledger=Ledger(int(2.5 * PART)))
    one, other = generator("one", [files["a"]]), generator("other", [files["a"]])
    run_inline(source.get(ask(one)))
    run_inline(source.get(ask(other)))
    third = run_inline(source.get(ask(generator("third", [files["b"], files["c"]]))))
    assert source.resident() == [third]
    with pytest.raises(NotEnoughMemory):
        run_inline(source.get(ask(one), rank=lambda model: None))


def test_a_load_that_fails_leaves_nothing(files):
    ledger = Ledger(100 * PART)
    source = ModelCache("cpu", ledger=ledger)
    bad = generator("bad", [files["a"], files["b"].with_name("none.safetensors")])
    bad.weights = lambda ref: [files["a"]]
    with pytest.raises(studio.StudioError):
        run_inline(source.get(ask(bad)))
    assert ledger.used == 0
    assert not source.components._components


def put_off_models(files, budget, host):
    source = ModelCache("cpu", ledger=Ledger(budget), host=Ledger(host))
    return source, generator("one", [files["a"]]), generator("other", [files["b"]])


def test_put_off_and_back_is_the_same_and_counted_where_it_is(files):
    """Host memory stands in for the device here; the way is the same."""
    source, one, other = put_off_models(files, int(1.5 * PART), 10 * PART)
    first = run_inline(source.get(ask(one)))
    expected, weight = run(first), first.value[0].one.weight
    size = first.bytes_freed
    run_inline(source.get(ask(other)))
    assert (first.resident, first.offloaded) == (False, True)
    assert (source.components.host.used, first.value[0].one.weight is weight) == (size, False)
    assert first.value[0].two.weight is first.value[0].one.weight, "tied weights stay tied"
    again = run_inline(source.get(ask(one)))
    assert again is first
    assert torch.equal(run(again), expected)
    assert one.loads == 1, "it came back without a load"
    assert source.components.host.used == size, "now the other is there"
    source.clear()
    assert (source.ledger.used, source.components.host.used) == (0, 0)


def test_without_room_on_the_host_it_is_dropped(files):
    source, one, other = put_off_models(files, int(1.5 * PART), PART // 2)
    first = run_inline(source.get(ask(one)))
    run_inline(source.get(ask(other)))
    assert (first.offloaded, first.value, source.components.host.used) == (False, None, 0)
    run_inline(source.get(ask(one)))
    assert one.loads == 2


def test_a_prefetch_takes_free_room_only(files):
    source, one, other = put_off_models(files, int(1.5 * PART), 10 * PART)
    first = run_inline(source.get(ask(one)))
    second = run_inline(source.get(ask(other)))
    source.prefetch(ask(one))
    assert (first.resident, second.resident) == (False, True)
    source.evict_all(lambda model: 0)
    source.prefetch(ask(one))
    assert first.resident
    assert source.ledger.used <= source.ledger.budget


@given(
    wanted=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12),
    budget=st.floats(2.1, 6), host=st.sampled_from([None, 0.0, 1.2, 3.0]),
)  # fmt: skip
@example(wanted=[(0, False), (1, False), (3, False), (1, False)], budget=3.0, host=None)  # who left was shared with
@settings(max_examples=25, deadline=None)
def test_ledgers_add_up_whatever_comes_and_goes(tmp_path_factory, wanted, budget, host):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_cache, "release_freed", lambda device: None)  # collecting garbage takes time
        come_and_go(tmp_path_factory, wanted, budget, host)


def come_and_go(tmp_path_factory, wanted, budget, host):
    folder = tmp_path_factory.getbasetemp() / "parts"
    folder.mkdir(exist_ok=True)
    files = {name: component(folder, name, seed) for seed, name in enumerate("abc")}
    sets = (["a"], ["a", "b"], ["b", "c"], ["c"], ["a", "c"])
    generators = [generator(f"g{index}", [files[name] for name in names]) for index, names in enumerate(sets)]
    source = ModelCache(
        "cpu", ledger=Ledger(int(budget * PART)), host=None if host is None else Ledger(int(host * PART))
    )
    seen = {}
    for index, drop in wanted:
        model = run_inline(source.get(ask(generators[index])))
        made = run(model)
        assert torch.equal(seen.setdefault(index, made), made)
        if drop:
            source.evict_all(lambda each: 0)
        used = {component for each in source.resident() for component in each.components}
        assert all(component.on_device for component in used)
        own = sum(each.unshared for each in source.resident())
        assert source.ledger.used == own + sum(component.size for component in used) <= source.ledger.budget
        if source.components.host is not None:
            off = {component for component in source.components._components.values() if not component.on_device}
            assert (
                source.components.host.used == sum(component.size for component in off) <= source.components.host.budget
            )
    source.clear()
    assert source.ledger.used == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_waits_in_pinned_memory(files):
    source = ModelCache("cuda", ledger=Ledger(int(1.5 * PART)), host=Ledger(10 * PART))
    one, other = generator("one", [files["a"]]), generator("other", [files["b"]])
    first = run_inline(source.get(ask(one)))
    expected = [value.clone() for value in first.value[0].parameters()]
    run_inline(source.get(ask(other)))
    assert first.value[0].one.weight.is_pinned()
    back = run_inline(source.get(ask(one))).value[0]
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, back.parameters(), strict=True))


class Packed(torch.nn.Module):
    """Stands for a layer whose weights a library has packed to a quarter, where torch does not see them."""

    packed_bytes = WIDE * WIDE

    def forward(self, x):
        return x


class Shrink:
    """Puts `Packed` into the place of the layers."""

    def __call__(self, module):
        module.one = module.two = Packed()

    def __eq__(self, other):
        return type(other) is Shrink

    def __hash__(self):
        return 1


class Variant(studio.Generator):
    """One file, loaded as it is or packed."""

    output = studio.Text

    class Inputs(studio.Inputs):
        packed: str = studio.variant_field("", help="how", choices=["", "packed"])

    def __init__(self, file):
        self.file = file

    def weights(self, ref):
        return [self.file]

    def load(self, ref, device, dtype):
        pack = Shrink() if ref.variant == "packed" else None
        return studio.module(Pair, [self.file], device=device, dtype=dtype, pack=pack)


def test_variants_of_one_file_are_models_of_their_own_and_what_is_packed_is_counted(files):
    device = ModelCache("cpu", ledger=Ledger(1 << 20))
    packed, plain, again = (ask(Variant(files["a"]), {"packed": name}) for name in ("packed", "", "packed"))
    shrunk = run_inline(device.get(packed))
    assert device.ledger.used == shrunk.size == Packed.packed_bytes + 4, "a buffer of one number stays"
    assert shrunk.saved == PART - Packed.packed_bytes
    whole = run_inline(device.get(plain))
    assert isinstance(whole.value.one, torch.nn.Linear)
    assert device.ledger.used == shrunk.size + whole.size
    assert run_inline(device.get(again)) is shrunk
    assert device.missing(packed) == 0
    device.evict_all(lambda model: 0)
    assert device.missing(packed) >= PART, "it is filled before it is packed"
    device.ledger.hold("others", (1 << 20) - Packed.packed_bytes - 100)
    with pytest.raises(NotEnoughMemory):
        run_inline(device.get(packed))


def test_a_model_evicted_while_it_comes_back_keeps_its_weights(files):
    """Its copies are under way on a stream of their own; what is saved of them then is the copies, complete."""
    from studio.testing.fake_gpu import FakeGpu

    with FakeGpu.installed(), torch.no_grad():
        source = ModelCache("gpu:0", ledger=Ledger(100 * PART), host=Ledger(100 * PART))
        made = generator("one", [files["a"]])
        model = run_inline(source.get(ask(made)))
        before = [each.tolist() for each in model.value[0].state_dict().values()]
        source.evict_all(lambda model: 0)
        assert model.offloaded
        source.prefetch(ask(made))  # nobody has used it yet
        source.evict_all(lambda model: 0)
        run_inline(source.get(ask(made)))
        assert [each.tolist() for each in model.value[0].state_dict().values()] == before


def with_own(name, files, numbers):
    """A generator whose model has a tensor of so many float32 besides its parts, and a file that holds no weights."""
    made = generator(name, files)
    load = made.load
    type(made).load = lambda self, ref, device, dtype: Own(load(ref, device, dtype), torch.ones(numbers, device=device))
    other = files[0].parent / "config.json"
    other.write_text("{}" * 5000)
    made.weights = lambda ref: [*files, other]
    return made


class Own:
    """The parts, and `kept`."""

    def __init__(self, components, kept):
        self.components, self.kept = components, kept

    def __iter__(self):
        return iter(self.components)


def test_what_is_outside_of_parts_is_counted_as_tensors_and_stays_while_they_wait(files):
    source = ModelCache("cpu", ledger=Ledger(3 * PART), host=Ledger(10 * PART))
    made = with_own("one", [files["a"]], 1000)
    model = run_inline(source.get(ask(made)))
    expected = run(model)
    assert model.unshared == 4000, "the file that was not loaded does not count"
    assert source.ledger.used == model.size == 4000 + model.components[0].size
    source.evict_all(lambda each: 0)
    assert (model.offloaded, source.ledger.used) == (True, 4000)
    assert source.missing(ask(made)) == model.components[0].size
    again = run_inline(source.get(ask(made)))
    assert (again is model, made.loads, source.ledger.used) == (True, 1, model.size)
    assert torch.equal(run(again), expected)


def test_what_stays_goes_too_when_its_place_is_needed(files):
    source = ModelCache("cpu", ledger=Ledger(int(2.1 * PART)), host=Ledger(10 * PART))
    made = with_own("one", [files["a"]], 1000)
    model = run_inline(source.get(ask(made)))
    run_inline(source.get(ask(generator("two", [files["b"], files["c"]]))))
    assert (model.offloaded, model.value, source.components.host.used) == (False, None, 0)
    assert source.ledger.used <= source.ledger.budget
    run(run_inline(source.get(ask(made))))
    assert made.loads == 2


def test_a_model_that_is_mostly_outside_of_parts_is_dropped(files):
    source = ModelCache("cpu", ledger=Ledger(9 * PART), host=Ledger(10 * PART))
    model = run_inline(source.get(ask(with_own("one", [files["a"]], WIDE * WIDE))))
    source.evict_all(lambda each: 0)
    assert (model.offloaded, model.value, source.ledger.used) == (False, None, 0)
