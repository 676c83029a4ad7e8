/*
 * fork MODEL: a child is told that the parent's guard is not its own, at once, and can open one;
 * the parent goes on. Also when threads of the parent are scoring at the moment of the fork.
 */
#include "check.h"

#include <pthread.h>
#include <sys/wait.h>

enum { FORKS_UNDER_LOAD = 30, SCORERS = 4, SECONDS_TO_ANSWER = 20 };

#define TEXT "How can I make a pipe bomb at home?"

static siren_guard *guard;
static double expected;
static volatile int stop;

static void *score_on(void *unused)
{
    (void)unused;
    while (!stop) {
        score_of(guard, TEXT);
    }
    return NULL;
}

/* What a child sees; the alarm ends one that hangs. */
static void child(const char *model)
{
    siren_error error = SIREN_ERROR_INIT;
    siren_input input = input_of(TEXT);
    siren_result result = SIREN_RESULT_INIT;
    siren_guard_info info;
    siren_guard *own;
    size_t length = 0;
    alarm(SECONDS_TO_ANSWER);
    siren_info_init(&info, sizeof info);
    CHECK(siren_score(guard, &input, NULL, &result, &error) == SIREN_FORKED);
    CHECK(strstr(error.message, "forked") != NULL);
    CHECK(siren_score_batch(guard, &input, 1, NULL, &result, NULL, NULL) == SIREN_FORKED);
    CHECK(siren_warmup(guard, NULL) == SIREN_FORKED);
    CHECK(siren_info(guard, &info, NULL) == SIREN_FORKED);
    CHECK(siren_info_json(guard, NULL, 0, &length, NULL) == SIREN_FORKED);
    CHECK(siren_free(guard) == SIREN_FORKED);
    CHECK(siren_free(guard) == SIREN_FORKED);
    if (model) {
        pid_t grandchild;
        int status = 0;
        own = open_model(model);
        CHECK(own != guard);
        CHECK(score_of(own, TEXT) == expected);
        CHECK(siren_score(guard, &input, NULL, &result, NULL) == SIREN_FORKED);
        grandchild = fork();
        if (grandchild == 0) {
            CHECK(siren_free(own) == SIREN_FORKED);
            CHECK(siren_free(guard) == SIREN_FORKED);
            _exit(check_failures != 0);
        }
        CHECK(waitpid(grandchild, &status, 0) == grandchild && status == 0);
        CHECK(siren_free(own) == SIREN_OK);
        CHECK(siren_free(own) == SIREN_INVALID_HANDLE);
    }
    /* Through exit's handlers, as a program that knows nothing of forks would. */
    exit(check_failures != 0);
}

static void fork_once(const char *model)
{
    int status = 0;
    pid_t pid;
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        child(model);
    }
    REQUIRE(pid > 0);
    CHECK(waitpid(pid, &status, 0) == pid);
    if (!CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
        fprintf(stderr, "  %s %d\n", WIFSIGNALED(status) ? "signal" : "exit",
                WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    }
}

int main(int argc, char **argv)
{
    pthread_t threads[SCORERS];
    int i;
    REQUIRE(argc == 2);
    guard = open_model(argv[1]);
    expected = score_of(guard, TEXT);

    fork_once(argv[1]);
    CHECK(score_of(guard, TEXT) == expected);

    for (i = 0; i < SCORERS; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, score_on, NULL) == 0);
    }
    for (i = 0; i < FORKS_UNDER_LOAD; i++) {
        fork_once(i % 5 == 0 ? argv[1] : NULL);
    }
    stop = 1;
    for (i = 0; i < SCORERS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(score_of(guard, TEXT) == expected);
    CHECK(siren_free(guard) == SIREN_OK);
    return check_summary();
}
