/* NVML's functions that are asked for, with the signatures of nvml.h: an H100 in a slot of PCIe 4, and a second GPU
   that says its name and address only. FAKE_NVML_ERROR is what nvmlInit answers. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef int status;
enum { SUCCESS = 0, NOT_SUPPORTED = 3 };
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_info;
typedef struct { unsigned long long total, free, used; } memory;

status nvmlInitWithFlags(unsigned flags) {
  const char* error = getenv("FAKE_NVML_ERROR");
  return error ? atoi(error) : SUCCESS;
}
status nvmlShutdown(void) { return SUCCESS; }
const char* nvmlErrorString(status code) { return code == 18 ? "Driver/library version mismatch" : "Unknown Error"; }
status nvmlSystemGetDriverVersion(char* out, unsigned n) { snprintf(out, n, "580.65.06"); return SUCCESS; }
status nvmlDeviceGetCount_v2(unsigned* n) { *n = 2; return SUCCESS; }
status nvmlDeviceGetHandleByIndex_v2(unsigned i, void** device) { *device = (void*)(uintptr_t)(i + 1); return SUCCESS; }
status nvmlDeviceGetName(void* device, char* out, unsigned n) {
  snprintf(out, n, device == (void*)1 ? "NVIDIA H100 80GB HBM3" : "GRID A100-40C");
  return SUCCESS;
}
status nvmlDeviceGetPciInfo_v3(void* device, pci_info* out) {
  snprintf(out->bus_id, sizeof out->bus_id, device == (void*)1 ? "00000000:9C:00.0" : "00000001:01:00.0");
  return SUCCESS;
}
status nvmlDeviceGetMemoryAffinity(void* device, unsigned words, unsigned long* out, unsigned scope) {
  if (device != (void*)1) return NOT_SUPPORTED;
  for (unsigned i = 0; i < words; ++i) out[i] = i == 0 ? 2 : 0;
  return SUCCESS;
}
#define ANSWER(name, type, value)            \
  status name(void* device, type* out) {     \
    if (device != (void*)1) return NOT_SUPPORTED; \
    *out = value;                            \
    return SUCCESS;                          \
  }
ANSWER(nvmlDeviceGetMemoryInfo, memory, ((memory){80ULL << 30, 1, 2}))
ANSWER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, 1)
ANSWER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, 4)
ANSWER(nvmlDeviceGetGpuMaxPcieLinkGeneration, unsigned, 5)
ANSWER(nvmlDeviceGetCurrPcieLinkWidth, unsigned, 16)
ANSWER(nvmlDeviceGetMaxPcieLinkWidth, unsigned, 16)
