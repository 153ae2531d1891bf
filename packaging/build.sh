#!/bin/sh
# Builds the package of what is in this tree into dist/, and prints its name:
#   packaging/build.sh [--version VERSION] [--in FOLDER]
# VERSION: other than the changelog's, to try an upgrade. FOLDER: where to build, build/deb unless said.
set -eu
here=$(dirname "$(readlink -f "$0")")
root=$(dirname "$here")
version= folder=$root/build/deb
while [ $# -gt 0 ]; do
  case $1 in
    --version) version=$2 ;;
    --in) folder=$2 ;;
    *) echo "usage: build.sh [--version VERSION] [--in FOLDER]" >&2; exit 2 ;;
  esac
  shift 2
done
source=$folder/jvpn
rm -rf "$source" && mkdir -p "$source" "$root/dist"
cd "$root"
cp -r jvpnd packaging docs README.md LICENSE pyproject.toml "$source/"
find "$source" -name __pycache__ -type d -prune -exec rm -rf {} +
cp -r packaging/debian "$source/debian"
cd "$source"
if [ -n "$version" ]; then
  # the same date: the packages differ in the version only
  date=$(dpkg-parsechangelog -S Date) who=$(dpkg-parsechangelog -S Maintainer)
  { printf 'jvpn (%s) bookworm; urgency=medium\n\n  * A build to try.\n\n' "$version"
    printf ' -- %s  %s\n\n' "$who" "$date"
    cat packaging/debian/changelog; } >debian/changelog
fi
version=$(dpkg-parsechangelog -S Version)
dpkg-buildpackage --build=binary --unsigned-changes >"$folder/log" 2>&1 || { cat "$folder/log" >&2; exit 1; }
package=jvpn_${version}_amd64.deb
mv "$folder/$package" "$root/dist/"
echo "dist/$package"
