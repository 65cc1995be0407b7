#!/usr/bin/env bash
# Whether a folder holds what a release consists of: archives and wheels with the checksums that are beside them, of the
# version that the tag and Cargo.toml name.
#
#   scripts/check-release.sh FOLDER [TAG]
set -euo pipefail
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml" | head -1)
tag=${2:-v$version}
if [ "$tag" != "v$version" ]; then
    echo "the tag is $tag, and Cargo.toml says $version" >&2
    exit 1
fi
cd "$1"
sha256sum --check --strict ./*.sha256
for file in *.tar.gz *.whl; do
    case $file in
        llmq-"$version"-*) grep -qF "  $file" ./*.sha256 || { echo "$file has no checksum" >&2; exit 1; } ;;
        *) echo "$file is not of version $version" >&2; exit 1 ;;
    esac
done
