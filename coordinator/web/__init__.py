"""What people and programs reach over HTTP: the API below /api/v1, the page, /status, /healthz, /readyz and /metrics.

``routes.ROUTES`` is the one table of what is answered; see API.md.
"""
