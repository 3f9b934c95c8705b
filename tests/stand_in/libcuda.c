// A library in libcuda's place that launches nothing: it writes down what a driver is asked for and answers success,
// or the error that a driver of Hopper would. What a launch's parameters are it reads from the cubin, as the driver does:
// so the bytes in the log are those that the kernel would find.
#include <cuda.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
enum { MOST_SHARED = 227 * 1024, DEFAULT_SHARED = 48 * 1024, RESERVED_SHARED = 1024, MULTIPROCESSORS = 132 };
enum { COOPERATIVE = 1000 };  // in the place of a launch's number of attributes
enum { PARAM = 0x17, PARAM_V2 = 0x45, MAX_THREADS = 0x05, MOST_PARAMS = 512 };

typedef struct {
    char* name;
    int static_shared, opted_in, max_threads;
    int count, sizes[MOST_PARAMS];
} Function;

typedef struct {
    const Function* function;
    unsigned grid[3], block[3], shared, attributes;
    CUstream stream;
    int captured;
    int bytes;
    unsigned char* values;  // parameter after parameter, without gaps
} Record;

static Record* records;
static int record_count, record_room, recording = 1, launches, refused, maps, synchronizations, context_made, attributes_set, copies;
static CUstream capturing = (CUstream)-1;

// --- the cubin: an ELF file whose sections .nv.info.<kernel> and .nv.shared.<kernel> tell ---

typedef struct { uint32_t name, type; uint64_t flags, address, offset, size; uint32_t link, info; uint64_t align, entry; } Section;

static void read_info(Function* f, const unsigned char* at, const unsigned char* end) {
    while (at + 4 <= end) {
        unsigned format = at[0], attribute = at[1], size = at[2] | at[3] << 8;
        at += 4;
        if (format != 4) continue;
        uint16_t ordinal;
        memcpy(&ordinal, at + 4, 2);
        if (attribute == PARAM || attribute == PARAM_V2) {
            uint32_t told;
            memcpy(&told, at + 8, 4);
            f->sizes[ordinal] = attribute == PARAM ? told >> 18 : told;
            if (ordinal >= f->count) f->count = ordinal + 1;
        } else if (attribute == MAX_THREADS) {
            uint32_t x;
            memcpy(&x, at, 4);
            f->max_threads = x;
        }
        at += size;
    }
}

EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    if (memcmp(image, "\x7f" "ELF", 4)) return CUDA_ERROR_INVALID_IMAGE;
    const unsigned char* elf = image;
    uint64_t start;
    uint16_t count;
    memcpy(&start, elf + 40, 8);
    memcpy(&count, elf + 60, 2);
    uint64_t size = start + count * sizeof(Section);
    uint16_t names;
    memcpy(&names, elf + 62, 2);
    const Section* s = (const Section*)(elf + start);
    for (int i = 0; i < count; i++) {  // of what is read here only: shared memory has a size and no bytes
        int read = i == names || !strncmp((const char*)elf + s[names].offset + s[i].name, ".nv.info", 8);
        if (read && s[i].offset + s[i].size > size) size = s[i].offset + s[i].size;
    }
    void* copy = malloc(size);
    memcpy(copy, image, size);
    *module = copy;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(CUfunction* out, CUmodule module, const char* name) {
    const unsigned char* elf = (const unsigned char*)module;
    uint64_t start;
    uint16_t count, names;
    memcpy(&start, elf + 40, 8);
    memcpy(&count, elf + 60, 2);
    memcpy(&names, elf + 62, 2);
    const Section* s = (const Section*)(elf + start);
    const char* strings = (const char*)elf + s[names].offset;
    Function* f = calloc(1, sizeof *f);
    f->name = strdup(name);
    f->max_threads = 1024;
    int found = 0;
    for (int i = 0; i < count; i++) {
        const char* section = strings + s[i].name;
        if (!strncmp(section, ".nv.info.", 9) && !strcmp(section + 9, name))
            read_info(f, elf + s[i].offset, elf + s[i].offset + s[i].size), found = 1;
        if (!strncmp(section, ".nv.shared.", 11) && !strcmp(section + 11, name))
            f->static_shared = s[i].size - RESERVED_SHARED;  // the system's come first
    }
    *out = (CUfunction)f;
    return found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

EXPORT CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

EXPORT CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
    const Function* f = (const Function*)function;
    *value = attribute == CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES          ? f->static_shared
             : attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? f->max_threads
             : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS                ? 32
                                                                      : 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    Function* f = (Function*)function;
    attributes_set++;
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        if (value + f->static_shared > MOST_SHARED) return CUDA_ERROR_INVALID_VALUE;
        f->opted_in = value;
        return CUDA_SUCCESS;
    }
    return attribute == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

