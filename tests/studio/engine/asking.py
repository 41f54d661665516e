"""Requests to generators of tests."""

from studio.engine.request import Request
from studio.recipe import PluginRef

PLUGIN = PluginRef(name="tests", version="1")


def ask(generator, inputs=None, seed=1, **options):
    """A request with these values for the generator's inputs, and these options of a JobSpec."""
    return Request.of(generator, generator.Inputs.parse(inputs or {}), seed, PLUGIN, **options)
