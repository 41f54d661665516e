from studio_reaction import Reaction

import studio
import studio.testing


class TestReaction(studio.testing.Conformance):
    generator = Reaction()
    inputs = {"size": 32, "steps": 4}  # noqa: RUF012


def test_something_grows():
    generator = Reaction()
    model = generator.load(studio.ModelRef(), "cpu", "float32")
    state = generator.start(model, Reaction.Inputs.parse({"size": 48, "steps": 20}), studio.Rng(1))
    before = (state.x[1] > 0.1).float().mean()
    while not state.done:
        [state] = generator.step(model, [state])
    assert (state.x[1] > 0.1).float().mean() > before
