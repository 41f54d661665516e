"""``/v1/completions``: continuations of texts, whole or streamed.

Try it: ``curl http://127.0.0.1:7860/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "Once"}'``
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from studio.errors import InputError
from studio.media import Media
from studio.server.catalogue import COMPLETION
from studio.server.openai.sampling import Explained, SamplingBody, check_amount, completion_logprobs
from studio.server.openai.shape import finish_reason
from studio.server.openai.writing import AnswerForm, Writing, answer

MOST_LOGPROBS = 5
router = APIRouter()


class CompletionBody(SamplingBody):
    """Texts to be continued."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = Field(default=None, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)

    @property
    def prompts(self) -> list[str]:
        """The texts. Raises InputError for token numbers."""
        found = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        texts = [each for each in found if isinstance(each, str)]
        if not texts or len(texts) < len(found):
            raise InputError("prompt", "`prompt` must be a text or a list of texts, not token numbers")
        return texts


class _CompletionForm(AnswerForm):
    """The JSON of completions."""

    prefix, whole, piece = "cmpl-", "text_completion", "text_completion"

    def choice(self, index: int, text: str, reason: str, explained: Explained | None) -> dict[str, Any]:
        noted = completion_logprobs(explained, self.top) if explained else None
        return {"index": index, "text": text, "logprobs": noted, "finish_reason": reason}

    def delta(
        self, index: int, text: str | None, reason: str | None, explained: Explained | None
    ) -> dict[str, Any] | None:
        if text is None and reason is None:
            return None
        noted = completion_logprobs(explained, self.top) if explained else None
        return {"index": index, "text": text or "", "logprobs": noted, "finish_reason": reason}

    def reason(self, made: Media) -> str:
        return finish_reason(made)


@router.post("/v1/completions")
async def completions(body: CompletionBody, request: Request) -> Response:
    """Continue texts. With `stream` the text is sent as it is written."""
    server = request.app.state.server
    prompts = body.prompts
    for name, wrong in (("suffix", body.suffix), ("best_of", body.best_of not in (None, 1, body.n))):
        if wrong:
            raise InputError(name, f"`{name}` is not supported; leave it out")
    check_amount(body, prompts, server.limits, body.n * len(prompts))
    choice = server.catalogue.choose(COMPLETION, body.model)
    shared = body.values(choice)
    before = prompts if body.echo else []
    writing = Writing(
        choice,
        [{**shared, "prompt": each} for each in prompts],
        body.n,
        explain=body.logprobs is not None,
        top=max(1, body.logprobs or 0),
        before=before,
    )
    return await answer(request, writing, _CompletionForm(choice.name, body.logprobs or 0), body)
