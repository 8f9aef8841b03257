"""The WAL: results that are not committed yet, on a worker's disk.

What finished counts once ``append`` returned, and is kept until the writer has acknowledged it and some minutes more,
for a database that fails over to an older state.  Files::

    DATA_DIR/wal/<worker>/<stream_id>/                     one stream; flock()ed by the process that it belongs to
    DATA_DIR/wal/<worker>/<stream_id>/<first_seq>.wal      a segment: header, then entries; 20 digits, named after the
                                                           first batch in it; <first_seq>.<n>.wal if that name was taken
    DATA_DIR/wal/<worker>/<stream_id>/acked                the highest acknowledged batch; advisory
    DATA_DIR/wal/quarantine/                               damaged bytes (copied) and foreign files (moved), never
                                                           deleted by us

Directories have mode 0700, files 0600.  A stream whose directory nobody has locked is an *orphan*: its process died,
and any worker of the data directory may adopt it.

Modules: ``format`` (pure) has the bytes and ``segment`` the file operations.  ``directory`` is the worker's share of
the disk, ``log`` one stream in it: ``chain`` its segments, which ``appender`` writes, ``syncer`` makes safe and
``reader`` reads past damage; ``acked`` notes how far it was acknowledged.  ``recovery`` opens what was left behind,
``quarantine`` keeps what can't be used, ``listing`` looks without touching, ``errors`` has what is raised.

Rules: an entry is delivered in order and once, or as a hole (an empty body) when its content is lost; damage is never
an exception but a counted range and one line in the log; a failed fsync is never tried again on the same file.  There
is no asyncio here: ``append`` is meant for the loop, ``read`` and ``sync`` for a thread.
"""
