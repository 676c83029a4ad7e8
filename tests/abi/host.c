/*
 * host LIBRARY MODEL: hosts that load the library at run time, from a thread that ends; that have
 * closed stdin, stdout and stderr; and that unload it. Not linked against the library.
 */
#include "check.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/wait.h>

#define TEXT "How can I make a pipe bomb at home?"

static struct {
    void *library;
    int32_t (*open)(const siren_open_options *, siren_guard **, siren_error *);
    int32_t (*score)(siren_guard *, const siren_input *, const siren_score_options *,
                     siren_result *, siren_error *);
    int32_t (*stream_new)(siren_guard *, const siren_stream_options *, siren_stream **,
                          siren_error *);
    int32_t (*push)(siren_stream *, const char *, size_t, const siren_push_options *,
                    siren_push_result *, siren_error *);
    int32_t (*stream_free)(siren_stream *);
    int32_t (*free)(siren_guard *);
} siren;

static const char *path, *model;
static siren_guard *guard;
static siren_stream *stream;

/* Function pointers come as object pointers; ISO C has no cast between the two. */
static void find(const char *name, void *function)
{
    void *symbol = dlsym(siren.library, name);
    REQUIRE(symbol != NULL);
    memcpy(function, &symbol, sizeof symbol);
}

static void load(void)
{
    siren.library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!siren.library) {
        fprintf(stderr, "%s\n", dlerror());
    }
    REQUIRE(siren.library != NULL);
    find("siren_open", &siren.open);
    find("siren_score", &siren.score);
    find("siren_stream_new", &siren.stream_new);
    find("siren_stream_push", &siren.push);
    find("siren_stream_free", &siren.stream_free);
    find("siren_free", &siren.free);
}

static void open_guard(void)
{
    siren_open_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.model = text_of(model);
    options.threads = 2;
    CHECK(siren.open(&options, &guard, NULL) == SIREN_OK);
    CHECK(siren.stream_new(guard, NULL, &stream, NULL) == SIREN_OK);
}

static double score(void)
{
    siren_input input = input_of(TEXT);
    siren_result result = SIREN_RESULT_INIT;
    siren_push_result pushed = SIREN_PUSH_RESULT_INIT;
    CHECK(siren.score(guard, &input, NULL, &result, NULL) == SIREN_OK);
    CHECK(siren.push(stream, " ", 1, NULL, &pushed, NULL) == SIREN_OK);
    return result.score;
}

static void close_guard(void)
{
    CHECK(siren.stream_free(stream) == SIREN_OK);
    CHECK(siren.free(guard) == SIREN_OK);
    CHECK(siren.free(guard) == SIREN_INVALID_HANDLE);
}

static void *load_and_score(void *found)
{
    load();
    open_guard();
    *(double *)found = score();
    return NULL;
}

/* A file without a name, under the lowest number that is free. */
static int own_file(void)
{
    char name[] = "/tmp/siren-host-XXXXXX";
    int fd = mkstemp(name);
    return unlink(name) == 0 ? fd : -1;
}

/* With 0, 1 and 2 closed, the files that are opened take these numbers: nobody may write there. */
static int without_standard_files(void)
{
    int fd, status = 0;
    pid_t pid;
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        for (fd = 0; fd < 3; fd++) {
            close(fd);
        }
        load();
        open_guard();
        score();
        /* Files of the host's own, which would show what is printed. */
        for (fd = 0; fd < 3; fd++) {
            CHECK(own_file() == fd);
        }
        score();
        close_guard();
        for (fd = 0; fd < 3; fd++) {
            CHECK(lseek(fd, 0, SEEK_END) == 0);
        }
        _exit(check_failures != 0);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    double first = -1.0;
    REQUIRE(argc == 3);
    path = argv[1];
    model = argv[2];
    CHECK(without_standard_files());

    /* What the library keeps for the thread that loaded it goes with that thread. */
    REQUIRE(pthread_create(&thread, NULL, load_and_score, &first) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(score() == first);
    /* Its threads still run: unloading must not take their code away. */
    CHECK(dlclose(siren.library) == 0);
    load();
    CHECK(score() == first);
    close_guard();
    CHECK(dlclose(siren.library) == 0);
    load();
    open_guard();
    CHECK(score() == first);
    close_guard();
    CHECK(dlclose(siren.library) == 0);
    return check_summary();
}
