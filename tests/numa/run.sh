#!/usr/bin/env bash
# Tests and the doctor on four NUMA nodes, two of them without processors: memory that the firmware describes, and a CXL
# device that cxl.sh turns into a node. A virtual machine in software emulation, with the files of this one, read-only, as
# its root. Needs Debian's qemu-system-x86, 3.5 GiB of memory, and a download of 70 MB (a Debian kernel, busybox) the first time.
set -euo pipefail

tree=$(cd "$(dirname "$0")/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvtier-numa
python=$(readlink -f "$tree/.venv")/bin/python
command -v qemu-system-x86_64 >/dev/null || {
  echo "make test-numa needs QEMU: apt-get install --no-install-recommends qemu-system-x86" >&2
  exit 1
}

fetch() { # a Debian kernel and busybox, unpacked below the cache; installed nowhere
  mkdir -p "$cache/debs"
  local kernel
  kernel=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ {print $2; exit}')
  (cd "$cache/debs" && apt-get download "$kernel" busybox-static)
  for deb in "$cache"/debs/*.deb; do dpkg -x "$deb" "$cache/root"; done
}

pack() { # an initramfs: busybox, the modules for 9p over virtio and for CXL, and what to do
  local root=$1
  mkdir -p "$root"/{bin,modules,host,proc,sys,dev}
  cp "$cache/root/bin/busybox" "$root/bin/"
  for folder in drivers/virtio net/9p fs/9p fs/netfs fs/fscache drivers/cxl drivers/nvdimm drivers/dax; do
    find "$cache"/root/lib/modules/*/kernel/"$folder" -name '*.ko' -exec cp {} "$root/modules/" \;
  done
  cat >"$root/init" <<INIT
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for round in 1 2 3 4 5; do
  for module in /modules/*.ko; do /bin/busybox insmod \$module 2>/dev/null; done
done
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro host /host || echo "no root"
for folder in proc sys dev; do /bin/busybox mount --bind /\$folder /host/\$folder; done
/bin/busybox mount -t tmpfs tmp /host/tmp
/bin/busybox mkdir -p /dev/shm
echo 64 > /sys/devices/system/node/node2/hugepages/hugepages-2048kB/nr_hugepages
/bin/busybox chroot /host /bin/bash -c 'cd $tree && export HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$tree
  bash tests/numa/cxl.sh; echo "cxl \$?"
  $python -m pytest -q -p no:cacheprovider -m numa tests/numa; echo "pytest \$?"
  $python -m kvtier.cli doctor; echo "doctor \$?"'
/bin/busybox poweroff -f
INIT
  chmod +x "$root/init"
  (cd "$root" && find . | bin/busybox cpio -o -H newc 2>/dev/null | gzip -1)
}

[ -x "$cache/root/bin/busybox" ] || fetch
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
pack "$scratch/root" >"$scratch/initrd"
started=$(date +%s)
# Without erms and fsrm Linux clears and copies by words: emulation takes as long for a byte.
# Two root ports, one of them empty: below a single one, Linux 6.1 programs no decoder in the host bridge, and QEMU 7.2 then
# drops what is written and reads zeros.
timeout 3600 qemu-system-x86_64 -machine q35,cxl=on -accel tcg,thread=multi -cpu max,-erms,-fsrm -smp 2 -m 3G -nographic -no-reboot \
  -object memory-backend-ram,id=m0,size=2G -object memory-backend-ram,id=m1,size=512M \
  -object memory-backend-ram,id=m2,size=512M \
  -numa node,nodeid=0,cpus=0,memdev=m0 -numa node,nodeid=1,cpus=1,memdev=m1 -numa node,nodeid=2,memdev=m2 \
  -numa dist,src=0,dst=1,val=21 -numa dist,src=0,dst=2,val=17 -numa dist,src=1,dst=2,val=28 \
  -M cxl-fmw.0.targets.0=cxl,cxl-fmw.0.size=256M -device pxb-cxl,bus=pcie.0,bus_nr=12,id=cxl \
  -device cxl-rp,bus=cxl,id=port0,port=0,slot=0 -device cxl-rp,bus=cxl,id=port1,port=1,slot=1 \
  -object memory-backend-ram,id=cxl-memory,size=256M,share=on -object memory-backend-ram,id=cxl-labels,size=1M,share=on \
  -device cxl-type3,bus=port0,memdev=cxl-memory,lsa=cxl-labels,id=cxl-device \
  -fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap \
  -device virtio-9p-pci,bus=pcie.0,fsdev=host,mount_tag=host \
  -kernel "$cache"/root/boot/vmlinuz-* -initrd "$scratch/initrd" \
  -append "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check" </dev/null | tee "$scratch/log"
echo "$(($(date +%s) - started)) seconds"
for part in cxl pytest doctor; do grep -q "^$part 0" "$scratch/log"; done
