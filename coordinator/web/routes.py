"""The one table of what is answered over HTTP: method, path, scope, types, handler.

The server, the OpenAPI document, the check of scopes and the list in API.md are all made of it, or held against it.
"""

from typing import Any

from aiohttp import web

from cluster import history
from cluster.access.scopes import RouteScope
from coordinator.web import access, access_endpoints, docs_endpoints, shapes
from coordinator.web import cluster_endpoints as cluster_
from coordinator.web import history_endpoints as history_
from coordinator.web import project_endpoints as projects_
from coordinator.web.route import API, Route

ROUTES: tuple[Route, ...] = (
    Route(
        method="GET", path="/status", scope="read", operation="status", handler=cluster_.get_status,
        summary="the status document, as `cluster status --json` prints it", answer=shapes.StatusAnswer,
    ),
    Route(
        method="GET", path="/healthz", scope="none", operation="healthz", handler=cluster_.get_healthz,
        summary="200 while the coordinator's loop turns", media_type="text/plain",
    ),
    Route(
        method="GET", path="/readyz", scope="none", operation="readyz", handler=cluster_.get_readyz,
        summary="200 when everything works, else 503 and the reasons", answer=dict[str, Any],
    ),
    Route(
        method="GET", path="/metrics", scope="read", operation="metrics", handler=cluster_.get_metrics,
        summary="metrics for Prometheus", media_type="text/plain",
    ),
    Route(
        method="GET", path=f"{API}/projects", scope="read", operation="listProjects",
        handler=projects_.list_projects, summary="projects, a page at a time", query=shapes.ProjectsQuery,
        answer=shapes.ProjectPage,
    ),
    Route(
        method="POST", path=f"{API}/projects", scope="write", operation="createProject",
        handler=projects_.create_project, summary="add a project; it is polled at once", body=shapes.NewProject,
        body_as_map=True, answer=shapes.Project, status=201, etag=True,
    ),
    Route(
        method="POST", path=f"{API}/projects/bulk", scope="write", operation="changeProjects",
        handler=projects_.change_projects, summary="add, switch or delete many projects, all of them or none",
        body=shapes.BulkSwitch | shapes.BulkCreate, body_as_map=True, answer=shapes.BulkAnswer,
    ),
    Route(
        method="GET", path=f"{API}/projects/{{id}}", scope="read", operation="getProject",
        handler=projects_.get_project, summary="a project, how it is, and its newest result",
        query=shapes.ProjectQuery, answer=shapes.Project, etag=True,
    ),
    Route(
        method="PATCH", path=f"{API}/projects/{{id}}", scope="write", operation="patchProject",
        handler=projects_.patch_project, summary="change fields of a project (JSON merge patch)",
        body=shapes.ProjectPatch, body_as_map=True, answer=shapes.Project, etag=True, if_match=True,
    ),
    Route(
        method="DELETE", path=f"{API}/projects/{{id}}", scope="write", operation="deleteProject",
        handler=projects_.delete_project, summary="delete a project; its results stay until they are too old",
        query=shapes.DeleteQuery, status=204, if_match=True,
    ),
    Route(
        method="POST", path=f"{API}/projects/{{id}}/enable", scope="write", operation="enableProject",
        handler=projects_.enable_project, summary="begin to poll a project", answer=shapes.Project, etag=True,
        if_match=True,
    ),
    Route(
        method="POST", path=f"{API}/projects/{{id}}/disable", scope="write", operation="disableProject",
        handler=projects_.disable_project, summary="stop polling a project", answer=shapes.Project, etag=True,
        if_match=True,
    ),
    Route(
        method="GET", path=f"{API}/projects/{{id}}/results", scope="read", operation="listResults",
        handler=history_.list_results, summary="results of a project, the newest first", query=shapes.ResultsQuery,
        answer=shapes.ResultPage,
    ),
    Route(
        method="GET", path=f"{API}/projects/{{id}}/missed", scope="read", operation="listMissed",
        handler=history_.list_missed, summary="ticks of a project that were not polled, as ranges, the newest first",
        query=shapes.RangeQuery, answer=shapes.MissedPage,
    ),
    Route(
        method="GET", path=f"{API}/projects/{{id}}/summary", scope="read", operation="getSummary",
        handler=history_.get_summary, summary="uptime and response times of a project over a time",
        query=shapes.SummaryQuery, answer=history.Summary,
    ),
    Route(
        method="GET", path=f"{API}/overview", scope="read", operation="getOverview", handler=history_.get_overview,
        summary="uptime and response times of many projects", query=shapes.OverviewQuery, answer=shapes.OverviewPage,
    ),
    Route(
        method="GET", path=f"{API}/changes", scope="read", operation="listChanges", handler=history_.list_changes,
        summary="when projects went down and came up, the newest first", query=shapes.ChangesQuery,
        answer=shapes.ChangePage,
    ),
    Route(
        method="GET", path=f"{API}/events", scope="read", operation="streamEvents", handler=cluster_.stream_events,
        summary="server-sent events: status, change, projects", media_type="text/event-stream",
    ),
    Route(
        method="GET", path=f"{API}/workers", scope="read", operation="listWorkers", handler=cluster_.list_workers,
        summary="workers and their load", answer=shapes.WorkerPage,
    ),
    Route(
        method="GET", path=f"{API}/workers/{{name}}", scope="read", operation="getWorker",
        handler=cluster_.get_worker, summary="one worker", answer=shapes.WorkerAnswer,
    ),
    Route(
        method="POST", path=f"{API}/workers/{{name}}/drain", scope="admin", operation="drainWorker",
        handler=cluster_.drain_worker, summary="move a worker's projects to others and end it",
        answer=shapes.DrainAnswer,
    ),
    Route(
        method="GET", path=f"{API}/scale", scope="read", operation="getScale", handler=cluster_.get_scale,
        summary="how many workers and requests there are to be", answer=shapes.ScaleAnswer,
    ),
    Route(
        method="POST", path=f"{API}/scale", scope="admin", operation="setScale", handler=cluster_.set_scale,
        summary="set how many workers and requests there are to be", body=shapes.ScaleBody,
        answer=shapes.ScaleAnswer,
    ),
    Route(
        method="POST", path=f"{API}/reload", scope="admin", operation="reload", handler=cluster_.reload_projects,
        summary="read all projects from the table again", answer=shapes.ReloadAnswer,
    ),
    Route(
        method="GET", path=f"{API}/status", scope="read", operation="getStatus", handler=cluster_.get_status,
        summary="the status document", answer=shapes.StatusAnswer,
    ),
    Route(
        method="GET", path=f"{API}/session", scope="none", operation="getSession", handler=access_endpoints.get_session,
        summary="who is asking, and what they may do", answer=access.SessionView,
    ),
    Route(
        method="POST", path=f"{API}/session", scope="none", operation="logIn", handler=access_endpoints.log_in,
        summary="log in; the answer sets the session's cookie", body=access.LoginBody, answer=access.SessionView,
    ),
    Route(
        method="DELETE", path=f"{API}/session", scope="none", operation="logOut", handler=access_endpoints.log_out,
        summary="log out", status=204,
    ),
    Route(
        method="GET", path=f"{API}/audit-log", scope="admin", operation="listAuditLog",
        handler=access_endpoints.list_audit_log, summary="who changed what, the newest first",
        query=access.AuditQuery, answer=access.AuditPage,
    ),
    Route(
        method="GET", path=f"{API}/openapi.json", scope="none", operation="getOpenapi",
        handler=docs_endpoints.get_openapi, summary="this API as an OpenAPI 3.1 document", answer=dict[str, Any],
    ),
    Route(
        method="GET", path=f"{API}/docs", scope="none", operation="getDocs", handler=docs_endpoints.get_docs,
        summary="a page to read and try the API", media_type="text/html",
    ),
    Route(
        method="GET", path=f"{API}/docs/docs.js", scope="none", operation="getDocsScript",
        handler=docs_endpoints.get_docs_script, summary="its script", media_type="text/javascript",
    ),
    Route(
        method="GET", path=f"{API}/docs/docs.css", scope="none", operation="getDocsStyle",
        handler=docs_endpoints.get_docs_style, summary="its style", media_type="text/css",
    ),
)  # fmt: skip

_BY_PLACE: dict[tuple[str, str], Route] = {(route.method, route.path): route for route in ROUTES}


def route_of(request: web.Request) -> Route | None:
    """The route by which a request is answered; None when there is none, or only with another method."""
    resource = request.match_info.route.resource
    if resource is None:
        return None
    method = "GET" if request.method == "HEAD" else request.method
    return _BY_PLACE.get((method, resource.canonical))


def scope_of(request: web.Request) -> RouteScope:
    """What a request that has a route asks for.  ``admin`` for one that nobody gave a scope."""
    route = route_of(request)
    if route is not None:
        return route.scope
    resource = request.match_info.route.resource
    place = "" if resource is None else resource.canonical
    return "none" if place in {"/", "/static"} or place.startswith("/static/") else "admin"  # the page's own files
