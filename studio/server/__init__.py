"""The HTTP server: one process that holds the models and serves several HTTP interfaces to them.

`create_app` builds the ASGI application, `serve` runs it. Each interface has a folder: `api` (Studio's own), `openai`
and `sdapi` (that of Stable Diffusion WebUI). Only the commands `studio serve` and `studio token` import this package.

Try it: ``studio serve``, then ``curl http://127.0.0.1:7860/v1/models``
"""
