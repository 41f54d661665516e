"""JobSpec and ModelRef: JSON and back, one line for what is not one, and the same bytes wherever it is run."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio import models
from studio.contract import check
from studio.errors import InputError, ModelError, UnknownName, UsageError, WeightsError
from studio.spec import MAX_SPEC_BYTES, OPTIONS, JobSpec, ModelRef

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
refs = st.builds(
    ModelRef, source=texts, variant=texts, revision=texts, sha256=st.dictionaries(texts, texts, max_size=2)
)
specs = st.builds(
    JobSpec,
    generator=texts,
    inputs=st.dictionaries(texts, values, max_size=3),
    seed=st.integers(0, 2**64 - 1),
    model=refs,
    dtype=st.none() | texts,
    threads=st.none() | st.integers(1, 512),
    invariant=st.booleans(),
    parents=st.lists(texts, max_size=2).map(tuple),
    client=texts,
    priority=st.sampled_from(["interactive", "background"]),
    time_limit_s=st.none() | st.floats(0.001, 1e6),
    preview_every=st.integers(0, 100),
    label=texts,
    stored=st.booleans(),
    destination=st.none() | st.dictionaries(texts, values, max_size=2),
)


@given(specs)
def test_json_and_back_is_the_same(spec):
    assert JobSpec.parse(spec.to_json()) == spec
    assert JobSpec.parse(spec.to_json().encode()).to_json() == spec.to_json()


@given(specs)
def test_the_portable_part_names_nobody(spec):
    kept = json.loads(spec.portable().to_json())
    assert not kept.keys() & {"client", "priority", "time_limit_s", "preview_every", "label", "stored", "destination"}
    for name in ("generator", "inputs", "seed", "model", "dtype", "invariant", "parents"):
        assert getattr(spec.portable(), name) == getattr(spec, name)


@given(st.text(max_size=80) | st.binary(max_size=80) | values.map(json.dumps) | st.dictionaries(
    st.sampled_from([*JobSpec.model_fields]), values).map(json.dumps))  # fmt: skip
def test_what_is_no_spec_is_refused_in_one_line(text):
    refused = None
    try:
        spec = JobSpec.parse(text)
    except UsageError as error:
        refused = error.message
    assert "\n" not in refused and len(refused) < 400 if refused else JobSpec.parse(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"seeed": 1}, UnknownName, "no field of a job spec is called `seeed`"),
        ({"model": {"url": "x"}}, UnknownName, "no field of a job spec is called `model.url`"),
        ({"schema_version": 2}, InputError, "`schema_version` is 2, of a newer Studio; this one reads 1"),
        ({"seed": -1}, InputError, "`seed` is '-1'"),
        ({"priority": "now"}, InputError, "`priority` is 'now'"),
        ({"inputs": [1]}, InputError, "`inputs` is"),
    ],
)
def test_bad_fields_are_named(fields, error, words):
    with pytest.raises(error) as caught:
        JobSpec.check({"generator": "image", "seed": 1, **fields})
    assert caught.value.message.startswith(words)


def test_too_long_a_spec_is_not_read():
    with pytest.raises(UsageError, match="the limit is 8,388,608"):
        JobSpec.parse(b" " * (MAX_SPEC_BYTES + 1))


class Held(studio.Generator):
    """Say what it was loaded with."""

    name = "held"
    output = studio.Text

    class Inputs(studio.Inputs):
        model: str = studio.model_field("a file")
        packed: str = studio.variant_field("plain", help="how it is held", choices=["plain", "small"])
        more: list[str] = studio.addition_field("more", help="loaded with it")
        word: str = studio.field("", help="anything")

    def weights(self, ref):
        return [*([ref.path] if ref.path else []), *(each.path for each in ref.additions)]

    def load(self, ref, device, dtype):
        added = "".join(f" +{each.weight:g} {each.path.read_text()}" for each in ref.additions)
        return f"{ref.path.read_text() if ref.path else 'own'} {ref.variant}{added}"

    def generate(self, model, inputs, rng):
        return studio.Text(f"{model} {inputs.word} {rng.python.random()}")


class Old(Held):
    """The contract before ModelRef."""

    name = "old"

    load = staticmethod(lambda device, dtype: None)


PLUGIN = """
import studio
from tests.studio.test_spec import Held

@studio.hookimpl
def studio_generators():
    return [Held()]
