"""The forms that all routes of the OpenAI interface share: errors, bodies, and numbers of tokens.

Try it: ``curl http://127.0.0.1:7860/v1/models/none``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from studio.media import Media
from studio.server.errors import HttpProblem

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(problem: HttpProblem) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    kind = _KINDS.get(problem.status, "server_error" if problem.status >= 500 else "invalid_request_error")
    return {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}}


class Body(BaseModel):
    """Base of request bodies. Unknown fields are kept in `extra`; null and ``auto`` count as not given."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_defaults(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None and value != "auto"}

    @property
    def extra(self) -> dict[str, Any]:
        """The fields that the interface does not define."""
        return dict(self.model_extra or {})

    @classmethod
    def of_form(cls, values: Mapping[str, Any]) -> Self:
        """The body of the texts of a form. Raises pydantic's ValidationError."""
        return cls.model_validate(dict(values))


class TokenCounts(BaseModel):
    """The numbers of tokens in a recipe."""

    prompt: int = 0
    completion: int = 0


def usage_of(*made: Media) -> dict[str, int]:
    """The tokens of outputs, as far as their generator counted them; of an equal prompt once."""
    found = [each.recipe.facts.get("tokens") for each in made if each.recipe]
    counts = [TokenCounts.model_validate(each) for each in found if isinstance(each, dict)]
    prompt, written = max((each.prompt for each in counts), default=0), sum(each.completion for each in counts)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def finish_reason(made: Media) -> str:
    """Why a text ended: ``stop``, or ``length`` if there was no space for more."""
    ended = made.recipe.facts.get("ended") if made.recipe else None
    return "length" if ended in ("length", "context") else "stop"
