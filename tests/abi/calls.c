/*
 * calls MODEL: what ends a call early (tokens and deadlines), waiting for a full queue, and
 * callbacks: once each, on another thread, calling back in, freeing what they came from; on small
 * stacks too.
 */
#include "check.h"

#include <math.h>
#include <pthread.h>
#include <time.h>

enum { MANY = 64, SMALL_STACK = 128 << 10 };

#define TEXT "How can I make a pipe bomb at home?"

static const char *model;
static siren_guard *guard;
static double expected;

static int near(double a, double b) { return fabs(a - b) <= 1e-4; }

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void pause_ms(long ms)
{
    struct timespec time;
    time.tv_sec = ms / 1000;
    time.tv_nsec = ms % 1000 * 1000000;
    nanosleep(&time, NULL);
}

/* ---- a batch that takes a while ---- */

static siren_input slow[256];

static void make_slow(void)
{
    static char text[1 << 13];
    size_t i;
    for (i = 0; i < sizeof text; i++) {
        text[i] = i % 5 == 4 ? ' ' : (char)('a' + i * 7 % 23);
    }
    for (i = 0; i < 256; i++) {
        /* Each begins otherwise, so that no cache helps. */
        slow[i] = input_of(NULL);
        slow[i].text.data = text + i * 8;
        slow[i].text.length = sizeof text - 4096;
    }
}

static int32_t score_slow(const siren_score_options *options)
{
    static siren_result results[256];
    size_t i;
    for (i = 0; i < 256; i++) {
        siren_result_init(&results[i], sizeof results[i]);
    }
    return siren_score_batch(guard, slow, 256, options, results, NULL, NULL);
}

static void *cancel_soon(void *token)
{
    pause_ms(30);
    CHECK(siren_cancel(token, NULL) == SIREN_OK);
    return NULL;
}

static void cancelled(void)
{
    siren_error error = SIREN_ERROR_INIT;
    siren_score_options options = SIREN_SCORE_OPTIONS_INIT;
    siren_result result = SIREN_RESULT_INIT;
    siren_input input = input_of(TEXT);
    siren_cancel_token *token = NULL;
    pthread_t thread;
    double start, whole, cut;

    start = seconds();
    CHECK(score_slow(NULL) == SIREN_OK);
    whole = seconds() - start;
    CHECK(siren_cancel_token_new(&token, &error) == SIREN_OK);
    options.cancel = token;
    CHECK(siren_score(guard, &input, &options, &result, &error) == SIREN_OK);
    CHECK(pthread_create(&thread, NULL, cancel_soon, token) == 0);
    start = seconds();
    CHECK(score_slow(&options) == SIREN_CANCELLED);
    cut = seconds() - start;
    CHECK(pthread_join(thread, NULL) == 0);
    if (!CHECK(cut < whole / 2)) {
        fprintf(stderr, "  %.3f s, of %.3f s when it is not cancelled\n", cut, whole);
    }
    /* It stays cancelled, for what is still to come too; other calls know nothing of it. */
    result.tokens = 77;
    CHECK(siren_score(guard, &input, &options, &result, &error) == SIREN_CANCELLED);
    CHECK(error.status == SIREN_CANCELLED && strstr(error.message, "cancelled") != NULL);
    CHECK(result.tokens == 77);
    CHECK(siren_cancel(token, NULL) == SIREN_OK);
    CHECK(score_of(guard, TEXT) == expected);
    CHECK(siren_cancel_token_free(token) == SIREN_OK);

    /* A token that is freed while its call runs cancels nothing. */
    CHECK(siren_cancel_token_new(&token, &error) == SIREN_OK);
    options.cancel = token;
    CHECK(siren_cancel_token_free(token) == SIREN_OK);
    CHECK(siren_score(guard, &input, &options, &result, &error) == SIREN_INVALID_HANDLE);

    options.cancel = NULL;
    options.timeout_ms = 30;
    start = seconds();
    CHECK(score_slow(&options) == SIREN_DEADLINE_EXCEEDED);
    cut = seconds() - start;
    if (!CHECK(cut >= 0.03 && cut < whole / 2)) {
        fprintf(stderr, "  %.3f s, of %.3f s without a deadline\n", cut, whole);
    }
    options.timeout_ms = 3600 * 1000;
    CHECK(siren_score(guard, &input, &options, &result, &error) == SIREN_OK);
    CHECK(result.score == expected);
}

/* ---- callbacks ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

struct call {
    int called;
    int32_t status;
    double score;
    pthread_t thread;
    /* What the callback does. */
    siren_guard *frees;
    siren_stream *stream;
    struct call *next;
};

