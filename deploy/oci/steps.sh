#!/bin/sh
# steps.sh SOURCE PREFIX [EXTRAS]: what the Containerfile runs; gsocks with all that it needs, in a
# venv in PREFIX, by the versions and hashes of requirements/run.txt
set -eu
source=$1 prefix=$2 extras=${3:-}
"${PYTHON:-python3}" -m venv "$prefix"
pip="$prefix/bin/pip --disable-pip-version-check --no-cache-dir"
$pip install --quiet --require-hashes -r "$source/requirements/build.txt" -r "$source/requirements/run.txt"
$pip install --quiet --no-build-isolation "$source$extras"
$pip uninstall --quiet --yes setuptools
find "$prefix" -name tests -type d -path '*/gevent/*' -prune -exec rm -rf {} +
"$prefix/bin/python" -m compileall -q "$prefix/lib"
"$prefix/bin/pip" uninstall --quiet --yes pip
"$prefix/bin/gsocks" --version
