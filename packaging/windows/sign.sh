#!/bin/sh
# sign.sh FILE: signs a program or an installer in place (Authenticode, SHA-256), for SIGN of build.sh.
# CERT=FILE   certificate with its chain, PEM
# KEY=FILE    private key, PEM; with PASSFILE=FILE the file that holds its passphrase
# TIMESTAMP=URL  RFC 3161 time stamp server; without it the signature ends with the certificate
# Needs the Debian package osslsigncode.
set -eu
file="${1:?usage: sign.sh FILE}"
signed="$file.signed"
trap 'rm -f "$signed"' EXIT
set -- -certs "${CERT:?sign.sh: CERT is not set}" -key "${KEY:?sign.sh: KEY is not set}" -h sha256 -n "Holdfast agent"
[ -z "${PASSFILE:-}" ] || set -- "$@" -readpass "$PASSFILE"
[ -z "${TIMESTAMP:-}" ] || set -- "$@" -ts "$TIMESTAMP"
rm -f "$signed"
osslsigncode sign "$@" -in "$file" -out "$signed" >/dev/null
mv "$signed" "$file"
