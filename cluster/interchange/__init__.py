"""Moving projects in and out: our own files, and those of other tools.

Each format has a module with a pure reader: text in, ``Imported`` out (cluster/interchange/model.py), and a writer
where the format can hold projects.  ``formats`` is the table of them, ``detection`` tells them apart, FORMATS.md says
what becomes of each field of each tool.

Rules: nothing is dropped without a note that says so.  A reader never touches files, the network or the database, and
knows nothing of what the table holds; that is the part of cluster/cli/importing.py.
"""
