"""A worker: polls the projects of its partitions on their ticks and hands every result to the writer.

``core`` decides (pure; composed of ``ticker``, ``missed``, ``outbox``, ``link``), ``service`` performs, ``probe`` is
the HTTP side.
"""
