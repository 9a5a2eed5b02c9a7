#!/bin/sh
# Makes a small image from this machine's busybox, for use where no registry can be reached:
#
#   examples/busybox-image.sh busybox.tar [NAME]
#   crisp image import busybox.tar
#
# The archive is what `docker save` writes: a layer, a configuration and a manifest. busybox must be a static program, as that
# of Debian's package busybox-static.
set -eu

out=${1:?usage: busybox-image.sh FILE [NAME]}
name=${2:-docker.io/library/busybox:local}
busybox=${BUSYBOX:-$(command -v busybox)} || { echo "busybox-image.sh: no busybox here (apt install busybox-static)" >&2; exit 1; }
if ldd "$busybox" >/dev/null 2>&1; then
    echo "busybox-image.sh: $busybox is not static (apt install busybox-static)" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rootfs=$work/rootfs
mkdir -p "$rootfs/bin" "$rootfs/etc" "$rootfs/root" "$rootfs/var/www" "$work/image"
mkdir -m 1777 "$rootfs/tmp"
cp "$busybox" "$rootfs/bin/busybox"
chmod 755 "$rootfs/bin/busybox"
for applet in $("$busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$rootfs/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$rootfs/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$rootfs/etc/group"

# The same input gives the same digests.
tar -C "$rootfs" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$work/image/layer.tar" .
diff_id=$(sha256sum "$work/image/layer.tar" | cut -d' ' -f1)

case $(uname -m) in
    x86_64) arch=amd64 ;;
    aarch64) arch=arm64 ;;
    *) arch=$(uname -m) ;;
esac
cat >"$work/image/config.json" <<JSON
{"architecture":"$arch","os":"linux","created":"1970-01-01T00:00:00Z",
 "config":{"Env":["PATH=/bin"],"Cmd":["sh"]},
 "rootfs":{"type":"layers","diff_ids":["sha256:$diff_id"]},
 "history":[{"created":"1970-01-01T00:00:00Z","created_by":"examples/busybox-image.sh"}]}
JSON
cat >"$work/image/manifest.json" <<JSON
[{"Config":"config.json","RepoTags":["$name"],"Layers":["layer.tar"]}]
JSON
tar -C "$work/image" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$out" manifest.json config.json layer.tar
echo "$out: $name"
