"""The module of old programs; see docs/python.md. New ones use the package ``tbus``."""
