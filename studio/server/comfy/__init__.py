"""The interface of ComfyUI: ``/prompt``, ``/ws``, ``/queue``, ``/history``, ``/view``, ``/object_info`` and others.

Its paths are there below ``/api``, too.

A graph of nodes is data: it is translated to requests of generators, which are chosen by the inputs that they declare.
The known nodes are in `nodes`; a graph with any other is refused, with its name.

Try it: ``curl http://127.0.0.1:7860/object_info/KSampler``
"""
