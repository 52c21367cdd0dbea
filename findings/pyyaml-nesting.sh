#!/usr/bin/env bash
# PyYAML 6.0.4: the C loader refuses a document nested 1,001 deep, which is valid YAML; the pure
# Python loader of the same release reads it, and so did the C loader of 6.0.3.
#
# The wheels of 6.0.4 are built with libyaml 0.2.6, those of 6.0.3 with 0.2.5; the newer one bounds
# the nesting of collections at 1,000 levels (the root of block collections counts as one). So a
# program that takes CSafeLoader where there is one accepts or refuses the same file by the build
# of PyYAML that it meets, and a test of the error's words fails with the next install.
#
# Seen with Python 3.11 on Linux x86_64: the lines behind EXPECTED below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/probe.py" <<'PY'
import yaml

def read(text, loader):
    try:
        sum(1 for _ in yaml.parse(text, Loader=loader))
    except yaml.YAMLError as error:
        return f"{type(error).__name__}: {error.problem}"
    return "ok"

version = yaml._yaml.get_version_string()
for kind, document in (
    ("flow", lambda depth: "[" * depth + "]" * depth),
    ("block", lambda depth: "".join(f"{' ' * level}k:\n" for level in range(depth))),
):
    for depth in (1000, 1001):
        text = document(depth)
        print(
            f"{yaml.__version__} libyaml {version} {kind} {depth}:"
            f" C {read(text, yaml.CSafeLoader)}; Python {read(text, yaml.SafeLoader)}"
        )
PY
python3 -m venv "$folder/venv"
for version in 6.0.3 6.0.4; do
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: "PyYAML==$version"
    "$folder/venv/bin/python" "$folder/probe.py"
done | tee "$folder/output"
diff - "$folder/output" <<'EXPECTED'
6.0.3 libyaml 0.2.5 flow 1000: C ok; Python ok
6.0.3 libyaml 0.2.5 flow 1001: C ok; Python ok
6.0.3 libyaml 0.2.5 block 1000: C ok; Python ok
6.0.3 libyaml 0.2.5 block 1001: C ok; Python ok
6.0.4 libyaml 0.2.6 flow 1000: C ok; Python ok
6.0.4 libyaml 0.2.6 flow 1001: C ScannerError: exceeded maximum nesting depth; Python ok
6.0.4 libyaml 0.2.6 block 1000: C ScannerError: exceeded maximum nesting depth; Python ok
6.0.4 libyaml 0.2.6 block 1001: C ScannerError: exceeded maximum nesting depth; Python ok
EXPECTED
echo "as stated"
