"""Who may use the cluster over HTTP, and who changed what: tokens, users, the audit log.

What decides is pure (``scopes``, ``rate_limit``, ``origin``); what reads and writes the tables takes a connection and
keeps none.
"""
