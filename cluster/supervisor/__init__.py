"""The supervisor: the process behind ``cluster up``.  It starts the roles, hears at once when one ends, starts it again
within a budget, and stops them in order.

``core`` decides (pure), ``process`` holds one child, ``service`` performs, ``lock`` says who is in charge of a data
directory.  It imports no role: the roles are other programs.
"""
