"""The OpenAPI document of the admin API, written from its table of routes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from gsocks.admin.problems import PROBLEM, Problem
from gsocks.admin.routes import EVENT_STREAM, JSON, MAX_NAME, Role, Route
from gsocks.admin.snapshot import Json

_REF = "#/components/schemas/{name}"

_ABOUT = (
    "What a running gsocks does, and commands for it. A token is needed for all of it: "
    "`viewer` sees, `operator` acts. Lists come in pages: `next` is the `cursor` of the next one. "
    "Times are seconds; those called `at`, `since`, `time` are seconds since 1970. "
    "Errors are problem details (RFC 9457); `parameter` names what is wrong."
)

#: an event of a stream: before OpenAPI 3.2 the schema of a stream is that of each event
_EVENT: Json = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["status", "change", "requests"]},
        "data": {"type": "string", "contentMediaType": JSON},
    },
}


def document(routes: Iterable[Route], version: str) -> bytes:
    """OpenAPI 3.1, as JSON; ``version``: that of gsocks."""
    routes = [*routes]
    kinds: dict[Any, None] = {Problem: None}
    for route in routes:
        for kind in (route.query, route.body, route.answer):
            if kind is not None and not isinstance(kind, str):
                kinds[kind] = None
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    shapes = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(
            route, shapes, components
        )
    for route in routes:
        components.pop(route.query.__name__, None)
    told = {
        "openapi": "3.1.0",
        "info": {"title": "gsocks", "version": version, "description": _ABOUT},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Problem": {
                    "description": "It was not served.",
                    "content": {PROBLEM: {"schema": shapes[Problem]}},
                }
            },
        },
    }
    return json.dumps(told).encode() + b"\n"


def _operation(route: Route, shapes: dict[Any, Any], components: dict[str, Any]) -> Json:
    problem = {"$ref": "#/components/responses/Problem"}
    told: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": [*_of_path(route), *_of_query(route, components)],
        "responses": {
            str(route.status.value): {
                "description": route.summary,
                "content": {route.kind: {"schema": _shape(route, shapes)}},
            },
            **{str(status): problem for status in (400, 401, 403, 404, 422, 429)},
            "default": problem,
        },
        "x-role": str(route.role),
    }
    if route.role is not Role.VIEWER:
        told["description"] = "For operators."
    if route.body is not None:
        told["requestBody"] = {
            "required": bool(components[route.body.__name__].get("required")),
            "content": {JSON: {"schema": shapes[route.body]}},
        }
    return told


def _shape(route: Route, shapes: dict[Any, Any]) -> Json:
    if route.kind == EVENT_STREAM:
        return _EVENT
    shape: Json = shapes[route.answer] if route.kind == JSON else {"type": "string"}
    return shape


def _of_path(route: Route) -> list[Json]:
    schema = {"type": "string", "minLength": 1, "maxLength": MAX_NAME}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema} for name in route.names
    ]


def _of_query(route: Route, components: dict[str, Any]) -> list[Json]:
    shape = components[route.query.__name__]
    found = []
    for name, schema in shape["properties"].items():
        description = schema.pop("description", "") if "description" in schema else ""
        found.append(
            {
                "name": name,
                "in": "query",
                "required": name in shape.get("required", ()),
                **({"description": description} if description else {}),
                "schema": schema,
            }
        )
    return found
