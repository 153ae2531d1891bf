#!/bin/sh
# The package is built twice, in two places: the same, byte for byte. And lintian finds no error.
set -eu
cd "$(dirname "$(readlink -f "$0")")/.."
elsewhere=$(mktemp -d --suffix=-of-another-length)
trap 'rm -rf "$elsewhere"' EXIT
package=$(packaging/build.sh --in "$elsewhere")
first=$(sha256sum <"$package")
packaging/build.sh >/dev/null
second=$(sha256sum <"$package")
if [ "$first" != "$second" ]; then
  echo "$package: two builds differ" >&2
  exit 1
fi
echo "$package: two builds are the same, $(stat -c %s "$package") bytes, sha256 ${first%% *}"
lintian --allow-root --fail-on error "$package"
