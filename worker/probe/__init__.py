"""The prober: makes one HTTP exchange for one poll and says what it found.

``interface`` is the one interface.  Two engines are behind it, ``lean_engine`` for nearly every project and
``aiohttp_engine`` for the others; ``choose`` says which is whose.  Their parts in common: ``request`` (what goes out,
redirects), ``expected`` (which statuses are a success), ``errors`` (codes and words), ``resolver`` and
``lookup_threads`` (names), ``guard`` (which addresses), ``judging`` and ``json_document`` (assertions), ``connector``
and ``pool`` (sockets, keep-alive), ``connection_settings``, ``tls_contexts`` and ``tunnel`` (connections that are not
the ordinary ones), ``in_flight`` (what is known so far).  What speaks HTTP on a connection is each engine's own:
``lean_connection`` with ``deadlines``, and ``connection``.  None of them decides anything about schedules, limits or
storage.
"""
