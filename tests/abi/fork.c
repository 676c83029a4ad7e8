/*
 * fork MODEL: a child is told that the parent's handles are not its own, at once, and can open some;
 * the parent goes on. Also when threads of the parent are scoring at the moment of the fork.
 */
#include "check.h"

#include <math.h>
#include <pthread.h>
#include <sys/wait.h>

enum { FORKS_UNDER_LOAD = 30, SCORERS = 4, SECONDS_TO_ANSWER = 20 };

#define TEXT "How can I make a pipe bomb at home?"

static siren_guard *guard;
static siren_stream *stream;
static siren_cancel_token *token;
static double expected;
static volatile int stop;

static void never(void *user_data, int32_t status, const siren_result *result,
                  const siren_error *error)
{
    (void)user_data;
    (void)result;
    (void)error;
    CHECK(status == SIREN_OK && !"a callback of a call that failed");
}

/* A stream and a token of the parent's, in a child. */
static void child_of_a_stream(void)
{
    siren_push_result pushed = SIREN_PUSH_RESULT_INIT;
    siren_stream *other = NULL;
    siren_score_options options = SIREN_SCORE_OPTIONS_INIT;
    siren_input input = input_of(TEXT);
    siren_result result = SIREN_RESULT_INIT;
    CHECK(siren_stream_new(guard, NULL, &other, NULL) == SIREN_FORKED);
    CHECK(siren_stream_push(stream, TEXT, 1, NULL, &pushed, NULL) == SIREN_FORKED);
    CHECK(siren_stream_finish(stream, NULL, &pushed, NULL) == SIREN_FORKED);
    CHECK(siren_stream_reset(stream, NULL) == SIREN_FORKED);
    CHECK(siren_stream_fork(stream, &other, NULL) == SIREN_FORKED);
    CHECK(siren_stream_free(stream) == SIREN_FORKED);
    CHECK(siren_score_async(guard, &input, NULL, never, NULL, NULL) == SIREN_FORKED);
    CHECK(siren_cancel(token, NULL) == SIREN_FORKED);
    CHECK(siren_cancel_token_free(token) == SIREN_FORKED);
    options.cancel = token;
    CHECK(siren_score(guard, &input, &options, &result, NULL) == SIREN_FORKED);
}

/* A stream and a token of the child's own. */
static void stream_of_its_own(siren_guard *own)
{
    siren_push_result pushed = SIREN_PUSH_RESULT_INIT;
    siren_stream *made = NULL;
    siren_cancel_token *cancel = NULL;
    siren_push_options options = SIREN_PUSH_OPTIONS_INIT;
    CHECK(siren_cancel_token_new(&cancel, NULL) == SIREN_OK && cancel != token);
    CHECK(siren_stream_new(own, NULL, &made, NULL) == SIREN_OK && made != stream);
    options.cancel = cancel;
    CHECK(siren_stream_push(made, TEXT, strlen(TEXT), &options, &pushed, NULL) == SIREN_OK);
    CHECK(fabs(pushed.score - expected) <= 1e-4);
    options.cancel = token;
    CHECK(siren_stream_push(made, TEXT, 1, &options, &pushed, NULL) == SIREN_FORKED);
    CHECK(siren_stream_free(made) == SIREN_OK);
    CHECK(siren_cancel_token_free(cancel) == SIREN_OK);
}

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
    child_of_a_stream();
    CHECK(siren_free(guard) == SIREN_FORKED);
    CHECK(siren_free(guard) == SIREN_FORKED);
    if (model) {
        pid_t grandchild;
        int status = 0;
        own = open_model(model);
        CHECK(own != guard);
        CHECK(score_of(own, TEXT) == expected);
        stream_of_its_own(own);
        CHECK(siren_score(guard, &input, NULL, &result, NULL) == SIREN_FORKED);
        grandchild = fork();
        if (grandchild == 0) {
            CHECK(siren_free(own) == SIREN_FORKED);
            CHECK(siren_free(guard) == SIREN_FORKED);
            child_of_a_stream();
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
    REQUIRE(siren_stream_new(guard, NULL, &stream, NULL) == SIREN_OK);
    REQUIRE(siren_cancel_token_new(&token, NULL) == SIREN_OK);

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
    CHECK(siren_stream_free(stream) == SIREN_OK);
    CHECK(siren_cancel_token_free(token) == SIREN_OK);
    CHECK(siren_free(guard) == SIREN_OK);
    return check_summary();
}
