"""``/v1/embeddings``: unit vectors of texts.

Try it: ``curl http://127.0.0.1:7860/v1/embeddings -H 'Content-Type: application/json' -d '{"input": "a red apple"}'``
"""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse

from studio.errors import InputError
from studio.media import Embedding
from studio.server.catalogue import EMBEDDING
from studio.server.openai.shape import Body, usage_of
from studio.server.running import client_of, extras, results, submit

MOST_TEXTS = 256
router = APIRouter()


class EmbeddingBody(Body):
    """Texts to embed."""

    input: str | list[str] | list[int] | list[list[int]]
    model: str | None = Field(default=None, max_length=4000)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None

    @property
    def texts(self) -> list[str]:
        """The texts. Raises InputError for token numbers, empty texts and too many texts."""
        found = [self.input] if isinstance(self.input, str) else self.input
        texts = [each for each in found if isinstance(each, str) and each.strip()]
        if not texts or len(texts) < len(found):
            raise InputError("input", "`input` must be a text or a list of texts, not empty and not token numbers")
        if len(texts) > MOST_TEXTS:
            raise InputError("input", f"`input` has {len(texts):,} texts; the limit is {MOST_TEXTS}")
        return texts


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingBody, request: Request) -> JSONResponse:
    """Embed texts. With ``encoding_format: base64`` a vector is base64 of little-endian float32."""
    server = request.app.state.server
    choice = server.catalogue.choose(EMBEDDING, body.model)
    options = {**extras(choice, body.extra), "client": client_of(request), "stored": False}
    tickets = []
    for text in body.texts:
        tickets += await submit(server.studio, choice, {**options, "text": text})
    made = [each for each in await results(request, tickets) if isinstance(each, Embedding)]
    for each in made:
        if body.dimensions not in (None, each.vector.size):
            message = f"`dimensions` is {body.dimensions}, but the vectors of `{choice.name}` have {each.vector.size}"
            raise InputError("dimensions", message)
    data = [{"object": "embedding", "index": i, "embedding": _encoded(each, body)} for i, each in enumerate(made)]
    usage = usage_of(*made)
    counts = {"prompt_tokens": usage["prompt_tokens"], "total_tokens": usage["total_tokens"]}
    return JSONResponse({"object": "list", "data": data, "model": choice.name, "usage": counts})


def _encoded(made: Embedding, body: EmbeddingBody) -> Any:
    if body.encoding_format == "base64":
        return base64.b64encode(made.vector.astype("<f4").tobytes()).decode()
    return np.asarray(made.vector, np.float64).tolist()