"""


@pytest.fixture
def host(tmp_path):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    with studio.Studio(home=tmp_path / "home", device="cpu", plugins=[tmp_path / "plugin.py"]) as made:
        yield made


def test_weights_are_named_once_and_a_spec_gives_the_same_bytes(host, tmp_path):
    (tmp_path / "w.bin").write_text("one")
    made = host.generate("held", seed=4, model=str(tmp_path / "w.bin"), packed="small", word="x")
    spec = made.recipe.spec
    assert str(made).startswith("one small x")
    assert spec.inputs == {"word": "x"}
    assert (spec.model.source, spec.model.variant, list(spec.model.sha256)) == (
        str(tmp_path / "w.bin"),
        "small",
        ["w.bin"],
    )
    again = host.generate(JobSpec.parse(spec.to_json()))
    assert again == made
    assert again.recipe.spec == spec
    other = spec.model_copy(update={"model": spec.model.model_copy(update={"sha256": {"w.bin": "0" * 64}})})
    with pytest.raises(WeightsError, match=r"differ from the request.*`w\.bin`"):
        host.generate(other)


def test_additions_are_part_of_the_model(host, tmp_path):
    for name in ("w", "a", "b"):
        (tmp_path / name).write_text(name)
    model, one, two = (str(tmp_path / name) for name in ("w", "a", "b"))
    made = host.generate("held", seed=4, model=model, more=[f"{one}:0.5", f"{two}:-1", one])
    assert made.text.startswith("w plain +0.5 a +-1 b +1 a ")
    spec = made.recipe.spec
    assert [(each.kind, each.source, each.weight) for each in spec.model.additions] == [
        ("more", one, 0.5), ("more", two, -1.0), ("more", one, 1.0)
    ]  # fmt: skip
    assert "more" not in spec.inputs
    assert set(spec.model.sha256) == {"w", "a", "b"}
    assert host.generate(JobSpec.parse(spec.to_json())).text == made.text
    swapped = host.generate("held", seed=4, model=model, more=[f"{one}:-1", f"{two}:0.5", one])
    assert swapped.text.startswith("w plain +-1 a +0.5 b +1 a "), "equal files in another form are another model"
    with models.no_paths_but([model]), pytest.raises(ModelError, match="names a model by its path"):
        models.locate(spec.model)
    with models.no_paths_but([model, f"{one}:0.5", f"{two}:-1"]):
        assert models.locate(spec.model).additions == spec.model.additions
    other = spec.model_copy(update={"generator": "template"})
    with pytest.raises(InputError, match="has a `more`, but the generator accepts none"):
        host.generate(other.model_copy(update={"model": ModelRef(additions=spec.model.additions)}))


def test_models_that_are_not_here_are_refused_before_anything_runs(host):
    spec = JobSpec(generator="held", seed=1, model=ModelRef(source="hf:nobody/nothing"))
    with pytest.raises(ModelError, match="is not downloaded"):
        host.submit(spec)
    with pytest.raises(UnknownName, match="no model, file or folder is called"):
        host.submit(spec.model_copy(update={"model": ModelRef(source="no/such/folder")}))
    with pytest.raises(ModelError, match="is at revision `none`, not `abc`"):
        host.submit(spec.model_copy(update={"model": ModelRef(source=__file__, revision="abc")}))
    with pytest.raises(ModelError, match="the revision `abc` is given without a model"):
        host.submit(spec.model_copy(update={"model": ModelRef(revision="abc")}))
    with pytest.raises(InputError, match="`model` has the source"):
        host.submit(JobSpec(generator="template", inputs={"template": "a"}, seed=1, model=ModelRef(source=__file__)))


def test_options_beside_a_spec_are_refused(host):
    with pytest.raises(UsageError, match="`word` is given in addition to a JobSpec"):
        host.submit(JobSpec(generator="held", seed=1), word="x")


def test_every_way_in_says_for_whom(host):
    options = {"client": "ann", "priority": "background", "time_limit_s": 9.5, "preview_every": 2, "label": "l"}
    for ticket in (host.submit("held", **options), *host.submit_many("held", 1, **options)):
        spec = ticket.request.spec
        assert (spec.client, spec.priority, spec.time_limit_s, spec.preview_every) == ("ann", "background", 9.5, 2)
    assert list(host.stream("held", seed=1, **options))[-1].outcome == "finished"
    assert host.generate("held", seed=1, **options).recipe.spec.client == "", "the recipe names nobody"


def test_inputs_may_not_take_the_options_names():
    class Greedy(Held):
        """Take a name of the host."""

        class Inputs(studio.Inputs):
            client: str = studio.field("", help="mine")

    assert any("`client` has a name that is reserved" in reason for reason in check(Greedy()))
    assert "dtype" in OPTIONS


def test_a_generator_of_the_old_contract_is_refused_with_the_new_one():
    assert check(Old()) == ["its `load` must take (ref, device, dtype), where `ref` is a studio.ModelRef"]


def test_importing_it_loads_no_torch():
    code = "import sys, studio; studio.JobSpec(generator='a', seed=1); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
