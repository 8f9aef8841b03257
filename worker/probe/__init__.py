"""The prober: makes one HTTP exchange for one poll and says what it found.

``interface`` is the one interface, ``aiohttp_engine`` the engine behind it.  Its parts: ``request`` (what goes out,
redirects), ``expected`` (which statuses are a success), ``errors`` (codes and words), ``resolver`` and
``lookup_threads`` (names), ``connector`` and ``connection`` (sockets, keep-alive), ``in_flight`` (what is known so
far).  None of them decides anything about schedules, limits or storage.
"""
