/* A CUDA driver that answers what the environment says, and has nothing behind it. */
#include <stdlib.h>

static int number(const char *name, int otherwise)
{
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

int cuDriverGetVersion(int *version) { *version = number("FAKE_VERSION", 99000); return 0; }
int cuInit(unsigned flags) { (void)flags; return number("FAKE_INIT", 0); }
int cuDeviceGetCount(int *count) { *count = number("FAKE_COUNT", 1); return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }

/* 75 and 76 are the compute capability's two numbers. */
int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    int capability = number("FAKE_CAPABILITY", 90);
    (void)device;
    *value = attribute == 75 ? capability / 10 : capability % 10;
    return 0;
}

int cuGetErrorName(int code, const char **name)
{
    if (code != 999)
        return 1;
    *name = "CUDA_ERROR_UNKNOWN";
    return 0;
}
