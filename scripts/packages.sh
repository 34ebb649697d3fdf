#!/bin/sh
# packages.sh demo|test|bench: sees to it that the Debian packages which the demo, the
# tests or the benchmark need are there. Asks for root only if some are missing, and lists them.
set -eu

guest="qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients
  syslinux syslinux-common syslinux-efi mtools busybox-static dosfstools e2fsprogs cpio ovmf"
checks="gcc libc6-dev nbdkit libnbd-bin postgresql chromium
  curl python3-winrm python3-ntlm-auth python3-impacket python3-libvhdi libvhdi-utils
  wine64 gcc-mingw-w64-x86-64 wixl msitools osslsigncode
  tinyproxy-bin fdisk gzip xz-utils zstd lz4 lzop bzip2 xfsprogs ntfs-3g libhivex-bin libwin-hivex-perl"
peers="rsync borgbackup virtnbdbackup"
# Node and npm may have come from elsewhere, and Debian's would not go beside them.
if ! command -v node >/dev/null 2>&1 || ! command -v npm >/dev/null 2>&1; then
	checks="$checks nodejs npm"
fi

case "${1:-}" in
demo) want="$guest" ;;
test) want="$guest $checks $peers" ;;
bench) want="$guest libnbd-bin $peers" ;;
*) echo "usage: $0 demo|test|bench" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null 2>&1; then
	echo "This is not Debian: please install what these Debian packages hold, then run the command again:" >&2
	echo "$want" >&2
	exit 1
fi

missing=""
for p in $want; do
	[ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null || true)" = installed ] || missing="$missing $p"
done
if [ -z "$missing" ]; then
	exit 0
fi

echo "These Debian packages are missing:$missing"
root=""
if [ "$(id -u)" != 0 ]; then
	if ! command -v sudo >/dev/null 2>&1; then
		echo "Install them as root:  apt-get install --no-install-recommends$missing" >&2
		exit 1
	fi
	echo "Installing them needs root; everything else runs as $(id -un)."
	root=sudo
fi
$root apt-get update -qq
# No service is started or enabled by the installation: the demo and the tests
# run their own private instances. A policy-rc.d that exists is left alone.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
	$root chmod 755 "$policy"
	trap '$root rm -f "$policy"' EXIT
fi
# shellcheck disable=SC2086
$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
