# Inside the virtual machine: the memory of its CXL device becomes a NUMA node. It is persistent memory, so this is what
# `cxl create-region`, `ndctl create-namespace --mode=devdax` and `daxctl reconfigure-device --mode=system-ram` do in turn.
set -euo pipefail

cxl=/sys/bus/cxl persistent=/sys/bus/nd dax=/sys/bus/dax
decoder=$cxl/devices/decoder0.0 # of the window that the firmware describes
device=decoder2.0               # of the one device; 1 is its host bridge

await() { # what the kernel makes in the background
  for _ in $(seq 100); do
    [ ! -e "$1" ] || return 0
    sleep 0.1
  done
  echo "there is no $1" >&2
  return 1
}

uuid() { cat /proc/sys/kernel/random/uuid; }

await $cxl/devices/$device/mode
region=$(<$decoder/create_pmem_region)
echo "$region" >$decoder/create_pmem_region
size=$(<$cxl/devices/mem0/pmem/size)
echo pmem >$cxl/devices/$device/mode
echo "$size" >$cxl/devices/$device/dpa_size
echo 1 >$cxl/devices/"$region"/interleave_ways
echo 256 >$cxl/devices/"$region"/interleave_granularity
uuid >$cxl/devices/"$region"/uuid
echo "$size" >$cxl/devices/"$region"/size
echo $device >$cxl/devices/"$region"/target0
echo 1 >$cxl/devices/"$region"/commit
echo "$region" >$cxl/drivers/cxl_region/bind

await $persistent/devices/dax0.0
uuid >$persistent/devices/namespace0.0/uuid
echo "$size" >$persistent/devices/namespace0.0/size
echo dax >$persistent/devices/namespace0.0/holder_class
uuid >$persistent/devices/dax0.0/uuid
echo namespace0.0 >$persistent/devices/dax0.0/namespace
echo ram >$persistent/devices/dax0.0/mode # where the page descriptors are
echo dax0.0 >$persistent/drivers/dax_pmem/bind

await $dax/devices/dax0.0/driver
echo dax0.0 >$dax/drivers/device_dax/unbind
echo dax0.0 >$dax/drivers/kmem/new_id

# Movable: each access to this memory is emulated, and page tables must not lie in it.
for state in $(grep -l offline /sys/devices/system/memory/memory*/state); do
  echo online_movable >"$state"
done