// --- launches ---

static CUresult launch(Function* f, const unsigned grid[3], const unsigned block[3], unsigned shared, CUstream stream,
                       unsigned attributes, void** parameters) {
    launches++;
    unsigned threads = block[0] * block[1] * block[2];
    int too_large = shared + f->static_shared > DEFAULT_SHARED && shared > (unsigned)f->opted_in;
    if (!grid[0] || !grid[1] || !grid[2] || !threads || grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535 ||
        threads > (unsigned)f->max_threads || too_large || !context_made) {
        refused++;
        return context_made ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_CONTEXT;
    }
    int bytes = 0;
    for (int i = 0; i < f->count; i++) bytes += f->sizes[i];
    if (!recording) {  // the driver reads all parameters
        volatile unsigned char sink = 0;
        for (int i = 0; i < f->count; i++) sink += *(unsigned char*)parameters[i];
        return CUDA_SUCCESS;
    }
    if (record_count == record_room) {
        record_room = record_room ? 2 * record_room : 64;
        records = realloc(records, record_room * sizeof *records);
    }
    Record* r = &records[record_count++];
    *r = (Record){f, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared, attributes, stream,
                  stream == capturing, bytes, malloc(bytes + 1)};
    unsigned char* to = r->values;
    for (int i = 0; i < f->count; to += f->sizes[i], i++) memcpy(to, parameters[i], f->sizes[i]);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                               unsigned shared, CUstream stream, void** parameters, void** extra) {
    return launch((Function*)f, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, shared, stream, 0, parameters);
}

EXPORT CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                          unsigned bz, unsigned shared, CUstream stream, void** parameters) {
    if ((uint64_t)gx * gy * gz > 2048 / (bx * by * bz) * MULTIPROCESSORS)  // by threads alone
        return launches++, refused++, CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    return launch((Function*)f, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, shared, stream, COOPERATIVE, parameters);
}

EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** parameters, void** extra) {
    for (unsigned i = 0; i < c->numAttrs; i++) {
        const CUlaunchAttributeValue* v = &c->attrs[i].value;
        if (c->attrs[i].id != CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) continue;
        if (!v->clusterDim.x || !v->clusterDim.y || !v->clusterDim.z || c->gridDimX % v->clusterDim.x ||
            c->gridDimY % v->clusterDim.y || c->gridDimZ % v->clusterDim.z)
            return launches++, refused++, CUDA_ERROR_INVALID_CLUSTER_SIZE;
    }
    return launch((Function*)f, (unsigned[]){c->gridDimX, c->gridDimY, c->gridDimZ},
                  (unsigned[]){c->blockDimX, c->blockDimY, c->blockDimZ}, c->sharedMemBytes, c->hStream, c->numAttrs,
                  parameters);
}

// --- what is asked on the way ---

