"""A JobSpec of every shipped generator goes to JSON and back and gives the same bytes."""

import pytest

import studio
from studio.spec import JobSpec
from studio.testing.samples import good_values

FEW = {
    "steps": 2, "size": "64x64", "frames": 3, "max_tokens": 3, "stops": 2,
}  # fmt: skip
SIZES = {"ddpm": "", "video": "64x64"}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with studio.Studio(home=tmp_path_factory.mktemp("home"), device="cpu") as made:
        yield made


def test_all_of_them(host, subtests):
    assert len(host.generators) > 15
    for name, generator in sorted(host.generators.items()):
        if name == "audio":  # it has no weights of its own; see tests/plugins/studio_audio
            continue
        with subtests.test(name):
            given = {key: value for key, value in FEW.items() if key in generator.Inputs.model_fields}
            if "size" in given:
                given["size"] = SIZES.get(name, "64x64")
            made = host.generate(name, seed=3, invariant=True, **good_values(generator.Inputs, given))
            spec = made.recipe.spec
            assert JobSpec.parse(spec.to_json()) == spec
            again = host.generate(JobSpec.parse(spec.to_json()))
            assert again == made
            assert again.recipe.spec == spec
