#!/bin/sh
# Makes the files of a test machine: rootfs.sh SUITE MIRROR ROOT PACKAGE…
# Run as root in a mount namespace of its own (`unshare --mount`), so that no mount is left behind, however it ends.
set -eu
suite=$1 mirror=$2 root=$3
shift 3
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

debootstrap --variant=minbase "$suite" "$root" "$mirror"

# Packages start no services here, and only what boots our own disk goes into the initial RAM disk.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
mkdir -p "$root/etc/initramfs-tools"
printf 'virtio_pci\nvirtio_blk\next4\n' >"$root/etc/initramfs-tools/modules"
mkdir -p "$root/etc/initramfs-tools/conf.d"
printf 'MODULES=list\nCOMPRESS=gzip\n' >"$root/etc/initramfs-tools/conf.d/steer"
printf 'path-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n' \
    >"$root/etc/dpkg/dpkg.cfg.d/steer"
cp /etc/resolv.conf "$root/etc/resolv.conf"

mount -t proc proc "$root/proc"
mount -t devtmpfs dev "$root/dev" 2>/dev/null || mount --bind /dev "$root/dev"
in_root() { chroot "$root" /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
# A mirror may stand still for longer than its index promises: what comes from it is thrown away anyway.
in_root apt-get -q -o Acquire::Check-Valid-Until=no update
# Not by debootstrap: initramfs-tools of newer suites cannot be configured by it.
in_root apt-get -q -y install --no-install-recommends initramfs-tools
# Names with alternatives (`docker-cli|docker.io`): the first one that this suite has. It must have one: a test that misses its
# program says so only when it runs.
chosen=
for names in "$@"; do
    found=
    for name in $(echo "$names" | tr '|' ' '); do
        if in_root apt-cache policy "$name" | grep -q 'Candidate: [^(]'; then
            found=$name
            break
        fi
    done
    if [ -z "$found" ]; then
        echo "$suite has no package $names" >&2
        exit 1
    fi
    chosen="$chosen $found"
done
in_root apt-get -q -y install --no-install-recommends linux-image-amd64 $chosen
in_root apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root/usr/sbin/policy-rc.d"

# What `cargo xtask vm` says of the machine.
for package in linux-image-amd64 docker.io; do
    in_root dpkg-query -W -f '${Package} ${Version}\n' $package
done >"$root/etc/steer-machine"

# What the kernel starts: the agent, from the disk with the programs.
cat >"$root/sbin/steer-init" <<'END'
#!/bin/sh
mkdir -p /payload && mount -o ro /dev/vdb /payload && exec /payload/guest
echo 'steer-init: no programs on /dev/vdb'
echo o >/proc/sysrq-trigger
sleep 60
END
chmod 755 "$root/sbin/steer-init"
