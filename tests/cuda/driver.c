/* A CUDA driver that answers what the environment says, and has nothing behind it. */
#include <stdlib.h>

/* Bytes of shared memory of a block, and multiprocessors. */
#define MOST_SHARED 232448
#define PROCESSORS 4

static int number(const char *name, int otherwise)
{
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

int cuDriverGetVersion(int *version) { *version = number("FAKE_VERSION", 99000); return 0; }
int cuInit(unsigned flags) { (void)flags; return number("FAKE_INIT", 0); }
int cuDeviceGetCount(int *count) { *count = number("FAKE_COUNT", 1); return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }

/* 16 is the number of multiprocessors, 97 the shared memory of a block; 75 and 76 are the compute
 * capability's two numbers. */
int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    int capability = number("FAKE_CAPABILITY", 90);
    (void)device;
    switch (attribute) {
    case 16: *value = PROCESSORS; return 0;
    case 97: *value = MOST_SHARED; return 0;
    case 75: *value = capability / 10; return 0;
    case 76: *value = capability % 10; return 0;
    default: return 1;
    }
}

int cuGetErrorName(int code, const char **name)
{
    switch (code) {
    case 1: *name = "CUDA_ERROR_INVALID_VALUE"; return 0;
    case 2: *name = "CUDA_ERROR_OUT_OF_MEMORY"; return 0;
    case 209: *name = "CUDA_ERROR_NO_BINARY_FOR_GPU"; return 0;
    case 700: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; return 0;
    case 900: *name = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; return 0;
    case 901: *name = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"; return 0;
    case 999: *name = "CUDA_ERROR_UNKNOWN"; return 0;
    default: return 1;
    }
}
