// A tool that listens to NVTX in place of Nsight: it writes what it hears to the file named by NVTX_TEST_LOG.
//
//     domain <number> <name>
//     push <domain's number> <name>
//     pop <domain's number>
//
// NVTX loads it through NVTX_INJECTION64_PATH at the first NVTX call, and from then on calls the functions put in here.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nvtx3/nvToolsExt.h"

static FILE* out;
static uintptr_t domains = 0;

static nvtxDomainHandle_t NVTX_API create(const char* name) {
    fprintf(out, "domain %zu %s\n", (size_t)++domains, name);
    return (nvtxDomainHandle_t)domains;
}

// Registered strings, as Python's nvtx makes them, are handles of the tool's choosing: here, a copy of the string.
static nvtxStringHandle_t NVTX_API register_string(nvtxDomainHandle_t domain, const char* name) {
    (void)domain;
    return (nvtxStringHandle_t)strdup(name);
}

static int NVTX_API push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event) {
    const char* name = event->messageType == NVTX_MESSAGE_TYPE_REGISTERED ? (const char*)event->message.registered
                                                                          : event->message.ascii;
    fprintf(out, "push %zu %s\n", (size_t)(uintptr_t)domain, name);
    return 0;
}

static int NVTX_API pop(nvtxDomainHandle_t domain) {
    fprintf(out, "pop %zu\n", (size_t)(uintptr_t)domain);
    return 0;
}

__attribute__((visibility("default"))) int NVTX_API InitializeInjectionNvtx2(NvtxGetExportTableFunc_t tables) {
    const NvtxExportTableCallbacks* callbacks = tables(NVTX_ETID_CALLBACKS);
    NvtxFunctionTable functions;
    unsigned int size = 0;
    out = fopen(getenv("NVTX_TEST_LOG"), "w");
    if (!out || !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &functions, &size)) return 0;
    setvbuf(out, NULL, _IOLBF, 0);
    *functions[NVTX_CBID_CORE2_DomainCreateA] = (NvtxFunctionPointer)create;
    *functions[NVTX_CBID_CORE2_DomainRegisterStringA] = (NvtxFunctionPointer)register_string;
    *functions[NVTX_CBID_CORE2_DomainRangePushEx] = (NvtxFunctionPointer)push;
    *functions[NVTX_CBID_CORE2_DomainRangePop] = (NvtxFunctionPointer)pop;
    return 1;
}
