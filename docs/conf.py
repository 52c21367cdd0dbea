"""Sphinx: the documents and the API reference as one site (make docs)."""

from __future__ import annotations

import gsocks

project = "gsocks"
author = "the gsocks authors"
copyright = "2026, the gsocks authors"  # noqa: A001  # the name that Sphinx reads
release = gsocks.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.apidoc"]
# every module, so that each reference in a docstring has a target; a page for each package, as the
# theme writes the tree of all pages into each of them
apidoc_modules = [
    {
        "path": "../gsocks",
        "destination": "reference/",
        "separate_modules": False,
        "max_depth": 2,
        "automodule_options": {"members", "show-inheritance", "undoc-members"},
    }
]

# the theme copies the tree of all pages into each of them; with all names in it, that was half of
# the build
toc_object_entries = False

html_theme = "furo"
html_title = "gsocks"
# of extras that a build of the documents does without
autodoc_mock_imports = ["httpcore", "httpx", "requests", "scrapy", "urllib3"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3
# misc.highlighting_failure: rules of nftables, for which no lexer is known;
# ref.python: a short name in a signature that several modules have; the reference is not broken
suppress_warnings = ["myst.xref_missing_file", "ref.python", "misc.highlighting_failure"]

# a reference that leads nowhere fails the build (make docs passes -W)
nitpicky = True
nitpick_ignore_regex = [
    # other projects and the standard library, whose inventories a build without network lacks
    (
        r"py:.*",
        r"(argparse|collections|contextlib|httpcore|httpx|requests|scrapy|urllib3|difflib|enum|gevent|greenlet|h11|http|ipaddress|json|logging|msgspec|nacl"
        r"|os|pathlib|random|re|rich|signal|socket|sqlite3|ssl|std_socket|time|types|typing|yaml)(\..*)?",
    ),
    # type variables, type aliases and private names in signatures, which have no page
    (r"py:(class|obj|func)", r"(gsocks\..*\.)?(_\w+|[A-Z]|Some\w+|Schema)"),
    (
        r"py:class",
        r"(tuple|dict)\[str|Callable\[.*|[\d.]+|urllib3 Timeout object"
        r"|config\.(Shadowsocks|ListenAddress|Leg)"
        r"|array|deque|HTTPStatus|PreparedRequest|Response|Struct|Path|IPAddress|Endpoint|(Read|Write)ableBuffer|_blake2\.blake2b|_socket\.socket",
    ),
]

# a page of gsocks.local shows LocalServer, not gsocks.local.LocalServer
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_use_type_comments = False  # there are none, and looking for them parses each function again
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    # a class is documented at its own module, not again where a package offers it
    "ignore-module-all": True,
}
