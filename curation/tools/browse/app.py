"""The pages as a web application: addresses, who may ask, and what browsers may do with the answers."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from curation.base.errors import CocuError
from curation.tools.browse.pages import results
from curation.tools.browse.pages.layout import Site
from curation.tools.browse.pictures import SIDES
from curation.tools.browse.views import Views

LOCAL = ("127.0.0.1", "localhost")
LONGEST = 200  # characters of a query
LARGEST_FORM = 1 << 14  # bytes
FILES = {"style.css": "text/css", "keys.js": "text/javascript"}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def guarded(app: Any, token: str) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An application behind a token, the first part of every address; only for requests to this machine by its name.

    A page elsewhere that makes a browser ask here knows no token, and a name that is made to lead here is not ours.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        first = scope["path"].lstrip("/").partition("/")[0]
        if len(hosts) != 1 or hosts[0].rpartition(":")[0] not in LOCAL:
            refusal: Any = PlainTextResponse("not for this host\n", 400)
            await refusal(scope, receive, send_with_headers)
        elif not secrets.compare_digest(first.encode(), token.encode()):
            refusal = PlainTextResponse("the address lacks its token: take the one that cocu browse printed\n", 403)
            await refusal(scope, receive, send_with_headers)
        else:
            await app({**scope, "root_path": f"/{token}"}, receive, send_with_headers)

    return answer


def number(request: Request, name: str, default: int, least: int, most: int = 10**9) -> int:
    """A whole number of a query. Raises CocuError for anything else."""
    value = request.query_params.get(name) or str(default)
    if not (value.isascii() and value.isdigit() and len(value) < 10 and least <= int(value) <= most):
        raise CocuError(f"{name}: {value[:20]!r} is not a number from {least}")
    return int(value)


def words(request: Request, name: str, default: str = "") -> str:
    """A text of a query. Raises CocuError for a long one."""
    value = request.query_params.get(name) or default
    if len(value) > LONGEST:
        raise CocuError(f"{name}: longer than {LONGEST} characters")
    return value


def application(views: Views, token: str, note: Callable[[], str] = str) -> Any:
    """The whole application. ``note``: what is being got ready, for people to read."""

    def site(request: Request) -> Site:
        by = "words" if views.finder.has_encoder else "caption"
        return Site(request.scope["root_path"], views.run.config.name, by, note())

    def page(render: Callable[[Request, Site], str | Response]) -> Callable[[Request], Response]:
        """An endpoint that answers what is wrong as a page of one line."""

        def endpoint(request: Request) -> Response:
            try:
                body = render(request, site(request))
            except CocuError as error:
                return HTMLResponse(results.failure(site(request), str(error)), 404)
            return body if isinstance(body, Response) else HTMLResponse(body)

        return endpoint

    def picture(render: Callable[[int, int], bytes]) -> Callable[[Request], Response]:
        """An endpoint of thumbnails."""

        def endpoint(request: Request) -> Response:
            try:
                side = number(request, "side", SIDES[1], 1)
                content = render(request.path_params["row"], side if side in SIDES else SIDES[1])
            except CocuError:
                return Response(status_code=404)
            return Response(content, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

        return endpoint

    def search(request: Request, site: Site) -> str | Response:
        query, by = words(request, "q").strip(), words(request, "by", site.by)
        if not query:
            return RedirectResponse(f"{site.root}/", 303)
        if by == "concept" and views.concept_named(query) is not None:
            return RedirectResponse(f"{site.root}/concept?{urlencode({'name': query})}", 303)
        return views.search(site, query, by, number(request, "page", 1, 1))

    def concept(request: Request, site: Site) -> str:
        companion = words(request, "companion") or None
        return views.concept(
            site, words(request, "name"), words(request, "view", "surest"), number(request, "page", 1, 1), companion
        )

    def vocabulary(request: Request, site: Site) -> str:
        return views.edited_vocabulary(
            site,
            words(request, "show", "all"),
            words(request, "sort", "count"),
            words(request, "q"),
            number(request, "page", 1, 1),
        )

    async def edit(request: Request) -> Response:
        """A change of the vocabulary, and back to the view that it was made in."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_FORM:
                return PlainTextResponse("too long\n", 413)
        form = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        try:
            await run_in_threadpool(views.table.edit, form.get("name", ""), form.get("action", ""), form.get("to", ""))
        except CocuError as error:
            return HTMLResponse(results.failure(site(request), str(error)), 400)
        view = {name: form[name] for name in ("show", "sort", "q", "page") if form.get(name)}
        address = f"{request.scope['root_path']}/vocabulary?{urlencode(view)}"
        return RedirectResponse(f"{address}#{urlencode({'c': form.get('name', '')})}", 303)

    def rejects(request: Request, site: Site) -> str:
        return views.rejects(site, words(request, "kind") or None, number(request, "page", 1, 1))

    def packaged(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            return PlainTextResponse("no such file\n", 404)
        content = (resources.files("curation.tools.browse") / name).read_text(encoding="utf-8")
        return Response(content, media_type=FILES[name])

    return guarded(
        Starlette(
            routes=[
                Route("/", page(lambda request, site: views.home(site, number(request, "draw", 0, 0)))),
                Route("/search", page(search)),
                Route("/concept", page(concept)),
                Route("/image/{row:int}", page(lambda request, site: views.image(site, request.path_params["row"]))),
                Route("/like/{row:int}", page(lambda request, site: views.like(site, request.path_params["row"]))),
                Route("/vocabulary", page(vocabulary)),
                Route("/vocabulary", edit, methods=["POST"]),
                Route("/duplicates", page(lambda request, site: views.duplicates(site, number(request, "page", 1, 1)))),
                Route("/rejects", page(rejects)),
                Route("/picture/{row:int}", picture(views.picture)),
                Route("/retrieved/{row:int}", picture(views.retrieved_picture)),
                Route("/reject/{row:int}", picture(views.reject_picture)),
                Route("/{name}", packaged),
            ]
        ),
        token,
    )
