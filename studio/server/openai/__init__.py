"""The interface of OpenAI, below ``/v1``: for the clients that people have.

Fields that Studio does not know are accepted and ignored; inputs of the generator, such as `steps`, can be given beside
OpenAI's own fields. ``auto`` and null are the default everywhere.

Try it: ``openai.OpenAI(base_url="http://127.0.0.1:7860/v1", api_key="none").models.list()``
"""
