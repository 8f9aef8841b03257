"""The writer: results of all workers into PostgreSQL, each exactly once.

``core`` decides (streams, order, acknowledgements, flushes, retries), ``store`` and ``partitions`` know the database,
``service`` holds the sockets.  Beside them, ``rollups`` (planned by ``rollup_plan``, done by ``rollup_steps``) sums up
what was stored by minute, hour and day.  It keeps nothing on disk: what it has not acknowledged, its worker still has.
"""
