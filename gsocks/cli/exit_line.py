"""An exit as a line that a list of exits may have."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from gsocks.exits.spec import ExitSpec


def exit_line(spec: ExitSpec, *, with_credentials: bool = True) -> str:
    """A line that a list of exits may have; with masked credentials, it is one to look at."""
    url = spec.url if with_credentials else spec.replaced(via=None).label
    return " ".join([url, *_options(spec, with_credentials=with_credentials)])


def _options(spec: ExitSpec, *, with_credentials: bool) -> Iterator[str]:
    if spec.via is not None and not with_credentials:
        yield f"via={quote(spec.via.label, safe=':/@*')}"
    if spec.name is not None:
        yield f"name={spec.name}"
    if spec.country is not None:
        yield f"country={spec.country}"
    if spec.tags:
        yield f"tags={','.join(spec.tags)}"
    if spec.weight != 1.0:
        yield f"weight={spec.weight:g}"
    if spec.max_connections is not None:
        yield f"max_connections={spec.max_connections}"
    if spec.requests_per_minute is not None:
        yield f"requests_per_minute={spec.requests_per_minute}"
    for name, bound in ({} if spec.budget is None else spec.budget._asdict()).items():
        if bound is not None:
            yield f"{name}={bound:g}" if isinstance(bound, float) else f"{name}={bound}"
