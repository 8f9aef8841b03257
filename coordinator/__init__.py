"""The coordinator: who polls what, with how many slots; the admin socket and the HTTP status of a cluster.

``core`` decides (pure; composed of ``ring``, ``slots``, ``ownership``, ``link``), ``service`` performs.
"""