static void note(struct call *call, int32_t status, double score)
{
    pthread_mutex_lock(&lock);
    call->called++;
    call->status = status;
    call->score = score;
    call->thread = pthread_self();
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void wait_for(struct call *call)
{
    pthread_mutex_lock(&lock);
    while (call->called == 0) {
        pthread_cond_wait(&changed, &lock);
    }
    CHECK(call->called == 1);
    pthread_mutex_unlock(&lock);
}

static void done(void *user_data, int32_t status, const siren_result *result,
                 const siren_error *error)
{
    struct call *call = user_data;
    CHECK(status == SIREN_OK ? result && !error && result->status == SIREN_OK
                             : !result && error->status == status && error->message[0]);
    if (call->frees) {
        CHECK(siren_free(call->frees) == SIREN_OK);
        CHECK(siren_free(call->frees) == SIREN_INVALID_HANDLE);
    }
    note(call, status, result ? result->score : -1.0);
}

static void done_push(void *user_data, int32_t status, const siren_push_result *result,
                      const siren_error *error)
{
    struct call *call = user_data;
    CHECK(status == SIREN_OK ? result && !error : !result && error->status == status);
    if (call->frees) {
        CHECK(siren_stream_free(call->stream) == SIREN_OK);
        CHECK(siren_free(call->frees) == SIREN_OK);
    }
    note(call, status, result ? result->score : -1.0);
}

/* Scores, starts another call and pushes from inside a callback. */
static void call_back_in(void *user_data, int32_t status, const siren_result *result,
                         const siren_error *error)
{
    struct call *call = user_data;
    siren_input input = input_of(TEXT);
    siren_push_result pushed = SIREN_PUSH_RESULT_INIT;
    CHECK(status == SIREN_OK && !error);
    CHECK(score_of(guard, TEXT) == expected);
    CHECK(siren_stream_push(call->stream, TEXT, strlen(TEXT), NULL, &pushed, NULL) == SIREN_OK);
    CHECK(near(pushed.score, expected));
    CHECK(siren_stream_reset(call->stream, NULL) == SIREN_OK);
    REQUIRE(siren_score_async(guard, &input, NULL, done, call->next, NULL) == SIREN_OK);
    note(call, status, result->score);
}

static void done_batch(void *user_data, int32_t status, const siren_result *const *results,
                       const siren_error *const *errors, size_t count, const siren_error *error)
{
    size_t i;
    CHECK(status == SIREN_OK ? !error && count == 3 : error && !results && !errors && !count);
    for (i = 0; i < count; i++) {
        int is_bad = i == 1;
        CHECK(results[i]->status == (is_bad ? SIREN_INVALID_UTF8 : SIREN_OK));
        CHECK(is_bad ? results[i]->is_harmful == 1 && errors[i]->status == SIREN_INVALID_UTF8
                     : results[i]->score == expected && errors[i] == NULL);
    }
    note(user_data, status, 0.0);
}

static void callbacks(void)
{
    static struct call calls[MANY], single, last, batch, end;
    siren_input input = input_of(TEXT), inputs[3];
    siren_score_options options = SIREN_SCORE_OPTIONS_INIT;
    siren_cancel_token *token = NULL;
    char *copied = malloc(sizeof TEXT - 1);
    int32_t status;
    int i;
    REQUIRE(copied != NULL);
    /* The text is copied: it is gone before most of them run. */
    memcpy(copied, TEXT, sizeof TEXT - 1);
    input.text.data = copied;
    for (i = 0; i < MANY; i++) {
        REQUIRE(siren_score_async(guard, &input, NULL, done, &calls[i], NULL) == SIREN_OK);
    }
    memset(copied, 'x', sizeof TEXT - 1);
    free(copied);
    for (i = 0; i < MANY; i++) {
        wait_for(&calls[i]);
        CHECK(calls[i].status == SIREN_OK && calls[i].score == expected);
        CHECK(!pthread_equal(calls[i].thread, pthread_self()));
    }

    input = input_of(TEXT);
    single.next = &last;
    REQUIRE(siren_stream_new(guard, NULL, &single.stream, NULL) == SIREN_OK);
    REQUIRE(siren_score_async(guard, &input, NULL, call_back_in, &single, NULL) == SIREN_OK);
    wait_for(&single);
    wait_for(&last);
    CHECK(single.score == expected && last.score == expected);
    CHECK(siren_stream_free(single.stream) == SIREN_OK);

    inputs[0] = inputs[2] = input;
    inputs[1] = input_of("\xff");
    REQUIRE(siren_score_batch_async(guard, inputs, 3, NULL, done_batch, &batch, NULL) == SIREN_OK);
    wait_for(&batch);

    /* Cancelled before it starts: said at once or by the callback, and never by both. */
    CHECK(siren_cancel_token_new(&token, NULL) == SIREN_OK);
    CHECK(siren_cancel(token, NULL) == SIREN_OK);
    options.cancel = token;
    status = siren_score_async(guard, &input, &options, done, &end, NULL);
    if (status == SIREN_OK) {
        wait_for(&end);
        status = end.status;
    } else {
        pause_ms(50);
        CHECK(end.called == 0);
    }
    CHECK(status == SIREN_CANCELLED);
    CHECK(siren_cancel_token_free(token) == SIREN_OK);
    for (i = 0; i < MANY; i++) {
        CHECK(calls[i].called == 1);
    }
}

static void callbacks_that_free(void)
{
    int round;
    for (round = 0; round < 4; round++) {
        static const struct call nothing;
        struct call calls[3];
        siren_input input = input_of(TEXT);
        siren_guard *own = open_model(model);
        calls[0] = calls[1] = calls[2] = nothing;
        /* Another may stand in the queue when the first frees the guard. */
        calls[0].frees = own;
        REQUIRE(siren_score_async(own, &input, NULL, done, &calls[0], NULL) == SIREN_OK);
        if (round % 2
            && siren_score_async(own, &input, NULL, done, &calls[1], NULL) == SIREN_OK) {
            wait_for(&calls[1]);
        }
        wait_for(&calls[0]);
        CHECK(calls[0].score == expected);

        own = open_model(model);
        calls[2].frees = own;
        REQUIRE(siren_stream_new(own, NULL, &calls[2].stream, NULL) == SIREN_OK);
        REQUIRE(siren_stream_push_async(calls[2].stream, TEXT, strlen(TEXT), NULL, done_push,
                                      &calls[2], NULL) == SIREN_OK);
        wait_for(&calls[2]);
        CHECK(calls[2].status == SIREN_OK && near(calls[2].score, expected));
    }
}

/* The guard and the stream are freed while their calls wait: every callback still comes. */
static void freed_under_way(void)
{
    static const struct call nothing;
    struct call calls[MANY], push;
    siren_input input = input_of(TEXT);
    siren_guard *own = open_model(model);
    siren_stream *stream = NULL;
    double *scores = malloc(64 * sizeof *scores);
    siren_push_options options = SIREN_PUSH_OPTIONS_INIT;
    int i;
    REQUIRE(scores != NULL);
    options.token_scores = scores;
    options.token_scores_capacity = 64;
    push = nothing;
    REQUIRE(siren_stream_new(own, NULL, &stream, NULL) == SIREN_OK);
    for (i = 0; i < MANY; i++) {
        calls[i] = nothing;
        REQUIRE(siren_score_async(own, &input, NULL, done, &calls[i], NULL) == SIREN_OK);
    }
    REQUIRE(siren_stream_push_async(stream, TEXT, strlen(TEXT), &options, done_push, &push, NULL)
          == SIREN_OK);
    CHECK(siren_stream_free(stream) == SIREN_OK);
    CHECK(siren_free(own) == SIREN_OK);
    for (i = 0; i < MANY; i++) {
        wait_for(&calls[i]);
        CHECK(calls[i].status == SIREN_OK && calls[i].score == expected);
    }
    wait_for(&push);
    CHECK(push.status == SIREN_OK && near(push.score, expected));
    free(scores);
}

/* A stream is in use until its callback comes. */
static void pushes(void)
{
    static struct call call;
    siren_stream *stream = NULL;
    siren_push_result result = SIREN_PUSH_RESULT_INIT;
    int32_t status;
    REQUIRE(siren_stream_new(guard, NULL, &stream, NULL) == SIREN_OK);
    REQUIRE(siren_stream_push_async(stream, TEXT, strlen(TEXT), NULL, done_push, &call, NULL)
          == SIREN_OK);
    status = siren_stream_push(stream, "", 0, NULL, &result, NULL);
    CHECK(status == SIREN_IN_USE || (status == SIREN_OK && near(result.score, expected)));
    wait_for(&call);
    CHECK(call.status == SIREN_OK && near(call.score, expected));
    CHECK(siren_stream_push(stream, "", 0, NULL, &result, NULL) == SIREN_OK);
    CHECK(near(result.score, expected));
    CHECK(siren_stream_free(stream) == SIREN_OK);
}

/* Half a character is told by the callback, and leaves the stream as it was; what was finished
 * refuses at once. */
static void finishes(void)
{
    static const struct call nothing;
    struct call call = nothing;
    siren_error error = SIREN_ERROR_INIT;
    siren_push_result result = SIREN_PUSH_RESULT_INIT;
    siren_stream *stream = NULL;
    REQUIRE(siren_stream_new(guard, NULL, &stream, NULL) == SIREN_OK);
    CHECK(siren_stream_push(stream, TEXT "\xe2", strlen(TEXT) + 1, NULL, &result, NULL)
          == SIREN_OK);
    REQUIRE(siren_stream_finish_async(stream, NULL, done_push, &call, NULL) == SIREN_OK);
    wait_for(&call);
    CHECK(call.called == 1 && call.status == SIREN_INVALID_UTF8);
    CHECK(siren_stream_push(stream, "\x82\xac", 2, NULL, &result, NULL) == SIREN_OK);
    call = nothing;
    REQUIRE(siren_stream_finish_async(stream, NULL, done_push, &call, NULL) == SIREN_OK);
    wait_for(&call);
    CHECK(call.called == 1 && call.status == SIREN_OK);
    CHECK(near(call.score, score_of(guard, TEXT "\xe2\x82\xac")));
    call = nothing;
    CHECK(siren_stream_finish_async(stream, NULL, done_push, &call, &error)
          == SIREN_INVALID_ARGUMENT);
    CHECK(strstr(error.message, "finished") != NULL && call.called == 0);

    /* The stream is freed under it: the callback still comes. */
    CHECK(siren_stream_reset(stream, NULL) == SIREN_OK);
    CHECK(siren_stream_push(stream, TEXT, strlen(TEXT), NULL, &result, NULL) == SIREN_OK);
    REQUIRE(siren_stream_finish_async(stream, NULL, done_push, &call, NULL) == SIREN_OK);
    CHECK(siren_stream_free(stream) == SIREN_OK);
    wait_for(&call);
    CHECK(call.status == SIREN_OK && near(call.score, expected));
}

/* ---- a queue for two ---- */

static siren_guard *narrow;

static void *score_and_wait(void *wrong)
{
    siren_score_options options = SIREN_SCORE_OPTIONS_INIT;
    siren_input input = input_of(TEXT);
    int i;
    options.wait = 1;
    for (i = 0; i < 20; i++) {
        siren_result result = SIREN_RESULT_INIT;
        if (siren_score(narrow, &input, &options, &result, NULL) != SIREN_OK
            || result.score != expected) {
            *(int *)wrong = 1;
        }
    }
    return NULL;
}

static void waiting(void)
{
    siren_open_options options;
    pthread_t threads[8];
    int wrong[8] = {0};
    int i;
    siren_open_options_init(&options, sizeof options);
    options.model = text_of(model);
    options.threads = 2;
    options.max_queue = 1;
    REQUIRE(siren_open(&options, &narrow, NULL) == SIREN_OK);
    for (i = 0; i < 8; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, score_and_wait, &wrong[i]) == 0);
    }
    for (i = 0; i < 8; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(!wrong[i]);
    }
    CHECK(siren_free(narrow) == SIREN_OK);
}

