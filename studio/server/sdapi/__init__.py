"""The interface of Stable Diffusion WebUI (AUTOMATIC1111), below ``/sdapi/v1``.

Try it: ``curl http://127.0.0.1:7860/sdapi/v1/sd-models``
"""
