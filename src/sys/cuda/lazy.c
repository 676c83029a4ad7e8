/* Stand-ins for the CUDA functions that are used: each loads its library at the first call, and
 * answers that there is no device where the library or the function is missing. So one file serves
 * machines with and without CUDA. `symbols.h` lists them. */
#include <dlfcn.h>
#include <stddef.h>

#ifndef __x86_64__
#error "the stand-ins are written for x86-64"
#endif

#define HIDDEN __attribute__((visibility("hidden"), used))

enum library { CUDA, CUBLAS, CUBLASLT, CURAND, NVRTC, LIBRARIES };

/* Of two major versions, the functions that are used are the same. */
static const char *const names[LIBRARIES][2] = {
    [CUDA] = {"libcuda.so.1"},
    [CUBLAS] = {"libcublas.so.13", "libcublas.so.12"},
    [CUBLASLT] = {"libcublasLt.so.13", "libcublasLt.so.12"},
    [CURAND] = {"libcurand.so.10"},
    [NVRTC] = {"libnvrtc.so.13", "libnvrtc.so.12"},
};

static int no_device(void) { return 100; }                     /* CUDA_ERROR_NO_DEVICE */
static int cublas_not_initialized(void) { return 1; }          /* CUBLAS_STATUS_NOT_INITIALIZED */
static int curand_initialization_failed(void) { return 203; }  /* CURAND_STATUS_INITIALIZATION_FAILED */
static int nvrtc_internal_error(void) { return 11; }           /* NVRTC_ERROR_INTERNAL_ERROR */

static int (*const missing[LIBRARIES])(void) = {
    [CUDA] = no_device,
    [CUBLAS] = cublas_not_initialized,
    [CUBLASLT] = cublas_not_initialized,
    [CURAND] = curand_initialization_failed,
    [NVRTC] = nvrtc_internal_error,
};

struct symbol {
    void *address; /* once it is known */
    const char *name;
    enum library library;
};

/* Loads `library`, which stays: NULL where none of its names can be had. */
static void *load(enum library library) {
    static void *handles[LIBRARIES];
    void *handle = __atomic_load_n(&handles[library], __ATOMIC_ACQUIRE);
    for (size_t i = 0; !handle && i < 2 && names[library][i]; i++)
        handle = dlopen(names[library][i], RTLD_NOW | RTLD_LOCAL);
    __atomic_store_n(&handles[library], handle, __ATOMIC_RELEASE);
    return handle;
}

/* Loads `library`. Where that fails, the loader's words on its first name, until this thread's
 * next call of the loader; else NULL. */
HIDDEN const char *siren_cuda_load(int library) {
    if (load(library))
        return NULL;
    dlopen(names[library][0], RTLD_NOW | RTLD_LOCAL);
    return dlerror();
}

/* Its names in the order in which they are tried; NULL past the last. */
HIDDEN const char *siren_cuda_name(int library, int which) {
    return which < 2 ? names[library][which] : NULL;
}

HIDDEN void *siren_cuda_resolve(struct symbol *symbol) {
    void *handle = load(symbol->library);
    void *address = handle ? dlsym(handle, symbol->name) : NULL;
    if (!address)
        return (void *)missing[symbol->library];
    __atomic_store_n(&symbol->address, address, __ATOMIC_RELEASE);
    return address;
}

/* Goes where the symbol in r11 lies, with the caller's arguments as they are. */
__asm__(".text\n"
        ".hidden siren_cuda_bind\n"
        ".type siren_cuda_bind, @function\n"
        "siren_cuda_bind:\n"
        ".cfi_startproc\n"
        "pushq %rdi\n" "pushq %rsi\n" "pushq %rdx\n" "pushq %rcx\n" "pushq %r8\n" "pushq %r9\n"
        "pushq %rax\n"
        "subq $128, %rsp\n"
        ".cfi_adjust_cfa_offset 184\n"
        "movups %xmm0, (%rsp)\n" "movups %xmm1, 16(%rsp)\n"
        "movups %xmm2, 32(%rsp)\n" "movups %xmm3, 48(%rsp)\n"
        "movups %xmm4, 64(%rsp)\n" "movups %xmm5, 80(%rsp)\n"
        "movups %xmm6, 96(%rsp)\n" "movups %xmm7, 112(%rsp)\n"
        "movq %r11, %rdi\n"
        "call siren_cuda_resolve\n"
        "movq %rax, %r11\n"
        "movups (%rsp), %xmm0\n" "movups 16(%rsp), %xmm1\n"
        "movups 32(%rsp), %xmm2\n" "movups 48(%rsp), %xmm3\n"
        "movups 64(%rsp), %xmm4\n" "movups 80(%rsp), %xmm5\n"
        "movups 96(%rsp), %xmm6\n" "movups 112(%rsp), %xmm7\n"
        "addq $128, %rsp\n"
        "popq %rax\n" "popq %r9\n" "popq %r8\n" "popq %rcx\n" "popq %rdx\n" "popq %rsi\n"
        "popq %rdi\n"
        ".cfi_adjust_cfa_offset -184\n"
        "jmpq *%r11\n"
        ".cfi_endproc\n"
        ".size siren_cuda_bind, . - siren_cuda_bind\n");

#define SYMBOL(library, function)                                                                  \
    HIDDEN struct symbol siren_cuda_##function = {NULL, #function, library};                       \
    __asm__(".text\n"                                                                              \
            ".globl " #function "\n"                                                               \
            ".hidden " #function "\n"                                                              \
            ".type " #function ", @function\n" #function ":\n"                                     \
            ".cfi_startproc\n"                                                                     \
            "movq siren_cuda_" #function "(%rip), %r11\n"                                          \
            "testq %r11, %r11\n"                                                                   \
            "je 1f\n"                                                                              \
            "jmpq *%r11\n"                                                                         \
            "1: leaq siren_cuda_" #function "(%rip), %r11\n"                                       \
            "jmp siren_cuda_bind\n"                                                                \
            ".cfi_endproc\n"                                                                       \
            ".size " #function ", . - " #function "\n");
#include "symbols.h"