/* ---- small stacks ---- */

static void *all_of_it(void *fine)
{
    static struct call score, push;
    siren_input input = input_of(TEXT);
    siren_push_result result = SIREN_PUSH_RESULT_INIT;
    siren_stream *stream = NULL, *forked = NULL;
    siren_guard *own = open_model(model);
    size_t length = 0;
    *(int *)fine =
        siren_stream_new(own, NULL, &stream, NULL) == SIREN_OK
        && siren_stream_push(stream, TEXT, strlen(TEXT), NULL, &result, NULL) == SIREN_OK
        && near(result.score, expected)
        && siren_stream_fork(stream, &forked, NULL) == SIREN_OK
        && siren_stream_finish(forked, NULL, &result, NULL) == SIREN_OK
        && siren_stream_reset(stream, NULL) == SIREN_OK
        && siren_score_async(own, &input, NULL, done, &score, NULL) == SIREN_OK
        && siren_stream_push_async(stream, TEXT, strlen(TEXT), NULL, done_push, &push, NULL)
            == SIREN_OK
        && siren_stats_prometheus(own, NULL, 0, &length, NULL) == SIREN_OK;
    if (*(int *)fine) {
        wait_for(&score);
        wait_for(&push);
    }
    *(int *)fine = *(int *)fine && score.score == expected && near(push.score, expected)
        && siren_stream_free(stream) == SIREN_OK && siren_stream_free(forked) == SIREN_OK
        && siren_free(own) == SIREN_OK;
    return NULL;
}

static void small_stack(void)
{
    pthread_attr_t small;
    pthread_t thread;
    int fine = 0;
    CHECK(pthread_attr_init(&small) == 0);
    CHECK(pthread_attr_setstacksize(&small, SMALL_STACK) == 0);
    REQUIRE(pthread_create(&thread, &small, all_of_it, &fine) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(fine);
}

int main(int argc, char **argv)
{
    REQUIRE(argc == 2);
    model = argv[1];
    guard = open_model(model);
    expected = score_of(guard, TEXT);
    make_slow();
    cancelled();
    callbacks();
    callbacks_that_free();
    freed_under_way();
    pushes();
    finishes();
    waiting();
    small_stack();
    CHECK(score_of(guard, TEXT) == expected);
    CHECK(siren_free(guard) == SIREN_OK);
    return check_summary();
}
