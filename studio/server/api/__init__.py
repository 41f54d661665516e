"""Studio's own interface, below ``/api``: jobs and their events, artifacts, generators, models, devices and metrics.

Try it: ``curl http://127.0.0.1:7860/api/openapi.json``
"""
