"""What ``cluster bench`` measures, and on what: a target, a database and a cluster of its own; nothing of them is left.

``rig`` sets them up and counts what each costs, ``guard`` takes them down when the benchmark is killed, ``target`` is
the server that is polled, ``throughput`` the measurement.  They start the product as a user does, in processes of its
own, and import nothing of its roles.
"""
