"""The prober: makes one HTTP exchange for one poll and says what it found.

``interface`` is the one interface, ``aiohttp_engine`` the engine behind it.  ``request`` (what goes out, redirects),
``expected`` (which statuses are a success), ``errors`` (codes and words), ``resolver`` and ``connection`` (names,
sockets, keep-alive) are the engine's parts and decide nothing about schedules, limits or storage.
"""
