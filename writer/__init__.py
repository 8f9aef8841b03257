"""The writer: results of all workers into PostgreSQL, each exactly once.

``core`` decides (streams, order, acknowledgements, flushes, retries), ``store`` and ``partitions`` know the database,
``service`` holds the sockets.  It keeps nothing on disk: what it has not acknowledged, its worker still has.
"""
