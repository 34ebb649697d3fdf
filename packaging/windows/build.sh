#!/bin/sh
# build.sh VERSION [DIRECTORY]: builds holdfast.exe with version resources, and holdfast-VERSION.msi,
# into DIRECTORY (default: bin/windows). VERSION is major.minor.patch.
# Needs Go and the Debian packages wixl and msitools. With EXE=FILE a program that exists is packed instead of a new build.
# With SIGN=SCRIPT, SCRIPT FILE is run on the program and on the installer, to sign them (see README.md).
set -eu

version="${1:?usage: build.sh VERSION [DIRECTORY]}"
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
case "$version" in
*[!0-9.]* | .* | *. | *..*) echo "build.sh: $version is no version of the form 1.2.3" >&2; exit 2 ;;
esac
# Windows Installer compares three numbers, the first two below 256.
oldifs=$IFS
IFS=.
# shellcheck disable=SC2086
set -- "${2:-$root/bin/windows}" $version
IFS=$oldifs
out=$1
if [ $# -ne 4 ] || [ "$2" -gt 255 ] || [ "$3" -gt 255 ] || [ "$4" -gt 65535 ]; then
	echo "build.sh: Windows Installer takes versions up to 255.255.65535, not $version" >&2
	exit 2
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)

exe="$out/holdfast.exe"
if [ -z "${EXE:-}" ]; then
	(cd "$root" && CGO_ENABLED=0 GOOS=windows GOARCH=amd64 go build -trimpath -ldflags "-X holdfast/cmd/holdfast/internal/console.release=$version" -o "$exe" ./cmd/holdfast)
else
	cp "$EXE" "$exe"
fi
# A tool of the build only, so it is not in go.mod; the version is fixed, Go checks its sum.
(cd "$here" && GOFLAGS= GOOS= GOARCH= go run github.com/tc-hib/go-winres@v0.3.3 patch --in winres.json \
	--product-version "$version" --file-version "$version" --no-backup --delete "$exe")
[ -z "${SIGN:-}" ] || "$SIGN" "$exe"

msi="$out/holdfast-$version.msi"
# wixl takes no absolute path of a file to be packed.
(cd "$out" && wixl --arch x64 -D VERSION="$version" -D EXE=holdfast.exe -o "$msi" "$here/holdfast.wxs")
msibuild "$msi" -q "UPDATE \`Component\` SET \`Condition\` = 'WIX_UPGRADE_DETECTED' WHERE \`Component\` = 'StartAgain'"
msiinfo export "$msi" Component | grep -q 'StartAgain.*WIX_UPGRADE_DETECTED' || { echo "build.sh: the condition was not set" >&2; exit 1; }
[ -z "${SIGN:-}" ] || "$SIGN" "$msi"
echo "$msi"
