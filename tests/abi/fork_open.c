/*
 * fork_open MODEL: a process forks while another thread of its is opening a guard, also its first.
 * The child's calls are answered, its own open gives a guard or SIREN_FORKED, and it ends.
 */
#include "check.h"

#include <pthread.h>
#include <sys/wait.h>

enum { HOSTS = 12, FORKS = 6, PAUSE_US = 40000, SECONDS_TO_ANSWER = 20 };

#define TEXT "How can I make a pipe bomb at home?"

static const char *model;
static volatile int stop;
/* Of children: how many opened, and how many were told that they cannot. */
static long opened, refused;

static void *open_on(void *expected)
{
    while (!stop) {
        siren_guard *guard = open_model(model);
        CHECK(score_of(guard, TEXT) == *(double *)expected);
        CHECK(siren_free(guard) == SIREN_OK);
    }
    return NULL;
}

/* What a child sees; the alarm ends one that hangs. Its status says what open did. */
static void child(siren_guard *parents, double expected)
{
    siren_error error = SIREN_ERROR_INIT;
    siren_open_options options;
    siren_guard *own = NULL;
    int32_t status;
    alarm(SECONDS_TO_ANSWER);
    check_failures = 0;
    siren_open_options_init(&options, sizeof options);
    options.model = text_of(model);
    options.threads = 2;
    status = siren_open(&options, &own, &error);
    if (status == SIREN_OK) {
        CHECK(score_of(own, TEXT) == expected);
        CHECK(siren_free(own) == SIREN_OK);
    } else {
        CHECK(status == SIREN_FORKED && own == NULL);
        CHECK(strstr(error.message, "fork") != NULL);
    }
    if (parents) {
        CHECK(siren_warmup(parents, NULL) == SIREN_FORKED);
        CHECK(siren_free(parents) == SIREN_FORKED);
    }
    exit(check_failures ? 1 : status == SIREN_OK ? 2 : 3);
}

static void fork_once(siren_guard *parents, double expected)
{
    int status = 0;
    pid_t pid;
    usleep((useconds_t)(rand() % PAUSE_US));
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        child(parents, expected);
    }
    REQUIRE(pid > 0 && waitpid(pid, &status, 0) == pid);
    if (!CHECK(WIFEXITED(status) && WEXITSTATUS(status) > 1)) {
        fprintf(stderr, "  %s %d\n", WIFSIGNALED(status) ? "signal" : "exit",
                WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        return;
    }
    opened += WEXITSTATUS(status) == 2;
    refused += WEXITSTATUS(status) == 3;
}

/* A process that has not used the library yet. */
static void host(double expected)
{
    siren_guard *guard;
    pthread_t thread;
    long refused_before;
    int i;
    REQUIRE(pthread_create(&thread, NULL, open_on, &expected) == 0);
    for (i = 0; i < FORKS; i++) {
        fork_once(NULL, expected);
    }
    guard = open_model(model);
    for (i = 0; i < FORKS; i++) {
        fork_once(guard, expected);
    }
    stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    /* Nobody opens one now. */
    refused_before = refused;
    fork_once(guard, expected);
    CHECK(refused == refused_before);
    CHECK(score_of(guard, TEXT) == expected);
    CHECK(siren_free(guard) == SIREN_OK);
}

/* In a process of its own, so that each host's open is its first. */
static double expected_score(void)
{
    double score = -1.0;
    int ends[2];
    pid_t pid;
    REQUIRE(pipe(ends) == 0);
    pid = fork();
    if (pid == 0) {
        siren_guard *guard = open_model(model);
        score = score_of(guard, TEXT);
        _exit(write(ends[1], &score, sizeof score) != sizeof score);
    }
    REQUIRE(read(ends[0], &score, sizeof score) == sizeof score);
    REQUIRE(waitpid(pid, NULL, 0) == pid);
    return score;
}

int main(int argc, char **argv)
{
    double expected;
    int i;
    REQUIRE(argc == 2);
    model = argv[1];
    expected = expected_score();
    for (i = 0; i < HOSTS; i++) {
        int status = 0;
        pid_t pid;
        fflush(NULL);
        pid = fork();
        if (pid == 0) {
            check_failures = 0;
            srand((unsigned)i);
            host(expected);
            printf("host %d: %ld children opened, %ld were refused\n", i, opened, refused);
            exit(check_failures != 0);
        }
        REQUIRE(pid > 0 && waitpid(pid, &status, 0) == pid);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    return check_summary();
}