// NVRTC asks for it, and crashes where it is not even there.
EXPORT CUresult cuGetExportTable(const void** table, const CUuuid* id) { return *table = 0, CUDA_ERROR_NOT_FOUND; }
EXPORT CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
EXPORT CUresult cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }
EXPORT CUresult cuDeviceGetCount(int* count) { return *count = 1, CUDA_SUCCESS; }
EXPORT CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    return snprintf(name, length, "Stand-in"), CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) { return *device = ordinal, CUDA_SUCCESS; }
EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice d) { return *context = (CUcontext)1, CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetCurrent(CUcontext* context) { return *context = (CUcontext)(long)context_made, CUDA_SUCCESS; }
EXPORT CUresult cuCtxSetCurrent(CUcontext context) { return context_made = 1, CUDA_SUCCESS; }
EXPORT CUresult cuCtxPushCurrent(CUcontext context) { return context_made++, CUDA_SUCCESS; }
EXPORT CUresult cuCtxPopCurrent(CUcontext* context) { return context_made--, CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetDevice(CUdevice* device) { return *device = 0, CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetLimit(size_t* value, CUlimit limit) { return *value = 0, CUDA_SUCCESS; }
EXPORT CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxSynchronize(void) { return synchronizations++, CUDA_SUCCESS; }
EXPORT CUresult cuStreamSynchronize(CUstream stream) { return synchronizations++, CUDA_SUCCESS; }
EXPORT CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
    return *status = stream == capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE, CUDA_SUCCESS;
}
EXPORT CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    copies++;
    if (stream != capturing) memcpy((void*)to, from, bytes);  // a captured copy is made later
    return CUDA_SUCCESS;
}
EXPORT CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr pointer) {
    return *(CUdeviceptr*)data = pointer, CUDA_SUCCESS;
}
EXPORT CUresult cuOccupancyMaxActiveClusters(int* n, CUfunction f, const CUlaunchConfig* c) { return *n = 1, CUDA_SUCCESS; }
EXPORT CUresult cuGetErrorString(CUresult error, const char** text) {
    return *text = error == CUDA_ERROR_INVALID_VALUE ? "invalid argument" : "an error", CUDA_SUCCESS;
}
EXPORT CUresult cuGetErrorName(CUresult error, const char** text) {
    return *text = error == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR", CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = MOST_SHARED; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = MOST_SHARED + RESERVED_SHARED; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = MULTIPROCESSORS; break;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
        default: *value = 1000;
    }
    return CUDA_SUCCESS;
}

// A map is 128 bytes that nobody may look into; here they begin with its address, rank, sizes and box.
EXPORT CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                       const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                       const cuuint32_t* steps, CUtensorMapInterleave i, CUtensorMapSwizzle s,
                                       CUtensorMapL2promotion l2, CUtensorMapFloatOOBfill fill) {
    maps++;
    if ((uintptr_t)address % 16 || rank > 5) return CUDA_ERROR_INVALID_VALUE;
    for (unsigned k = 0; k < rank; k++)
        if (box[k] > 256 || (k + 1 < rank && strides[k] % 16)) return CUDA_ERROR_INVALID_VALUE;
    memset(map, 0, sizeof *map);
    uint64_t* out = (uint64_t*)map;
    out[0] = (uintptr_t)address;
    out[1] = 0;  // Triton changes a bit here for older drivers
    out[2] = rank;
    for (unsigned k = 0; k < rank; k++) out[3 + k] = sizes[k], out[8 + k] = box[k];
    return CUDA_SUCCESS;
}

// --- for the tests ---

EXPORT void stand_in_record(int on) { recording = on; }
EXPORT void stand_in_capture(CUstream stream) { capturing = stream; }
EXPORT int stand_in_count(int which) {
    int all[] = {record_count, launches, refused, maps, synchronizations, attributes_set, copies};
    return all[which];
}
EXPORT void stand_in_forget(void) {
    for (int i = 0; i < record_count; i++) free(records[i].values);
    record_count = launches = refused = maps = synchronizations = attributes_set = copies = 0;
}
EXPORT const char* stand_in_name(int i) { return records[i].function->name; }
EXPORT const unsigned* stand_in_geometry(int i) { return records[i].grid; }  // grid, block, shared, attributes
EXPORT uint64_t stand_in_stream(int i) { return (uintptr_t)records[i].stream; }
EXPORT int stand_in_captured(int i) { return records[i].captured; }
EXPORT int stand_in_sizes(int i, int* sizes) {
    memcpy(sizes, records[i].function->sizes, sizeof records[i].function->sizes);
    return records[i].function->count;
}
EXPORT const void* stand_in_values(int i) { return records[i].values; }
