"""Methods that plugins add to `Studio`, looked up by the hook `studio_methods` when an attribute is missing.

`methods.pyi` declares those of the built-in plugins for editors and type checkers.

Try it: ``python -c "import studio; print(studio.Studio().image)"``
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studio.extensions import Method
    from studio.plugins import Plugins


class Methods:
    """The base class of `Studio`: the methods that its plugins declare."""

    plugins: Plugins

    def __getattr__(self, name: str) -> Any:
        """The method of a plugin. Raises AttributeError, and PluginError if its module cannot be imported."""
        if name.startswith("_") or hasattr(type(self), name):  # a property that raised AttributeError raises it again
            return object.__getattribute__(self, name)
        if (method := self.plugins.methods.get(name)) is None:
            known = ", ".join(f"`{each}`" for each in self.plugins.methods) or "none"
            raise AttributeError(f"`Studio` has no method `{name}`; plugins add: {known}", name=name, obj=self)
        return MethodType(load(method), self)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.plugins.methods})


def load(method: Method) -> Callable[..., Any]:
    """Import the function of a method. Raises PluginError."""
    from studio.errors import PluginError
    from studio.extensions import resolve
    from studio.plugins.hooks import explain, let_interrupt

    hint = "`studio plugins` lists the plugins, and what is wrong with each"
    try:
        function = resolve(method.target)
    except BaseException as error:  # a plugin may raise anything, SystemExit too
        let_interrupt(error)
        message = f"the method `{method.name}` cannot be loaded from `{method.target}`: {explain(error)}"
        raise PluginError(message, hint=hint) from error
    if not callable(function):
        kind = type(function).__name__
        message = f"the method `{method.name}`: `{method.target}` is {kind}; it must be a function"
        raise PluginError(message, hint=hint)
    return function  # type: ignore[no-any-return]
